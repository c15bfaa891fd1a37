"""What stops a run that VESSA is to help: mistakes at once, an absent server at the start only."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from ssl_trainer.assistant import connection
from ssl_trainer.assistant.assistant import Assistant, PseudoLabel
from ssl_trainer.assistant.connection import AssistantError, on_this_machine
from ssl_trainer.cli import app
from ssl_trainer.config import AssistantConfig, TrainConfig, to_dict
from ssl_trainer.data.slices import Slice
from ssl_trainer.training.progress import run_with_progress
from ssl_trainer.training.state import STATE_FILE
from ssl_trainer.training.trainer import Trainer
from support import CLASSES, RunningServer, engine_of, free_port, gate_of, picture, running
from trainer_support import same, single_slices, small_config, write_dataset
from vessa_client import VessaClient
from vessa_common.training_log import answered, read_log

NAMES = tuple(c.name for c in CLASSES)
Step = Callable[[int, dict[str, float]], None]


def assisted(root: Path, server: str, *, steps: int = 6, **changes: Any) -> TrainConfig:
    config = small_config(root, steps=steps, server=server)
    assistant = dataclasses.replace(config.assistant, wait_seconds=0.0, **changes)
    return dataclasses.replace(config, assistant=assistant)


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[RunningServer]:
    with running(engine_of(tmp_path / "locked"), token="right") as server:
        yield server


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[RunningServer]:
    with running(engine_of(tmp_path / "empty", templates=0)) as server:
        yield server


@pytest.mark.parametrize(
    ("kind", "token", "overrides", "words"),
    [
        (
            "server",
            None,
            ["data.classes=[disc, barr]"],
            ["no template of 'barr'", "'disc', 'bar'", "-c disc -c barr", "--fill-bank"],
        ),
        (
            "server",
            None,
            ["assistant.bank=heart"],
            ["no bank 'heart'", "-c disc -c bar --bank heart", "--fill-bank"],
        ),
        ("server", None, ["assistant.bank=HEART"], ["'HEART'", "a-z"]),
        ("empty", None, [], ["default bank", "is empty", "vessa templates add", "--fill-bank"]),
        ("locked", None, [], ["wants a token", "export VESSA_TOKEN="]),
        ("locked", "wrong", [], ["refuses the token", "export VESSA_TOKEN="]),
        ("server", "schlüssel", [], ["VESSA_TOKEN", "printable ASCII"]),
        ("", None, [], ["does not answer", "`vessa-server serve`", "without --server"]),
        ("server", None, ["assistant.root_certificates=no.pem"], ["root_certificates", "no.pem"]),
    ],
)
def test_a_mistake_is_one_line_before_the_first_update(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    kind: str,
    token: str | None,
    overrides: list[str],
    words: list[str],
) -> None:
    target = request.getfixturevalue(kind).grpc if kind else f"127.0.0.1:{free_port()}"
    file, run = tmp_path / "config.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump(to_dict(small_config(write_dataset(tmp_path / "data")))))
    options = [o for value in ["assistant.wait_seconds=0", *overrides] for o in ("--set", value)]
    result = CliRunner().invoke(
        app,
        ["train", str(file), "-o", str(run), "--server", target, "--threads", "1", *options],
        env={"COLUMNS": "200", "VESSA_TOKEN": token},
    )
    assert result.exit_code == 1
    *bar, line = (text for text in result.stderr.splitlines() if text.strip())
    assert len(bar) <= 1
    assert line.startswith("Error")
    for word in words:
        assert word in line
    assert not run.exists() or not list(run.iterdir())


def test_the_token_of_the_environment_is_sent(
    tmp_path: Path, locked: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VESSA_TOKEN", "right")
    Trainer(assisted(write_dataset(tmp_path / "data"), locked.grpc), tmp_path / "run").run()
    log = read_log(tmp_path / "run" / "log.jsonl")
    assert answered(log).share == 1
    assert answered(log).requested > 0


def test_a_server_that_starts_is_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    config = AssistantConfig(server=f"127.0.0.1:{port}", wait_seconds=60)
    with ThreadPoolExecutor(1) as pool:
        checked = pool.submit(connection.check, config, NAMES)
        while "assistant.waiting" not in capsys.readouterr().out:
            assert not checked.done()
        with running(engine_of(tmp_path), grpc_port=port):
            assert checked.result(60) is None


def test_a_run_that_goes_on_checks_the_server_unless_it_is_done(
    tmp_path: Path, server: RunningServer
) -> None:
    root = write_dataset(tmp_path / "data")

    def stop(step: int, scalars: dict[str, float]) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trainer(assisted(root, server.grpc), tmp_path / "run").run(stop)
    gone = assisted(root, f"127.0.0.1:{free_port()}")
    with pytest.raises(AssistantError, match="vessa-server serve"):
        Trainer(gone, tmp_path / "run").run()
    Trainer(assisted(root, server.grpc), tmp_path / "run").run()
    trainer = Trainer(gone, tmp_path / "run")
    trainer.run()
    assert trainer.step == 6


def test_a_bank_that_is_emptied_stops_the_run_which_goes_on_when_it_is_filled(
    tmp_path: Path, server: RunningServer
) -> None:
    """Where it was: no checkpoint is due before its end."""
    config = assisted(write_dataset(tmp_path / "data"), server.grpc, steps=12)
    config = dataclasses.replace(config, validate_every=12, checkpoint_every=100)
    Trainer(config, tmp_path / "whole").run()

    def emptied(step: int, scalars: dict[str, float]) -> None:
        if step == 5:
            for template in server.engine.bank.snapshot().templates:
                server.engine.bank.delete(template.template_id)

    broken = Trainer(config, tmp_path / "broken")
    with pytest.raises(AssistantError, match=r"no templates.*--fill-bank.*same --out"):
        broken.run(emptied)
    assert 5 <= broken.step < 12
    assert (tmp_path / "broken" / STATE_FILE).is_file()
    with pytest.raises(AssistantError, match="is empty"):
        Trainer(config, tmp_path / "broken").run()
    for seed in range(3):
        server.engine.add_template(*picture(100 + seed), CLASSES, name=f"picture {seed}")
    Trainer(config, tmp_path / "broken").run()
    assert same(tmp_path / "whole", tmp_path / "broken")
    counts = [answered(read_log(tmp_path / n / "log.jsonl")) for n in ("whole", "broken")]
    assert counts[0] == counts[1]


def test_a_token_that_is_revoked_stops_the_run(
    tmp_path: Path, locked: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VESSA_TOKEN", "revoked")
    assistant = Assistant(AssistantConfig(server=locked.grpc), NAMES)
    assistant.ask(0, single_slices(1), None)
    assistant.ask(1, single_slices(1), None)
    for step in (0, 1):
        with pytest.raises(AssistantError, match="refuses the token of VESSA_TOKEN"):
            assistant.collect(step)
    assistant.close()
    assert assistant.counts == (0, 0)


class Outage:
    """A server that is stopped after an update, and started again after another."""

    def __init__(self, folder: Path, stack: ExitStack, after: int, back: int) -> None:
        self.folder, self.after, self.back = folder, after, back
        self.port = free_port()
        self.target = f"127.0.0.1:{self.port}"
        self.stack = stack
        self.start()

    def start(self) -> None:
        self.first = ExitStack()
        self.stack.push(self.first)
        self.first.enter_context(running(engine_of(self.folder), grpc_port=self.port))

    def __call__(self, step: int, scalars: dict[str, float]) -> None:
        if step == self.after:
            self.first.close()
        if step == self.back:
            self.start()


def test_a_server_that_goes_away_is_done_without_and_picked_up_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    away: dict[int, bool] = {}
    asked, came = 0, 0
    with ExitStack() as stack:
        outage = Outage(tmp_path / "s", stack, after=13, back=25)
        config = assisted(
            write_dataset(tmp_path / "data"),
            outage.target,
            steps=2000,
            ahead=1,
            retry_seconds=0.0,
        )
        trainer = Trainer(
            dataclasses.replace(config, validate_every=1000, checkpoint_every=1000),
            tmp_path / "run",
        )
        assert trainer.pipeline is not None
        assistant = trainer.pipeline.assistant
        collect = assistant.collect

        def counting(number: int) -> list[PseudoLabel | None]:
            nonlocal asked, came
            found = collect(number)
            asked += len(found)
            came += sum(answer is not None for answer in found)
            return found

        monkeypatch.setattr(assistant, "collect", counting)

        def on_step(step: int, scalars: dict[str, float]) -> None:
            away[step] = assistant.away
            outage(step, scalars)
            if step > 25 and step % 10 == 0 and not any(away[s] for s in range(step - 9, step + 1)):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            trainer.run(on_step)
    printed = capsys.readouterr().out
    assert printed.count("assistant.away") == 1
    assert printed.count("assistant.back") == 1
    log = read_log(tmp_path / "run" / "log.jsonl")
    found = answered(log)
    assert (found.requested, found.received) == (asked, came)
    assert 0 < came < asked
    ((first, last),) = found.gaps
    assert (first, last % 10) == (11, 0)
    assert 20 < last < log[-1]["step"]
    assert log[-1]["assistant/answered"] == 1
    assert CliRunner().invoke(app, ["report", str(tmp_path / "run")]).exit_code == 1, "no best yet"


def test_a_required_server_that_goes_away_stops_the_run(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data")
    with ExitStack() as stack:
        outage = Outage(tmp_path / "s", stack, after=5, back=1000)
        config = assisted(root, outage.target, steps=12, required=True)
        Trainer(config, tmp_path / "whole").run()
        outage.after = 5
        trainer = Trainer(config, tmp_path / "run")
        with pytest.raises(AssistantError, match=r"does not answer.*same --out"):
            trainer.run(outage)
        assert 5 <= trainer.step < 12
        outage.start()
        # Another address and other patience are no other run.
        again = assisted(root, outage.target, steps=12, timeout_seconds=20.0)
        resumed = Trainer(again, tmp_path / "run")
        resumed.run()
    assert same(tmp_path / "whole", tmp_path / "run")
    assert answered(read_log(tmp_path / "run" / "log.jsonl")).share == 1


def test_without_answers_it_is_unimatch_alone_bit_for_bit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_dataset(tmp_path / "data")
    Trainer(small_config(root), tmp_path / "alone").run()
    engine = gate_of(tmp_path / "s")
    with running(engine) as server:
        config = assisted(root, server.grpc, timeout_seconds=0.3, retry_seconds=1000.0)
        run_with_progress(Trainer(config, tmp_path / "hanging"))
        engine.opened.set()
    assert same(tmp_path / "alone", tmp_path / "hanging")
    printed = capsys.readouterr()
    assert printed.out.count("assistant.away") == 1
    assert "VESSA away" in printed.err, "beside the bar"
    found = answered(read_log(tmp_path / "hanging" / "log.jsonl"))
    assert found.share == 0
    assert found.gaps == ((1, 6),)


def test_a_slice_that_the_server_refuses_costs_no_other_its_answer(
    tmp_path: Path, server: RunningServer, capsys: pytest.CaptureFixture[str]
) -> None:
    good = single_slices(1)[0]
    bad = Slice("bad/0", np.full((40, 40), np.nan, np.float32), None, "bad")
    assistant = Assistant(AssistantConfig(server=server.grpc), NAMES)
    for step in range(2):
        assistant.ask(step, [bad, good], None)
        refused, answer = assistant.collect(step)
        assert refused is None
        assert answer is not None
    assert not assistant.away
    assert assistant.counts == (4, 2)
    assistant.close()
    printed = capsys.readouterr().out
    assert printed.count("assistant.refused") == 1
    assert "bad/0" in printed
    strict = Assistant(AssistantConfig(server=server.grpc, required=True), NAMES)
    strict.ask(0, [bad, good], None)
    with pytest.raises(AssistantError, match="NaN"):
        strict.collect(0)
    strict.close()


@pytest.mark.parametrize(
    ("target", "own"),
    [
        ("localhost:50051", True),
        ("127.0.0.1:50051", True),
        ("127.3.0.1:1", True),
        ("[::1]:50051", True),
        ("dns:///localhost:50051", True),
        ("unix:///run/vessa", True),
        ("server:50051", False),
        ("10.0.0.7:50051", False),
        ("[2001:db8::1]:50051", False),
        ("localhost.example.org:50051", False),
    ],
)
def test_addresses_of_this_machine(target: str, own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CONTAINER_FILE", Path("/nowhere"))
    monkeypatch.delenv("container", raising=False)
    assert on_this_machine(target) == own


def test_a_service_beside_this_container_is_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / ".dockerenv"
    monkeypatch.setattr(connection, "CONTAINER_FILE", marker)
    monkeypatch.delenv("container", raising=False)
    assert not on_this_machine("server:50051")
    monkeypatch.setenv("container", "podman")
    assert on_this_machine("server:50051")
    monkeypatch.delenv("container")
    marker.touch()
    assert on_this_machine("server:50051")
    assert not on_this_machine("vessa.example.org:50051")


def test_the_state_says_which_keys_are_others(tmp_path: Path, server: RunningServer) -> None:
    root = write_dataset(tmp_path / "data")
    Trainer(assisted(root, server.grpc), tmp_path / "run").run()
    for template in server.engine.bank.snapshot().templates:
        image, labels = picture(100 + int(template.name.split()[1]))
        with VessaClient(server.grpc) as client:
            client.add_template(image, labels, CLASSES, bank="other")
    other = assisted(root, server.grpc, bank="other")
    with pytest.raises(ValueError, match=r'assistant\.bank: "other" now, "" when it began'):
        Trainer(other, tmp_path / "run").run()
    assert json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])["step"] == 6
