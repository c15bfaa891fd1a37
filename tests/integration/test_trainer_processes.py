"""The trainer under ``torchrun``."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from ssl_trainer.config import TrainConfig, load, to_dict
from ssl_trainer.evaluation.report import answered, read_log
from ssl_trainer.unimatch.state import STATE_FILE, StateError
from ssl_trainer.unimatch.trainer import UniMatchTrainer
from support import RunningServer, engine_of, running, torchrun
from trainer_support import small_config, write_dataset
from vessa_common.processes import Processes

# The second process dies in the fourth update of the first start.
DYING = """
import os, signal, sys
from pathlib import Path
import torch
from ssl_trainer import config
from vessa_common import processes
from ssl_trainer.unimatch.trainer import UniMatchTrainer

torch.set_num_threads(1)
file, out = Path(sys.argv[1]), Path(sys.argv[2])
with processes.joined() as group:
    trainer = UniMatchTrainer(config.load(file), out, group)
    backward = trainer._backward

    def die(number, answers):
        died = out / "died"
        if trainer.step == 3 and group.rank == 1 and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return backward(number, answers)

    trainer._backward = die
    trainer.run()
"""


def _written(config: TrainConfig, file: Path) -> Path:
    file.write_text(yaml.safe_dump(to_dict(config)))
    return file


def _train(file: Path, out: Path) -> list[str]:
    return ["-m", "ssl_trainer", "train", str(file), "--out", str(out), "--threads", "1"]


def test_two_processes_are_one_with_twice_the_batches_and_survive_a_killed_one(
    tmp_path: Path, server: RunningServer
) -> None:
    """With VESSA, whose prompts are the student masks of both processes."""
    config = small_config(write_dataset(tmp_path / "data"), steps=6, server=server.grpc)
    # Adam makes steps of one size of gradients that are rounding errors: few, small steps.
    config = dataclasses.replace(
        config,
        learning_rate=1e-4,
        assistant=dataclasses.replace(config.assistant, feedback_start=0.0),
    )
    file = _written(config, tmp_path / "two.yaml")
    torchrun(*_train(file, tmp_path / "whole"))
    (tmp_path / "dying.py").write_text(DYING)
    (tmp_path / "killed").mkdir()
    torchrun("--max-restarts", 1, tmp_path / "dying.py", file, tmp_path / "killed")
    assert (tmp_path / "killed" / "died").exists()
    whole, killed = (load_file(tmp_path / n / STATE_FILE) for n in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[name], killed[name]) for name in whole)

    alone = UniMatchTrainer(dataclasses.replace(config, accumulate=2), tmp_path / "one")
    alone.run()
    counts = [answered(read_log(tmp_path / name / "log.jsonl")) for name in ("whole", "one")]
    assert counts[0] == counts[1], "answers of both processes"
    one = load_file(tmp_path / "one" / STATE_FILE)
    assert one.keys() == whole.keys()
    # How many batches normalisation has seen is counted, but not used.
    for name in (n for n in one if n.startswith(("student.", "teacher.")) and "tracked" not in n):
        furthest = float((one[name].float() - whole[name].float()).abs().max())
        assert furthest < 5e-5, name


def test_one_of_two_processes_fills_the_bank(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data")
    with running(engine_of(tmp_path / "s", templates=0)) as server:
        file = _written(small_config(root, steps=2, server=server.grpc), tmp_path / "two.yaml")
        torchrun(*_train(file, tmp_path / "run"), "--fill-bank")
        name = load(tmp_path / "run" / "config.yaml").assistant.bank
        assert len(server.engine.banks.get(name).snapshot().templates) == 3
    assert answered(read_log(tmp_path / "run" / "log.jsonl")).share == 1


def test_another_number_of_processes_is_refused_where_requests_were_under_way(
    tmp_path: Path, server: RunningServer
) -> None:
    config = small_config(write_dataset(tmp_path / "data"), steps=6, server=server.grpc)

    def stop(step: int, scalars: dict[str, float]) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        UniMatchTrainer(config, tmp_path / "run").run(stop)
    state = load_file(tmp_path / "run" / STATE_FILE)
    assert len(state["told.5"]) == config.unlabelled_batch
    # Without a group, only told that there are two.
    trainer = UniMatchTrainer(config, tmp_path / "run")
    trainer.processes = Processes(rank=1, world=2)
    with pytest.raises(StateError, match="as many processes as before"):
        trainer.resume()
