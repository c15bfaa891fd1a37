"""Packages for the machine with the GPU, from wheels for its Python.

They are downloaded, or built where they are pure, and packed again, since xz makes a third of what
zip makes of many files that are alike.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from packaging.utils import canonicalize_name, parse_wheel_filename

from gpu_jobs.install import PACKED
from gpu_queue.errors import QueueError
from gpu_queue.machine import Machine


def packed(name: str, version: str, machine: Machine, cache: Path) -> Path:
    """What a package's wheel for that machine holds, as a tar file; kept in ``cache``.

    Raises:
        QueueError: there is none, and none can be built that runs anywhere.
    """
    cache.mkdir(parents=True, exist_ok=True)
    if (found := _cached(name, version, cache)) is None:
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            folder = Path(scratch)
            wheel = _download(name, version, machine, folder) or _build(name, version, folder)
            made = _pack(wheel, folder)
            found = cache / made.name
            os.replace(made, found)
    return found


def _pack(wheel: Path, folder: Path) -> Path:
    """Unpacking it must be all that installing the wheel would do."""
    contents = folder / "contents"
    with zipfile.ZipFile(wheel) as archive:
        odd = [n for n in archive.namelist() if ".data/purelib/" in n or ".data/platlib/" in n]
        if odd:
            raise QueueError(f"wheels: {wheel.name} cannot just be unpacked: {odd[0]}")
        archive.extractall(contents)
    made = folder / f"{wheel.stem}{PACKED}"
    with tarfile.open(made, "w:xz", preset=9) as tar:
        for file in sorted(f for f in contents.rglob("*") if f.is_file()):
            tar.add(file, str(file.relative_to(contents)))
    return made


def _cached(name: str, version: str, cache: Path) -> Path | None:
    for file in sorted(cache.glob(f"*{PACKED}")):
        stem = file.name.removesuffix(PACKED)
        wheel_name, wheel_version, _, _ = parse_wheel_filename(f"{stem}.whl")
        if wheel_name == canonicalize_name(name) and str(wheel_version) == version:
            return file
    return None


def _download(name: str, version: str, machine: Machine, folder: Path) -> Path | None:
    platforms = [word for tag in machine.platforms for word in ("--platform", tag)]
    options = ["--only-binary=:all:", "--python-version", machine.python, "--implementation", "cp"]
    _pip("download", *options, *platforms, "--dest", str(folder), f"{name}=={version}")
    return next(folder.glob("*.whl"), None)


def _build(name: str, version: str, folder: Path) -> Path:
    """From the source: with Python alone, since what a compiler makes here may not run there."""
    _pip("wheel", "--no-build-isolation", "--wheel-dir", str(folder), f"{name}=={version}")
    made = next(folder.glob("*-none-any.whl"), None)
    if made is None:
        raise QueueError(
            f"wheels: {name} {version} has no wheel for that machine, and cannot be built "
            "without a compiler; add it to gpu/machine.toml if it is there"
        )
    return made


def _pip(command: str, *options: str) -> None:
    # SAM 2's optional CUDA extension is not used.
    subprocess.run(
        [sys.executable, "-m", "pip", command, "--quiet", "--no-deps", *options],
        env={**os.environ, "SAM2_BUILD_CUDA": "0"},
        capture_output=True,
        check=False,
    )
