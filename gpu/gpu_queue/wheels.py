"""Packages for the machine with the GPU, from wheels for its Python.

They are downloaded, or built where they are pure, and packed again, since xz makes a third of what
zip makes of many files that are alike.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from gpu_jobs.errors import JobError
from gpu_jobs.install import PACKED
from gpu_queue.machine import Machine


def packed(name: str, machine: Machine, cache: Path) -> Path:
    """What a wheel of the version here, for that machine, holds, as a tar file in ``cache``.

    Raises:
        JobError: there is none, and none can be built that runs anywhere.
    """
    version = importlib.metadata.version(name)
    stem = f"{name.replace('-', '_')}-{version}"
    if found := next(cache.glob(f"{stem}-*{PACKED}"), None):
        return found
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        wheel = _wheel(f"{name}=={version}", machine, Path(scratch))
        tags = wheel.stem.split("-", maxsplit=2)[2]
        made = Path(scratch) / f"{stem}-{tags}{PACKED}"
        _pack(wheel, made)
        return made.replace(cache / made.name)


def _wheel(requirement: str, machine: Machine, folder: Path) -> Path:
    """Downloaded; or built with Python alone, since what is compiled here may not run there."""
    platforms = [word for tag in machine.platforms for word in ("--platform", tag)]
    options = ["--only-binary=:all:", "--python-version", machine.python, "--implementation", "cp"]
    _pip("download", *options, *platforms, "--dest", str(folder), requirement)
    if found := next(folder.glob("*.whl"), None):
        return found
    _pip("wheel", "--no-build-isolation", "--wheel-dir", str(folder), requirement)
    if found := next(folder.glob("*-none-any.whl"), None):
        return found
    raise JobError(
        f"wheels: {requirement} has no wheel for that machine, and cannot be built "
        "without a compiler; add it to gpu/machine.toml if it is there"
    )


def _pack(wheel: Path, made: Path) -> None:
    """Unpacking it must be all that installing the wheel would do."""
    contents = made.parent / "contents"
    with zipfile.ZipFile(wheel) as archive:
        odd = [n for n in archive.namelist() if ".data/purelib/" in n or ".data/platlib/" in n]
        if odd:
            raise JobError(f"wheels: {wheel.name} cannot just be unpacked: {odd[0]}")
        archive.extractall(contents)
    with tarfile.open(made, "w:xz", preset=9) as tar:
        tar.add(contents, ".")


def _pip(command: str, *options: str) -> None:
    # SAM 2's optional CUDA extension is not used.
    subprocess.run(
        [sys.executable, "-m", "pip", command, "--quiet", "--no-deps", *options],
        env={**os.environ, "SAM2_BUILD_CUDA": "0"},
        capture_output=True,
        check=False,
    )
