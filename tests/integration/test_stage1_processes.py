"""Stage 1 under ``torchrun``: two processes are one process with twice the batches."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from support import torchrun
from vessa_server.cli import app
from vessa_server.training.trainer import STATE_FILE

TRAINING = {
    "groups": 1,
    "images_per_group": 2,
    "max_templates": 1,
    "asked": 1,
    "text_share": 0.5,
    "warmup_steps": 1,
    # Adam makes steps of one size of gradients that are rounding errors: few, small steps.
    "learning_rate": 1e-4,
    "precision": "fp32",
    "log_every": 1,
}


def _config(folder: Path, **training: int) -> Path:
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump({"canvas": 64, "training": {**TRAINING, **training}}))
    return file


# Two updates of a longer run, and then the machine is taken away.
INTERRUPTED = """
import sys
from pathlib import Path
import torch
from vessa_common import processes
from vessa_server.training import config, run

torch.set_num_threads(1)
file, out = Path(sys.argv[1]), Path(sys.argv[2])
with processes.joined() as group:
    trainer = run.build(config.load(file), None, out, processes=group)
    out.mkdir(exist_ok=True)
    for step in range(2):
        trainer.train_step([trainer.generator[n] for n in trainer._numbers_of(step)])
    if group.first:
        trainer.save()
"""


def _train(config: Path, out: Path) -> list[str]:
    return ["train", str(config), "--out", str(out), "--threads", "1"]


def _state(out: Path) -> dict[str, torch.Tensor]:
    state = load_file(out / STATE_FILE)
    del state["seconds"]  # the clock is not the same
    return state


def test_two_processes_are_one_with_twice_the_batches(tmp_path: Path) -> None:
    """And a run of two processes that was broken off goes on bit for bit."""
    config = _config(tmp_path, steps=3)
    torchrun("-m", "vessa_server", *_train(config, tmp_path / "whole"))
    (tmp_path / "interrupted.py").write_text(INTERRUPTED)
    torchrun(tmp_path / "interrupted.py", config, tmp_path / "broken")
    assert int(_state(tmp_path / "broken")["step"]) == 2
    torchrun("-m", "vessa_server", *_train(config, tmp_path / "broken"))
    whole, broken = _state(tmp_path / "whole"), _state(tmp_path / "broken")
    assert all(torch.equal(whole[name], broken[name]) for name in whole)

    alone = _config(tmp_path, steps=3, accumulate=2)
    outcome = CliRunner().invoke(app, _train(alone, tmp_path / "one"))
    assert outcome.exit_code == 0, outcome.output
    one = _state(tmp_path / "one")
    for name in (n for n in one if n.startswith("model.")):
        furthest = float((one[name].float() - whole[name].float()).abs().max())
        assert furthest < 5e-5, name
