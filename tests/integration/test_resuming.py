"""What may change when a run goes on, and what not."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from ssl_trainer.assistant.assistant import Students
from ssl_trainer.cli import app
from ssl_trainer.config import TrainConfig, parse, to_dict
from ssl_trainer.data.frame import Roi
from ssl_trainer.data.slices import Slice
from ssl_trainer.training.state import STATE_FILE, StateError
from ssl_trainer.training.trainer import Trainer
from support import RunningServer, engine_of, running
from trainer_support import same, small_config, write_case, write_dataset
from vessa_client.files import FileError
from vessa_common.processes import Processes
from vessa_common.training_log import read_log
from vessa_server.model.vessa import Vessa


def _stopped(config: TrainConfig, out: Path, after: int = 3) -> None:
    def stop(step: int, scalars: dict[str, float]) -> None:
        if step == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trainer(config, out).run(stop)


def _changed(config: TrainConfig, **changes: Any) -> TrainConfig:
    """With other values at keys with two underscores for dots."""
    content = to_dict(config)
    for key, value in changes.items():
        *parents, last = key.split("__")
        node = content
        for name in parents:
            node = node[name]
        node[last] = value
    return parse(content)


def test_a_run_goes_on_elsewhere_bit_for_bit(tmp_path: Path) -> None:
    """Data and run were moved, and what does not concern the batches is set otherwise."""
    config = small_config(write_dataset(tmp_path / "data"))
    Trainer(config, tmp_path / "whole").run()
    _stopped(config, tmp_path / "run")
    moved = tmp_path / "other" / "place"
    shutil.move(tmp_path / "data", moved)
    shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    content = _changed(
        config,
        data__root=str(moved),
        data__watch_quality=True,
        assistant__timeout_seconds=1.0,
        assistant__retry_seconds=1.0,
        validate_every=2,
        checkpoint_every=1,
    )
    Trainer(content, tmp_path / "elsewhere").run()
    assert same(tmp_path / "whole", tmp_path / "elsewhere")


def test_the_server_may_have_another_address(
    tmp_path: Path, model: Vessa, server: RunningServer
) -> None:
    config = small_config(write_dataset(tmp_path / "data"), server=server.grpc)
    Trainer(config, tmp_path / "whole").run()
    _stopped(config, tmp_path / "run")
    with running(engine_of(tmp_path / "engine", model=model)) as other:
        assert other.grpc != server.grpc
        Trainer(_changed(config, assistant__server=other.grpc), tmp_path / "run").run()
    assert same(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weight_decay": 0.1}, "weight_decay: 0.1 now, 0.01 when it began"),
        ({"seed": 1}, "seed: 1 now, 0 when it began"),
        ({"labelled_batch": 1}, "labelled_batch: 1 now, 2 when it began"),
        ({"accumulate": 2}, "accumulate: 2 now, 1 when it began"),
        ({"data__size": 48}, "data.size: 48 now, 32 when it began"),
        ({"data__classes": ["disc", "rod"]}, 'data.classes: ["disc", "rod"] now, ["disc", "bar"]'),
        ({"data__labelled": []}, 'data.labelled: [] now, ["p0"] when it began'),
        ({"assistant__server": "a:1"}, 'assistant.server: "a:1" now, null when it began'),
        ({"regions": True}, "regions: true now, false when it began"),
        ({"steps": 5}, "steps: 5 now, 6 when it began"),
        ({"labelled_augmentation": None}, 'labelled_augmentation: null now, {"geometry": {'),
        ({"student": {"channels": [8] * 6}}, "student.channels: [8, 8, 8, 8, 8, 8] now, [4, 4, 8,"),
    ],
)
def test_what_must_not_change_is_named_with_both_values(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    config = small_config(write_dataset(tmp_path / "data"))
    _stopped(config, tmp_path / "run")
    trainer = Trainer(_changed(config, **changes), tmp_path / "run")
    with pytest.raises(StateError) as error:
        trainer.prepare()
    assert words in str(error.value)
    assert "another --out" in str(error.value)
    assert str(tmp_path / "run" / STATE_FILE) in str(error.value)


def test_all_that_changed_is_named_at_once(tmp_path: Path) -> None:
    config = small_config(write_dataset(tmp_path / "data"))
    _stopped(config, tmp_path / "run")
    changed = _changed(config, seed=7, unimatch__weight=0.5, validate_every=1)
    with pytest.raises(StateError, match="another configuration") as error:
        Trainer(changed, tmp_path / "run").prepare()
    assert "seed: 7 now" in str(error.value)
    assert "unimatch.weight: 0.5 now, 1.0 when it began" in str(error.value)
    assert "validate_every" not in str(error.value)


def _rename(root: Path) -> None:
    (root / "train" / "p2_frame01.nii.gz").rename(root / "train" / "p2_frame02.nii.gz")


def _one_slice_more(root: Path) -> None:
    write_case(root / "train", "p0_frame01", 0, labelled=True, depth=4)


def _one_more_to_validate(root: Path) -> None:
    write_case(root / "val", "p4_frame01", 4, labelled=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_rename, r"unlabelled cases; 2 files, names \w+, 6 slices in data.root, .*data, now, 2"),
        (_one_slice_more, r"labelled cases; 1 files, names \w+, 4 slices .* 3 slices when it"),
        (_one_more_to_validate, "validation cases; 2 files, .* 1 files, .* when it began"),
    ],
)
def test_other_cases_are_refused_in_words(
    tmp_path: Path, change: Callable[[Path], None], words: str
) -> None:
    config = small_config(write_dataset(tmp_path / "data"))
    _stopped(config, tmp_path / "run")
    change(tmp_path / "data")
    with pytest.raises(StateError, match=words):
        Trainer(config, tmp_path / "run").prepare()


def _without(key: str) -> Callable[[dict[str, str]], dict[str, str]]:
    return lambda metadata: {k: v for k, v in metadata.items() if k != key}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_without("cases"), "not noted when it began"),
        (_without("batches"), "another version of ssl-trainer, .* begin anew with another --out"),
        (lambda metadata: metadata | {"batches": "0"}, "another version of ssl-trainer"),
        (lambda metadata: {"format": "pt"}, "is no state of a training; .* another --out"),
    ],
)
def test_states_of_others_are_refused_in_words(
    tmp_path: Path, change: Callable[[dict[str, str]], dict[str, str]], words: str
) -> None:
    config = small_config(write_dataset(tmp_path / "data"))
    _stopped(config, tmp_path / "run")
    file = tmp_path / "run" / STATE_FILE
    with safe_open(file, framework="pt") as stream:
        metadata = change(stream.metadata())
    save_file(load_file(file), file, metadata)
    with pytest.raises(StateError, match=words) as error:
        Trainer(config, tmp_path / "run").prepare()
    assert str(file) in str(error.value)


def test_another_number_of_processes_is_refused(tmp_path: Path) -> None:
    config = small_config(write_dataset(tmp_path / "data"))
    _stopped(config, tmp_path / "run")
    # Without a group: it only says that there are two.
    trainer = Trainer(config, tmp_path / "run")
    trainer.processes = Processes(rank=1, world=2)
    with pytest.raises(StateError, match="in 1 processes, here 2; start as many as before"):
        trainer.prepare()


def test_ctrl_c_says_what_is_saved_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(to_dict(small_config(write_dataset(tmp_path / "data")))))
    command = ["train", str(file), "-o", str(tmp_path / "run"), "--threads", "1"]
    train_step = Trainer.train_step
    for last, words in ((1, "nothing is saved yet"), (3, "step 2 is saved in")):

        def step(trainer: Trainer, last: int = last) -> dict[str, float]:
            if trainer.step == last:
                raise KeyboardInterrupt
            return train_step(trainer)

        monkeypatch.setattr(Trainer, "train_step", step)
        stopped = CliRunner().invoke(app, command)
        assert stopped.exit_code == 130
        assert f"interrupted; {words}" in stopped.stderr
        assert "Aborted" not in stopped.output
    monkeypatch.setattr(Trainer, "train_step", train_step)
    whole = CliRunner().invoke(app, command)
    assert whole.exit_code == 0, whole.output
    (line,) = (line for line in whole.stdout.splitlines() if "run.resumed" in line)
    assert line.endswith("step=2")


def test_a_line_of_the_log_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    """As a full disk leaves it; the run that goes on begins a line of its own."""
    config = small_config(write_dataset(tmp_path / "data"))
    _stopped(config, tmp_path / "run")
    log = tmp_path / "run" / "log.jsonl"
    whole = log.read_bytes()
    assert [entry["step"] for entry in read_log(log)] == [3]
    for rest in (b'{"step": 9, "loss/to', b'{"step": 9'):
        log.write_bytes(whole + rest)
        assert [entry["step"] for entry in read_log(log)] == [3]
    Trainer(config, tmp_path / "run").run()
    assert [entry["step"] for entry in read_log(log)] == [3, 6]


def test_a_run_on_labels_alone_leaves_unlabelled_files_alone(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data")
    config = _changed(small_config(root), unimatch__weight=0)
    _stopped(config, tmp_path / "run")
    (root / "train" / "p1_frame01.nii.gz").write_bytes(b"damaged")
    trainer = Trainer(config, tmp_path / "run")
    assert trainer.unlabelled == []
    trainer.run()
    (root / "train" / "p2_frame01.nii.gz").unlink()
    Trainer(config, tmp_path / "run").prepare()
    with pytest.raises(FileError, match="p1_frame01"):
        Trainer(small_config(root), tmp_path / "other")


def test_a_loss_that_is_not_finite_is_one_line_whose_advice_helps(tmp_path: Path) -> None:
    config = small_config(write_dataset(tmp_path / "data"))
    _stopped(config, tmp_path / "run")
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(to_dict(config)))
    command = ["train", str(file), "-o", str(tmp_path / "run"), "--threads", "1"]
    broken = CliRunner().invoke(app, [*command, "--set", "learning_rate=1e+38"])
    assert broken.exit_code == 1
    (line,) = (line for line in broken.stderr.splitlines() if line.startswith("Error"))
    assert "loss at step 3 is not finite" in line
    assert "--set learning_rate=5e+37, or with --set precision=fp32" in line
    assert "run.changed" in broken.stdout
    for change in ("learning_rate=1e-4", "precision=bf16"):
        mended = CliRunner().invoke(app, [*command, "--steps", "8", "--set", change])
        assert mended.exit_code == 0, mended.output
        assert change.partition("=")[0] in mended.stdout.partition("run.changed")[2]


def _noting(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> dict[int, bool]:
    """Which batches VESSA is asked about, and whether with prompts."""
    assert trainer.pipeline is not None
    with_prompts: dict[int, bool] = {}
    ask = trainer.pipeline.assistant.ask

    def note(
        number: int,
        slices: Sequence[Slice],
        students: Students | None,
        rois: Sequence[Roi | None],
    ) -> None:
        with_prompts[number] = students is not None
        ask(number, slices, students, rois)

    monkeypatch.setattr(trainer.pipeline.assistant, "ask", note)
    return with_prompts


def test_updates_that_were_never_asked_about_get_prompts_in_a_longer_run(
    tmp_path: Path, server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of six updates VESSA helps with three, of twelve with six."""
    config = small_config(write_dataset(tmp_path / "data"), steps=6, server=server.grpc)
    config = _changed(config, assistant__decay_end=0.5, assistant__feedback_start=0.25)
    _stopped(config, tmp_path / "run")  # saved after two
    longer = Trainer(_changed(config, steps=12), tmp_path / "run")
    with_prompts = _noting(longer, monkeypatch)
    longer.run()
    assert with_prompts == dict.fromkeys(range(2, 6), True)


def test_a_run_may_become_longer_and_says_so_once(
    tmp_path: Path,
    server: RunningServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = small_config(write_dataset(tmp_path / "data"), steps=4, server=server.grpc)
    Trainer(config, tmp_path / "run").run()
    longer = Trainer(_changed(config, steps=8), tmp_path / "run")
    with_prompts = _noting(longer, monkeypatch)
    rates: dict[int, float] = {}
    longer.run(lambda step, _: rates.update({step: longer.optimizer.param_groups[0]["lr"]}))
    assert capsys.readouterr().out.count("run.longer") == 1
    assert rates == pytest.approx({s + 1: 1e-3 * (1 - s / 8) ** 0.9 for s in range(4, 8)})
    assert with_prompts == dict.fromkeys(range(4, 8), True), "as in a run planned that long"
    Trainer(_changed(config, steps=8), tmp_path / "run").run()
    assert "run.longer" not in capsys.readouterr().out
