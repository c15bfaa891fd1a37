"""A copy of the project with jobs for a GPU in it, and what they bring."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpu_jobs.jobs import JOBS, RESULT
from gpu_queue import paths
from gpu_queue.collect import set_state
from support import ROOT

COPIED = (
    "gpu",
    "proto",
    "services/vessa_common",
    "services/vessa_server",
    "services/ssl_trainer",
    "benchmarks",
    ".gitignore",
)


def project(target: Path) -> None:
    """Copy it, with all jobs waiting."""
    ignored = shutil.ignore_patterns(".work", "results", "__pycache__", "*.egg-info")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, target / name)
    (target / "benchmarks" / "results").mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "TABLE", target / "gpu" / "README.md")
        for job in JOBS:
            set_state(job, "waiting")
    git = ["git", "-C", str(target), "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "copy"]):
        subprocess.run([*git, *command], check=True)


def use(root: Path, patch: pytest.MonkeyPatch) -> None:
    """Let the queue work in a copy."""
    for name, place in (
        ("ROOT", "."), ("WORK", "gpu/.work"), ("MACHINE", "gpu/machine.toml"),
        ("TABLE", "gpu/README.md"), ("SHIPPED", "services/vessa_server/weights/nano"),
        ("RESULTS", "benchmarks/results"), ("LEGS", "gpu/results"),
    ):  # fmt: skip
        patch.setattr(paths, name, root / place)


def change(out: Path, how: Callable[[dict[str, Any]], object]) -> None:
    """Change a result."""
    file = out / RESULT
    result = json.loads(file.read_text())
    how(result)
    file.write_text(json.dumps(result))


def states() -> dict[str, str]:
    """Of all jobs, by the table."""
    rows = re.findall(r"^\| `([\w-]+)` \|.*\| ([^|\n]*) \|$", paths.TABLE.read_text(), re.MULTILINE)
    return {job: state.strip() for job, state in rows}


def device(root: Path, job: str, out: Path) -> subprocess.CompletedProcess[str]:
    """The command on the machine."""
    return subprocess.run(
        ["bash", "gpu/device.sh", job],
        cwd=root,
        env={"PATH": os.environ["PATH"], "OUT": str(out), "VESSA_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
