"""Run a job's command here, on the CPU and small, from a copy of what would travel alone."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gpu_jobs import manifest as manifests
from gpu_jobs.errors import JobError
from gpu_jobs.manifest import Manifest
from gpu_queue import checks, environment, paths, travel
from gpu_queue import machine as machines
from gpu_queue.errors import QueueError
from gpu_queue.jobs import Job
from vessa_client.console import console

# Of the environment here nothing else is there.
KEPT = ("PATH", "LANG", "TMPDIR", "OMP_NUM_THREADS")
# An address at which nobody answers, for whatever would fetch something.
NOWHERE = "http://127.0.0.1:9"


def rehearse(job: Job, *, python: Path | None = None, keep: Path | None = None) -> None:
    """Run the command, and check what it brings as ``collect`` would.

    Args:
        job: which; it must be prepared.
        python: an interpreter with the packages of the machine, in place of a stand-in.
        keep: folder for what it brings, to look at.

    Raises:
        QueueError: it is not prepared, fails, or brings something wrong.
    """
    machine = machines.read(paths.MACHINE)
    carried = paths.WORK / job.name
    try:
        manifest = manifests.read(carried)
    except JobError as error:
        raise QueueError(str(error)) from error
    load = travel.load(paths.ROOT, carried)
    load.check(machine.travels)
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "project"
        out = (keep or Path(scratch) / "out").absolute()
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise QueueError(f"--keep {out}: expected an empty folder")
        travel.export(paths.ROOT, carried, copy)
        if python is None:
            python = _python(manifest, machine, Path(scratch) / "machine")
        _run(job, copy, out, python)
        brought = checks.check(job, out, machine, copy, rehearsed=True)
    files = ", ".join(sorted(f"{f}" for f in os.listdir(keep))) if keep else "not kept"
    console.print(
        f"Rehearsed: {job.name} brought what it should, {len(brought.training)} lines of training; "
        f"files: {files}",
        highlight=False,
    )


def _python(manifest: Manifest, machine: machines.Machine, folder: Path) -> Path:
    """A stand-in for the machine; this Python where no packages are carried."""
    if manifest.requirements:
        return environment.stand_in(manifest, machine, folder)
    return Path(sys.executable)


def _run(job: Job, copy: Path, out: Path, python: Path) -> None:
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    environment = kept | {
        "HOME": str(copy.parent),
        "OUT": str(out),
        "VESSA_REHEARSAL": "1",
        "VESSA_PYTHON": str(python.absolute()),
        "CUDA_VISIBLE_DEVICES": "",
        "http_proxy": NOWHERE,
        "https_proxy": NOWHERE,
    }
    began = time.monotonic()
    code = subprocess.run(
        ["bash", "gpu/device.sh", job.name],
        cwd=copy,
        env=environment,
        check=False,
    ).returncode
    console.print(f"{time.monotonic() - began:.0f} s, exit code {code}", highlight=False)
    if code:
        raise QueueError(f"the command of {job.name} ended with code {code}; see above")
