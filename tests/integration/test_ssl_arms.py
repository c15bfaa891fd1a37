"""A cell of the comparison with VESSA: all of its answers came, or it failed."""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path

import pytest

import ssl_arms
from ssl_cells import CELL, Task
from ssl_trainer.config import to_dict
from support import CLASSES, RunningServer, free_port
from trainer_support import small_config, write_dataset


def test_a_cell_says_how_much_was_answered_and_fails_without_its_server(
    tmp_path: Path, server: RunningServer
) -> None:
    root = write_dataset(tmp_path / "data")
    for file in (root / "val").iterdir():
        file.unlink()
    (root / "val").rmdir()
    train = {k: v for k, v in to_dict(small_config(root, steps=3)).items() if k != "seed"}
    task = Task("small", root, CLASSES, {1: ["p0"]}, train, {})
    out = tmp_path / "cells"
    arguments = argparse.Namespace(out=out, workers=1, equal_time=None, test=False)

    def cell(seed: int, target: str) -> Path:
        done = task.cell("mutual", 1, seed)
        ssl_arms._train(done, task=task, servers={"plain": target}, arguments=arguments)
        return out / done.name

    facts = json.loads((cell(0, server.grpc) / CELL).read_text())
    assert facts["answered"] == 1
    train["assistant"]["wait_seconds"] = 0.0
    with pytest.raises(subprocess.CalledProcessError):
        cell(1, f"127.0.0.1:{free_port()}")
