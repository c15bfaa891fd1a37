"""Stands in for the machine with the GPU: this Python, with the packages that would be there.

Its folder of packages holds links to those here that the machine has, and to carried ones that are
compiled for its own Python. What is neither there nor carried cannot be imported.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from gpu_jobs.install import runs_here
from gpu_jobs.manifest import Manifest
from gpu_queue.machine import Machine


def stand_in(manifest: Manifest, machine: Machine, folder: Path) -> Path:
    """Make it in the new ``folder``; returns its ``python``."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    version = ".".join(map(str, sys.version_info[:2]))
    target = folder / "lib" / f"python{version}" / "site-packages"
    installed = {
        str(canonicalize_name(d.metadata["Name"])): d for d in importlib.metadata.distributions()
    }
    for name in sorted(there(manifest, machine, frozenset(installed))):
        _link(installed[name], target)
    return folder / "bin" / "python"


def there(manifest: Manifest, machine: Machine, installed: frozenset[str]) -> frozenset[str]:
    """Packages here that stand for those there, with what the versions here require."""
    unpacked, compiled = set[str](), set[str]()
    for wheel in manifest.wheels:
        name = str(canonicalize_name(Requirement(wheel.requirement).name))
        if not wheel.spare:
            (unpacked if runs_here(wheel.file) else compiled).add(name)
    wanted = [*(n for n in installed if machine.has(n)), *sorted(compiled)]
    found: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name in installed and name not in found | unpacked:
            found.add(name)
            wanted.extend(_requires(name))
    return frozenset(found)


def _requires(name: str) -> list[str]:
    """What the version here requires."""
    found = map(Requirement, importlib.metadata.requires(name) or [])
    return [
        canonicalize_name(r.name)
        for r in found
        if r.marker is None or r.marker.evaluate({"extra": ""})
    ]


def _link(distribution: importlib.metadata.Distribution, target: Path) -> None:
    """Link each file or folder that a package has put into its folder of packages."""
    for first in {f.parts[0] for f in distribution.files or []} - {"..", "__pycache__"}:
        link, source = target / first, Path(str(distribution.locate_file(first)))
        # Folders such as `google` and `nvidia` are of several packages.
        if source.exists() and not link.exists() and source.suffix != ".pth":
            link.symlink_to(source)
