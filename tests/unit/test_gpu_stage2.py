"""Stage 2 on a machine with a GPU: which runs, packed data, trainings side by side, states."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

import acdc
import ssl_runs
from gpu_jobs import stage2, stage2_train, stage2_trainings, volumes
from gpu_jobs import stage2_states as states
from gpu_jobs.clock import Clock
from gpu_jobs.errors import FAILED_CHECK, NO_GPU, TOO_SLOW, JobError
from gpu_jobs.jobs import JOBS
from gpu_jobs.manifest import Manifest
from gpu_jobs.stage2 import Stage2Context
from gpu_jobs.stage2_plan import Plan
from gpu_jobs.stage2_servers import Servers
from gpu_jobs.stage2_states import Note
from gpu_jobs.stage2_trainings import Training, Trainings
from ssl_processes import Process
from ssl_runs import Comparison
from ssl_tasks import Facts, Task
from ssl_trainer.config import to_dict
from ssl_trainer.training.trainer import Trainer
from support import CLASSES
from trainer_support import same, small_config, write_dataset

SETTINGS = JOBS["stage2-cells"].settings


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    root = write_dataset(tmp_path / "data")
    train = to_dict(small_config(root, steps=6))
    del train["seed"]
    task = Task("small", root, CLASSES, {"1": ["p0"]}, train, {})
    return Comparison(task, tmp_path / "runs", tmp_path / "results.json", workers=4)


def test_runs_that_are_compared_come_one_after_the_other() -> None:
    task = Task.load("acdc")
    changes = {"subsets": [1, "7"], "methods": ["vessa", "cps"], "seeds": 3, "steps": [20, 10]}
    runs = Plan.of(task, {**SETTINGS, **changes}).runs(task)
    assert [(run.steps, run.seed, run.subset, run.method) for run in runs] == [
        (steps, 3, subset, method)
        for steps in (20, 10)
        for subset in ("1", "7")
        for method in ("vessa", "cps")
    ]
    for job in ("stage2-cells", "stage2-acdc"):
        task = Task.load(JOBS[job].task)
        assert Plan.of(task, JOBS[job].settings).runs(task)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": "unimatsh"}, "methods: 'unimatsh', expected some of supervised, "),
        ({"subsets": [9]}, "subsets: '9', expected some of 1, 3, 7"),
        ({"steps": "many"}, "steps: 'many', expected whole numbers from 1"),
        ({"workers": 0}, "workers: 0, expected whole numbers from 1"),
        ({"compile": 1}, "compile: 1, expected true or false"),
        ({"step": 5}, "settings: step: expected subsets, methods, seeds, steps"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError, match=message):
        Plan.of(Task.load("acdc"), {**SETTINGS, **changes})


def test_a_packed_data_set_is_read_as_the_one_that_was_packed(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data")
    pack = tmp_path / "volumes.zip"
    volumes.write(root, ("train", "val"), pack)
    assert volumes.read(pack, tmp_path / "again") == 6
    for path in sorted(root.rglob("*.nii.gz")):
        before = nib.load(path)
        after = nib.load(tmp_path / "again" / path.relative_to(root).with_suffix(""))
        assert after.header == before.header
        one, other = (np.asanyarray(image.dataobj) for image in (before, after))
        assert one.dtype == other.dtype
        if path.name.endswith("_gt.nii.gz"):
            assert (one == other).all()
        else:
            difference = one.astype(float) - other
            assert 0 < np.sqrt((difference**2).mean()) < 3
    assert volumes.read(pack, tmp_path / "some", lambda name: name.startswith("val/")) == 2
    pack.write_bytes(pack.read_bytes()[:-100])
    with pytest.raises(JobError, match=r"volumes.zip: cannot be read: BadZipFile"):
        volumes.read(pack, tmp_path / "damaged")


def test_volumes_that_would_lose_their_values_are_not_packed(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    image = nib.Nifti1Image(np.zeros((4, 5, 3), dtype=np.int16), np.eye(4))
    nib.save(image, tmp_path / "train" / "p.nii")
    with pytest.raises(JobError, match=r"int16, shape \(4, 5, 3\); expected a uint8 volume"):
        volumes.write(tmp_path, ("train",), tmp_path / "pack")


def _begin(comparison: Comparison, method: str = "unimatch") -> Path:
    run = comparison.task.run("1", method, 0)
    folder = comparison.folder(run)
    folder.mkdir(parents=True)
    (folder / stage2_train.INPUT).write_text(json.dumps(run.config))
    return folder


def test_a_training_that_is_stopped_goes_on_from_its_packed_state_as_if_it_had_not_been(
    comparison: Comparison, tmp_path: Path
) -> None:
    folder = _begin(comparison)
    with pytest.raises(stage2_train.Stopped):
        stage2_train.train(folder, None, stop=0.0)
    progress = json.loads((folder / stage2_train.PROGRESS).read_text())
    assert (progress["step"], progress["device"]) == (1, "cpu")
    note = Note("small", "1/unimatch/steps_6/seed_0", 1, 6, None)
    file = tmp_path / states.file_name("small", comparison.task.run("1", "unimatch", 0))
    assert file.name == "state_small_1_unimatch_steps_6_seed_0.tar.gz"
    assert states.pack(folder, note, file) == ""
    assert states.note_of(file) == note
    states.unpack(file, tmp_path / "on")
    (tmp_path / "on" / stage2_train.INPUT).write_text((folder / stage2_train.INPUT).read_text())
    stage2_train.train(tmp_path / "on", None, stop=time.time() + 600)
    whole = Trainer(_config(folder), tmp_path / "whole")
    whole.run()
    assert same(tmp_path / "on", tmp_path / "whole")
    # Trained to its end it is only scored; what is scored is not scored again.
    with pytest.raises(stage2_train.Stopped):
        stage2_train.score(tmp_path / "on", stop=0.0)
    stage2_train.score(tmp_path / "on", stop=time.time() + 600)
    assert json.loads((tmp_path / "on" / "scores_of_val.json").read_text())["patients"] == ["p3"]
    stage2_train.score(tmp_path / "on", stop=0.0)


def test_no_state_is_written_after_a_loss_that_is_not_finite(comparison: Comparison) -> None:
    """On a GPU losses are looked at now and then only, and the clock may come in between."""
    trainer = Trainer(small_config(comparison.task.root), comparison.out)
    trainer.run()
    state = comparison.out / "last.safetensors"
    before = state.read_bytes()
    trainer._bad.fill_(3)
    with pytest.raises(FloatingPointError, match="loss at step 3 is not finite"):
        trainer.save()
    assert state.read_bytes() == before


def _config(folder: Path) -> Any:
    from ssl_trainer.config import load

    return load(folder / stage2_train.INPUT)


@pytest.mark.parametrize("server", [None, "127.0.0.1:1"])
def test_a_training_says_until_when_slices_are_new_to_vessa(
    comparison: Comparison, tmp_path: Path, server: str | None
) -> None:
    config = small_config(comparison.task.root, steps=10, server=server)
    trainer = Trainer(config, tmp_path)  # of 6 unlabelled slices each update sees 2
    watch = stage2_train.Watch(trainer, tmp_path, time.time() + 600)
    found = []
    for step in range(4, 9):
        trainer.step, watch.noted = step, 0.0
        watch.on_step(step, {})
        found.append(json.loads((tmp_path / stage2_train.PROGRESS).read_text())["cold"])
    assert found == ([True, True, False, False, False] if server else [False] * 5)
    if trainer.pipeline is not None:
        trainer.pipeline.close()


def test_states_that_cannot_come_back_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note, file = Note("small", "run", 1, 6, None), tmp_path / "state.tar.gz"
    assert states.pack(tmp_path, note, file) == "no state was written yet"
    (tmp_path / "last.safetensors").write_bytes(np.random.default_rng(0).bytes(3 << 20))
    monkeypatch.setattr(states, "LARGEST", 2 << 20)
    assert states.pack(tmp_path, note, file) == "its state has 3.0 MiB, more than 2.0"
    assert not file.exists()
    assert states.pack(tmp_path, note, file, 1 << 20) == "its state has 3.0 MiB, more than 1.0"
    file.write_bytes(b"no archive")
    with pytest.raises(JobError, match=r"state.tar.gz: no state of a run"):
        states.note_of(file)


@pytest.fixture
def trainings(comparison: Comparison) -> Iterator[Trainings]:
    task = comparison.task
    runs = [task.run("1", "unimatch", seed) for seed in range(4)]
    with Servers(task, [], comparison.out, "cpu") as servers:
        found = Trainings(comparison, runs, servers, time.time() + 300, [], lambda facts: facts)
        yield found
        for training in found.running:
            training.process.stop()


def _running(
    trainings: Trainings,
    seed: int,
    step: int,
    rate: float,
    device: str = "cuda:0",
    *,
    method: str = "unimatch",
    cold: bool = False,
) -> Training:
    """A process that has made so many updates, and makes so many a second."""
    run = trainings.comparison.task.run("1", method, seed, steps=1000)
    folder = trainings.comparison.folder(run)
    folder.mkdir(parents=True)
    process = Process(folder / "run.log", "-c", "import time; time.sleep(100)")
    training = Training(run, folder, process, {}, [])
    note = {"step": step, "loss": 1.0, "device": device, "memory_mib": 1, "threads": 1}
    note |= {"cold": cold}
    file = folder / stage2_train.PROGRESS
    file.write_text(json.dumps(note | {"time": training.began + 1}))
    training.look()
    note["step"] = step + rate * 10
    file.write_text(json.dumps(note | {"time": training.began + 11}))
    training.look()
    assert training.rate == pytest.approx(rate)
    trainings.running.append(training)
    return training


def test_where_no_run_would_end_half_of_them_wait(
    trainings: Trainings, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, step in enumerate((300, 100, 200, 0)):
        _running(trainings, seed, step, rate=2.0)
    trainings.scoring[False] = 20.0
    now = time.time()
    # The first one needs 340 s alone with the others, and 20 s to be scored.
    trainings.deadline = now + stage2_trainings.STOP + 370
    trainings._shed(list(trainings.running))
    assert trainings.slots == 4
    trainings.deadline = now + stage2_trainings.STOP + 85
    trainings._shed(list(trainings.running))  # not even by itself
    assert trainings.slots == 4
    trainings.deadline = now + stage2_trainings.STOP + 200
    trainings._shed(list(trainings.running))
    assert trainings.slots == 2
    assert "from now on 2 at once" in capsys.readouterr().out
    assert [training.run.seed for training in trainings.running if training.shed] == [1, 3]
    while not all(t.process.ended for t in trainings.running if t.shed):
        pass
    trainings._reap()
    assert [training.run.seed for training in trainings.running] == [0, 2]
    assert {run.seed for run in trainings.waiting[:2]} == {1, 3}
    assert not trainings.failed


def test_a_run_that_would_not_be_scored_in_time_makes_others_wait(trainings: Trainings) -> None:
    for seed in range(2):
        _running(trainings, seed, 300, rate=2.0)
    trainings.deadline = time.time() + stage2_trainings.STOP + 360
    trainings.scoring[False] = 60.0
    trainings._shed(list(trainings.running))
    assert trainings.slots == 1


@pytest.mark.parametrize(
    ("device", "rate", "busy", "code"),
    [
        ("cpu", 9.0, 90.0, NO_GPU),
        ("cuda:0", 0.1, 90.0, TOO_SLOW),
        ("cuda:0", 9.0, 1.0, TOO_SLOW),
        ("cuda:0", 9.0, None, 0),
    ],
)
def test_trainings_are_looked_at_soon(
    trainings: Trainings,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    rate: float,
    busy: float | None,
    code: int,
) -> None:
    training = _running(trainings, 0, 10, rate, device)
    _look_twice(trainings, busy, code)
    assert trainings.speed[training.run.name]["updates_per_second"] == rate


def _look_twice(trainings: Trainings, busy: float | None, code: int = 0) -> None:
    trainings._looked, trainings._checked = 0.0, False
    since: list[float] = []

    def measured(moment: float) -> float | None:
        since.append(moment)
        return busy

    trainings._look(measured)
    first = trainings._looked
    assert first > 0
    assert not trainings.speed  # the first updates are those of a cold start
    trainings._looked -= stage2_trainings.EVERY
    if code:
        with pytest.raises(JobError) as raised:
            trainings._look(measured)
        assert raised.value.code == code
    else:
        trainings._look(measured)
    assert set(since) == {first}  # not the start of the processes, when the GPU is idle


def test_a_training_that_starts_or_compiles_is_not_slow(trainings: Trainings) -> None:
    training = _running(trainings, 0, 10, rate=9.0)
    training.rate = None
    _look_twice(trainings, busy=0.0)
    assert not trainings._checked
    assert trainings.speed[training.run.name]["seconds_left"] is None


def test_the_rate_of_slices_that_are_new_to_vessa_says_nothing_of_the_run(
    trainings: Trainings,
) -> None:
    training = _running(trainings, 0, 10, rate=0.1, method="vessa", cold=True)
    _look_twice(trainings, busy=50.0)
    assert not trainings._checked
    seen = trainings.speed[training.run.name]
    assert (seen["updates_per_second"], seen["seconds_left"]) == (0.1, None)
    _running(trainings, 1, 10, rate=0.1, method="vessa-labels")
    trainings._shed(list(trainings.running))
    assert trainings.slots == 4
    trainings._looked -= stage2_trainings.EVERY
    with pytest.raises(JobError, match="a run takes 10000 s"):
        trainings._look(lambda since: 50.0)


def test_trainings_without_an_update_are_given_up(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VESSA_REHEARSAL", raising=False)
    trainings._look(lambda since: None)
    trainings._began -= stage2_trainings.NONE_YET
    with pytest.raises(JobError, match="no update after 300 s"):
        trainings._look(lambda since: None)


def test_a_job_whose_runs_all_fail_is_ended(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage2_trainings, "Process", _Failing)
    trainings.slots = 1
    with pytest.raises(JobError, match=r"\d runs failed, none did not") as raised:
        trainings.run(lambda: None, lambda since: None)
    assert raised.value.code == FAILED_CHECK
    assert all("no such server" in reason for reason in trainings.failed.values())


class _Failing(Process):
    """A training that cannot be."""

    def __init__(self, log: Path, *command: str) -> None:
        super().__init__(log, "-c", "raise SystemExit('no such server')")


@pytest.fixture
def context(comparison: Comparison, tmp_path: Path) -> Stage2Context:
    manifest = Manifest(date="", commit="abc+", weights="weights", weights_digest="0" * 64)
    job, now = dataclasses.replace(JOBS["stage2-cells"]), time.time()
    found = Stage2Context(
        job, manifest, tmp_path, tmp_path, tmp_path, Clock(now, now), {"device": "H100"}
    )
    vars(found).update(task=comparison.task, comparison=comparison)
    return found


def test_states_come_back_as_long_as_all_have_room(
    context: Stage2Context, trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "ROOM", 5 << 20)
    for step, run in enumerate(trainings.waiting):
        folder = trainings.comparison.folder(run)
        folder.mkdir(parents=True)
        (folder / "last.safetensors").write_bytes(np.random.default_rng(step).bytes(2 << 20))
        (folder / stage2_train.PROGRESS).write_text(json.dumps({"step": step}))
    found = stage2._states(context, trainings)
    assert [state["step"] for state in found.values()] == [3, 2, 1, 0]
    assert ["file" in state for state in found.values()] == [True, True, False, False]
    assert sum(file.stat().st_size for file in context.out.glob("state_*")) <= 5 << 20
    assert next(reversed(found.values()))["lost"] == "its state has 2.0 MiB, more than 1.0"


def test_facts_say_where_a_run_was_made(context: Stage2Context) -> None:
    facts: Facts = {"commit": "", "uncommitted": True, "processor": "x86", "seed": 3}
    assert context.complete(facts) == {
        "commit": "abc", "uncommitted": True, "processor": "H100", "images": "WebP 95", "seed": 3,
    }  # fmt: skip


def test_circumstances_are_known_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(str(acdc.circumstances()["commit"])) == 40
    monkeypatch.setenv("PATH", "")
    assert acdc.circumstances()["commit"] == ""
    assert ssl_runs._uncommitted()
