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
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from gpu_queue.errors import QueueError
from gpu_queue.machine import Machine
from gpu_queue.paths import CODE, PROJECTS

# Packages of this project travel as code.
OURS = frozenset({"vessa-client", "vessa-server"})
# torch.utils.tensorboard imports it, and torch does not require it.
UNDECLARED = frozenset({"tensorboard"})


@dataclass(frozen=True)
class Needs:
    """What is needed there.

    Attributes:
        requirements: all of it, by name.
        carried: what is missing there, or there in a version that will not do.
        spare: what is there in an unknown version, where not every version will do.
    """

    requirements: dict[str, SpecifierSet]
    carried: frozenset[str]
    spare: frozenset[str]

    def requirement(self, name: str) -> str:
        """Such as ``pydantic>=2.10,<3``."""
        return f"{name}{self.requirements[name]}"


def probe() -> tuple[frozenset[str], frozenset[str]]:
    """Packages that a job loads, and those of them that our files import; takes half a minute.

    Raises:
        QueueError: the probe failed.
    """
    path = os.pathsep.join(map(str, CODE))
    with tempfile.TemporaryDirectory() as scratch:
        done = subprocess.run(
            [sys.executable, "-m", "gpu_queue.probe", scratch],
            env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise QueueError(f"packages: the probe failed: {done.stderr.strip()[-600:]}")
    found = json.loads(done.stdout)
    return frozenset(found["loaded"]), frozenset(found["named"])


def declared() -> list[Requirement]:
    """What the project's packages say that they require."""
    found = []
    for folder in PROJECTS:
        content = tomllib.loads((folder / "pyproject.toml").read_text())
        found += [Requirement(text) for text in content["project"]["dependencies"]]
    return found


def needs(machine: Machine, loaded: frozenset[str], named: frozenset[str]) -> Needs:
    """Follow requirements from what our files import to what has to be carried."""
    wanted: dict[str, SpecifierSet] = {n: SpecifierSet() for n in (named - OURS) | UNDECLARED}
    _merge(wanted, (r for r in declared() if canonicalize_name(r.name) in wanted))
    followed: set[str] = set()
    while True:
        carried = {n for n, s in wanted.items() if not _does(machine, n, s)}
        spare = {n for n, s in wanted.items() if n in machine.unversioned and _bounded(s)}
        new = (carried | spare) - followed
        if not new:
            return Needs(wanted, frozenset(carried), frozenset(spare))
        for name in sorted(new):
            followed.add(name)
            _merge(wanted, _required(machine, name, loaded))


def _does(machine: Machine, name: str, specifier: SpecifierSet) -> bool:
    version = machine.versions.get(name)
    if version is None:
        return name in machine.unversioned
    return specifier.contains(version, prereleases=True)


def _bounded(specifier: SpecifierSet) -> bool:
    return any(part.operator in {">=", ">", "==", "~=", "<", "<="} for part in specifier)


def _required(machine: Machine, name: str, loaded: frozenset[str]) -> list[Requirement]:
    """What the installed ``name`` requires there, of what a job loads."""
    environment = {
        "python_version": machine.python,
        "python_full_version": f"{machine.python}.0",
        "platform_system": "Linux",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
        "extra": "",
    }
    found = map(Requirement, importlib.metadata.requires(name) or [])
    return [
        requirement
        for requirement in found
        if canonicalize_name(requirement.name) in loaded
        and (requirement.marker is None or requirement.marker.evaluate(environment))
    ]


def _merge(wanted: dict[str, SpecifierSet], requirements: Iterable[Requirement]) -> None:
    for requirement in requirements:
        name = canonicalize_name(requirement.name)
        wanted[name] = wanted.get(name, SpecifierSet()) & requirement.specifier


def installed(name: str) -> str:
    """Version of a package here."""
    return importlib.metadata.version(name)


def fingerprint(code: Iterable[Path]) -> str:
    """Changes where what a job imports may have changed: names and dates of code and packages."""
    files = [f for folder in code for f in sorted(folder.rglob("*.py"))]
    dates = [f"{file}:{file.stat().st_mtime_ns}" for file in files]
    packages = sorted(
        f"{d.metadata['Name']}={d.version}" for d in importlib.metadata.distributions()
    )
    return "\n".join([*dates, *packages])
