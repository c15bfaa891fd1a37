"""The trainer under ``torchrun``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import yaml
from safetensors.torch import load_file
from torch._C._distributed_c10d import HashStore

from ssl_trainer.config import TrainConfig, load, to_dict
from ssl_trainer.regions import training
from ssl_trainer.regions.run import REGIONS_FILE
from ssl_trainer.training.state import BEST_FILE, STATE_FILE
from ssl_trainer.training.trainer import Trainer
from support import RunningServer, engine_of, running, torchrun
from trainer_support import small_config, write_case, write_dataset
from vessa_common import processes
from vessa_common.processes import joined
from vessa_common.training_log import answered, read_log

# The second process dies in the fourth update of the first start, if none has died before.
DYING = """
import os, signal, sys
from pathlib import Path
import torch
from ssl_trainer import config
from ssl_trainer.regions import training
from vessa_common import processes
from ssl_trainer.training.trainer import Trainer

torch.set_num_threads(1)
training.STEPS = 5
file, out = Path(sys.argv[1]), Path(sys.argv[2])
with processes.joined() as group:
    trainer = Trainer(config.load(file), out, group)
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

# Each process validates, and says what it found and which cases it predicted itself.
VALIDATING = """
import json, sys
from pathlib import Path
import torch
from ssl_trainer import config
from ssl_trainer.training import validation
from vessa_common import processes
from ssl_trainer.training.trainer import Trainer

torch.set_num_threads(1)
file, out = Path(sys.argv[1]), Path(sys.argv[2])
evaluate, own = validation.evaluate, []

def noting(predict, cases, *rest, **options):
    own.extend(case.image.name for case in cases)
    return evaluate(predict, cases, *rest, **options)

validation.evaluate = noting
with processes.joined() as group:
    trainer = Trainer(config.load(file), out, group)
    found = {"scores": trainer.validate(), "best": trainer.best, "cases": own}
    (out / f"{group.rank}.json").write_text(json.dumps(found))
"""
# Each process notes in the store when it meets the other or begins a collective. Whatever the
# first one does alone it does only once the other one's next step is known, and to meet.
ALONE = """
import sys
from datetime import timedelta
from pathlib import Path
import torch
import torch.distributed as dist
from ssl_trainer import cli, config
from ssl_trainer.assistant import own_bank
from ssl_trainer.regions import run as regions
from ssl_trainer.regions import training
from ssl_trainer.models import weights
from ssl_trainer.training import state, validation
from vessa_common import processes
from ssl_trainer.training.trainer import Trainer

torch.set_num_threads(1)
training.STEPS = 2
file, out = Path(sys.argv[1]), Path(sys.argv[2])
steps, alone = [], []

def noted(name, call):
    def noting(*args, **options):
        group.store.set(f"step_{group.rank}_{len(steps)}", name)
        steps.append(name)
        return call(*args, **options)
    return noting

def only_while_the_other_waits(name, call):
    def working(*args, **options):
        other = group.store.get(f"step_1_{len(steps)}").decode()
        assert other == "meet", f"{other} is pending during {name}"
        alone.append(name)
        return call(*args, **options)
    return working

with processes.joined() as group:
    group.store.set_timeout(timedelta(seconds=60))
    for name in ("all_gather", "all_reduce", "broadcast"):
        setattr(dist, name, noted(name, getattr(dist, name)))
    processes.Processes.meet = noted("meet", processes.Processes.meet)
    if group.first:
        places = ((validation, "evaluate"), (state, "save_state"), (weights, "save"))
        for place, name in (*places, (regions, "find_all"), (own_bank, "fill")):
            setattr(place, name, only_while_the_other_waits(name, getattr(place, name)))
    trainer = Trainer(cli._filled_bank(config.load(file), group), out, group)
    trainer.run()
    (out / f"{group.rank}.txt").write_text(" ".join(alone))
"""


def _written(config: TrainConfig, file: Path) -> Path:
    file.write_text(yaml.safe_dump(to_dict(config)))
    return file


def _train(file: Path, out: Path) -> list[str]:
    return ["-m", "ssl_trainer", "train", str(file), "--out", str(out), "--threads", "1"]


