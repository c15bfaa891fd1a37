"""Run a job's command here, on the CPU and small, from a copy of what would travel alone."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import tempfile
from importlib.metadata import Distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from gpu_jobs import manifest as manifests
from gpu_jobs.errors import JobError
from gpu_jobs.install import runs_here
from gpu_jobs.jobs import Job
from gpu_jobs.manifest import Manifest
from gpu_queue import machine as machines
from gpu_queue import paths, results, travel
from gpu_queue.machine import Machine
from gpu_queue.packages import required
from vessa_client.console import console

# Of the environment here nothing else is there.
KEPT = ("LANG", "TMPDIR", "OMP_NUM_THREADS")
# An address at which nobody answers, for whatever would fetch something.
NOWHERE = "http://127.0.0.1:9"
# A CPU may take longer for it than a GPU for the whole job.
SECONDS = 1800
PYTHON = ".".join(map(str, sys.version_info[:2]))


def rehearse(job: Job, *, python: Path | None = None, keep: Path | None = None) -> None:
    """Run the command, and check what it brings as ``collect`` would.

    Args:
        job: which; it must be prepared.
        python: an interpreter with the packages of the machine, in place of a stand-in.
        keep: folder for what it brings, to look at.

    Raises:
        ValueError: it is not prepared, fails, or brings something wrong.
    """
    machine = machines.read(paths.MACHINE)
    carried = paths.WORK / job.name
    manifest = manifests.read(carried)
    travel.load(paths.ROOT, carried).check(machine.travels)
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "project"
        out = (keep or Path(scratch) / "out").absolute()
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise JobError(f"--keep {out}: expected an empty folder")
        travel.export(paths.ROOT, carried, copy)
        if python is None:
            python = _stand_in(manifest, machine, Path(scratch) / "machine")
        _run(job, copy, out, python)
        results.check(job, out, copy, rehearsed=machine)
        files = ", ".join(sorted(os.listdir(out)))
    console.print(f"Rehearsed: {job.name} brought {files}", highlight=False, soft_wrap=True)


def _run(job: Job, copy: Path, out: Path, python: Path) -> None:
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    there = {
        "HOME": str(copy.parent),
        "PATH": str(_programs(copy.parent / "programs")),
        "OUT": str(out),
        "VESSA_REHEARSAL": "1",
        "VESSA_PYTHON": str(python.absolute()),
        "CUDA_VISIBLE_DEVICES": "",
        "http_proxy": NOWHERE,
        "https_proxy": NOWHERE,
    }
    command = ["bash", "gpu/device.sh", job.name, str(SECONDS)]
    code = subprocess.run(command, cwd=copy, env=kept | there, check=False).returncode
    if code:
        raise JobError(f"the command of {job.name} ended with code {code}; see above")


def _programs(folder: Path) -> Path:
    """Links to the programs here, without git, which may not be there."""
    folder.mkdir()
    for found in map(Path, os.get_exec_path()):
        for program in found.iterdir() if found.is_dir() else ():
            link = folder / program.name
            if program.name != "git" and not os.path.lexists(link):
                link.symlink_to(program.absolute())
    return folder


def _stand_in(manifest: Manifest, machine: Machine, folder: Path) -> Path:
    """This Python in a new folder, with the packages that would be there; itself without any.

    Its packages are links to those here that the machine has, and to carried ones that are
    compiled for its own Python. What is neither there nor carried cannot be imported.
    """
    if not manifest.requirements:
        return Path(sys.executable)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    target = folder / "lib" / f"python{PYTHON}" / "site-packages"
    installed = {
        str(canonicalize_name(d.metadata["Name"])): d for d in importlib.metadata.distributions()
    }
    for name in sorted(there(manifest, machine, frozenset(installed))):
        _link(installed[name], target)
    return folder / "bin" / "python"


def there(manifest: Manifest, machine: Machine, installed: frozenset[str]) -> frozenset[str]:
    """Packages here that stand for those there, with what the versions here require."""
    carried = {_name(w.requirement): runs_here(w.file) for w in manifest.wheels if not w.spare}
    unpacked = {name for name, runs in carried.items() if runs}
    wanted = [*filter(machine.has, installed), *(carried.keys() - unpacked)]
    found: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name in installed and name not in found | unpacked:
            found.add(name)
            wanted.extend(map(_name, required(name, PYTHON)))
    return frozenset(found)


def _name(requirement: str) -> str:
    return canonicalize_name(Requirement(requirement).name)


def _link(distribution: Distribution, target: Path) -> None:
    """Link each file or folder that a package has put into its folder of packages."""
    for first in {f.parts[0] for f in distribution.files or []} - {"..", "__pycache__"}:
        link, source = target / first, Path(str(distribution.locate_file(first)))
        # Folders such as `google` and `nvidia` are of several packages.
        if source.exists() and not link.exists() and source.suffix != ".pth":
            link.symlink_to(source)
