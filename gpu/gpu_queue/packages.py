"""Which packages a job needs on the machine with the GPU, and which of them have to be carried.

From the packages that our own files import it goes on to what those require, as far as they are
carried; a package that is there is trusted to have what it needs. What is carried is the version
that is installed here, with which the tests ran.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from gpu_jobs.errors import JobError
from gpu_jobs.jobs import Job
from gpu_queue.machine import Machine
from gpu_queue.paths import CODE, PROJECTS
from vessa_client.console import console

# Packages of this project travel as code.
OURS = frozenset({"vessa-client", "vessa-common", "vessa-server", "ssl-trainer"})
# Of HDF5 files, which no job reads; MONAI loads it where it is.
UNUSED = frozenset({"h5py"})
# torch.utils.tensorboard imports the one and forms of FastAPI the other, which do not require them.
UNDECLARED = frozenset({"tensorboard", "python-multipart"})


@dataclass(frozen=True)
class Needs:
    """What is needed there.

    Attributes:
        requirements: all of it, by name.
        carried: what is missing there, or there in a version that will not do.
        spare: what is there in an unknown version, where not every version will do.
    """

    requirements: dict[str, SpecifierSet] = field(default_factory=dict)
    carried: frozenset[str] = frozenset()
    spare: frozenset[str] = frozenset()

    def requirement(self, name: str) -> str:
        """Such as ``pydantic>=2.10,<3``."""
        return f"{name}{self.requirements[name]}"


def probe(job: Job) -> tuple[frozenset[str], frozenset[str]]:
    """Packages that a job loads, and those of them that our files import; takes half a minute.

    Raises:
        JobError: the probe failed.
    """
    console.print("Looking which packages a job imports: half a minute")
    with tempfile.TemporaryDirectory() as scratch:
        done = subprocess.run(
            [sys.executable, "-m", "gpu_queue.probe", job.name, scratch],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, CODE))},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise JobError(f"packages: the probe failed: {done.stderr.strip()[-600:]}")
    found = json.loads(done.stdout)
    return frozenset(found["loaded"]), frozenset(found["named"])


def needs(machine: Machine, loaded: frozenset[str], named: frozenset[str]) -> Needs:
    """Follow requirements from what our files import to what has to be carried."""
    wanted: dict[str, SpecifierSet] = {
        n: SpecifierSet() for n in (named - OURS - UNUSED) | (UNDECLARED & loaded)
    }
    for folder in PROJECTS:
        project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        _merge(wanted, project["dependencies"], frozenset(wanted))
    followed: set[str] = set()
    while True:
        carried = frozenset(n for n, s in wanted.items() if not _does(machine, n, s))
        spare = frozenset(n for n, s in wanted.items() if n in machine.unversioned and len(s))
        new = (carried | spare) - followed
        if not new:
            return Needs(wanted, carried, spare)
        for name in sorted(new):
            followed.add(name)
            _merge(wanted, required(name, machine.python), loaded)


def required(name: str, python: str) -> list[str]:
    """What the installed ``name`` requires on Linux with that Python."""
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "platform_system": "Linux",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
        "extra": "",
    }
    found = map(Requirement, importlib.metadata.requires(name) or [])
    return [str(r) for r in found if r.marker is None or r.marker.evaluate(environment)]


def _does(machine: Machine, name: str, specifier: SpecifierSet) -> bool:
    version = machine.versions.get(name)
    if version is None:
        return name in machine.unversioned
    return specifier.contains(version, prereleases=True)


def _merge(
    wanted: dict[str, SpecifierSet], requirements: Iterable[str], among: frozenset[str]
) -> None:
    for requirement in map(Requirement, requirements):
        name = canonicalize_name(requirement.name)
        if name in among:
            wanted[name] = wanted.get(name, SpecifierSet()) & requirement.specifier