def test_two_processes_are_one_with_twice_the_batches_and_survive_a_killed_one(
    tmp_path: Path, server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With regions, that one of them finds, and VESSA, whose prompts are of both processes."""
    monkeypatch.setattr(training, "STEPS", 5)
    root = write_dataset(tmp_path / "data")
    config = small_config(root, steps=6, server=server.grpc, regions=True)
    # Adam makes steps of one size of gradients that are rounding errors: few, small steps.
    config = dataclasses.replace(
        config,
        learning_rate=1e-4,
        assistant=dataclasses.replace(config.assistant, feedback_start=0.0),
    )
    file = _written(config, tmp_path / "two.yaml")
    (tmp_path / "dying.py").write_text(DYING)
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    (tmp_path / "whole" / "died").touch()
    torchrun(tmp_path / "dying.py", file, tmp_path / "whole")
    torchrun("--max-restarts", 1, tmp_path / "dying.py", file, tmp_path / "killed")
    assert (tmp_path / "killed" / "died").exists()
    whole, killed = (load_file(tmp_path / n / STATE_FILE) for n in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[name], killed[name]) for name in whole)

    alone = Trainer(dataclasses.replace(config, accumulate=2), tmp_path / "one")
    alone.run()
    found = [(tmp_path / n / REGIONS_FILE).read_text() for n in ("whole", "killed", "one")]
    assert found[0] == found[1] == found[2]
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


def test_processes_share_validation_and_find_what_one_finds(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data")
    for patient in (4, 5, 6, 7):
        write_case(root / "val", f"p{patient}_frame01", patient, labelled=patient != 5)
    config = small_config(root)
    (tmp_path / "validating.py").write_text(VALIDATING)
    (tmp_path / "two").mkdir()
    file = _written(config, tmp_path / "two.yaml")
    torchrun(tmp_path / "validating.py", file, tmp_path / "two")
    alone = Trainer(config, tmp_path / "one")
    scores = alone.validate()
    assert scores["val/dice"] > 0
    found = [json.loads((tmp_path / "two" / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [f["scores"] for f in found] == [scores, scores]
    assert [f["best"] for f in found] == [alone.best, alone.best]
    assert [f["cases"] for f in found] == [
        ["p3_frame01.nii.gz", "p6_frame01.nii.gz"],
        ["p4_frame01.nii.gz", "p7_frame01.nii.gz"],
    ]
    best = [load_file(tmp_path / name / BEST_FILE) for name in ("one", "two")]
    assert all(torch.equal(best[0][name], best[1][name]) for name in best[0])


def test_no_collective_is_pending_while_one_process_works_alone(
    tmp_path: Path, server: RunningServer
) -> None:
    root = write_dataset(tmp_path / "data")
    config = small_config(root, steps=8, server=server.grpc, regions=True)
    (tmp_path / "alone.py").write_text(ALONE)
    (tmp_path / "run").mkdir()
    torchrun(tmp_path / "alone.py", _written(config, tmp_path / "config.yaml"), tmp_path / "run")
    worked = set((tmp_path / "run" / "0.txt").read_text().split())
    assert worked == {"evaluate", "save_state", "save", "find_all", "fill"}


def test_without_validation_cases_two_processes_keep_the_last_teacher(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data")
    for file in (root / "val").iterdir():
        file.unlink()
    run = tmp_path / "run"
    torchrun(*_train(_written(small_config(root, steps=2), tmp_path / "config.yaml"), run))
    last, best = load_file(run / STATE_FILE), load_file(run / BEST_FILE)
    assert all(torch.equal(best[name], last[f"teacher.{name}"]) for name in best)


def test_nccl_begins_on_the_gpu_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is asked of torch, in which order: there is no NCCL without GPUs."""
    asked: list[tuple[object, ...]] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: asked.append(("device", device)))
    monkeypatch.setattr(processes, "rendezvous", lambda url: iter([(HashStore(), 1, 2)]))
    monkeypatch.setattr(
        dist, "init_process_group", lambda backend, **rest: asked.append(("group", backend))
    )
    monkeypatch.setattr(dist, "destroy_process_group", lambda: asked.append(("end",)))
    with joined() as group:
        assert (group.rank, group.world, group.device) == (1, 2, torch.device("cuda", 1))
    assert asked == [("device", torch.device("cuda", 1)), ("group", "nccl"), ("end",)]
