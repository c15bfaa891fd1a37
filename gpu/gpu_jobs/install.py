"""Puts carried packages into a folder: ``python -m gpu_jobs.install JOB FOLDER``.

A wheel holds what an installation would copy, so unpacking it is enough; those that would need
more are not carried.
"""

from __future__ import annotations

import importlib.metadata
import sys
import tarfile
import tomllib
from pathlib import Path

from gpu_jobs import manifest as manifests
from gpu_jobs.errors import JobError
from gpu_jobs.jobs import rehearsal
from gpu_jobs.manifest import Manifest

# What is carried of a wheel is named as it, but for this.
PACKED = ".tar.xz"
# Of this project, in the folder that the command is run in.
PROJECTS = (
    Path("proto"),
    Path("services/vessa_common"),
    Path("services/vessa_server"),
    Path("services/ssl_trainer"),
)


def main() -> None:
    """Install what the job needs, or end with one line."""
    job, target = sys.argv[1], Path(sys.argv[2])
    folder = manifests.WORK / job
    try:
        manifest = manifests.read(folder)
        manifests.check(manifest, folder)
        print(install(manifest, folder, target))
    except JobError as error:
        print(f"Error: {error}")
        sys.exit(error.code)


def install(manifest: Manifest, folder: Path, target: Path) -> str:
    """Unpack wheels into ``target``; returns one line that says which.

    Raises:
        JobError: a wheel does not run here, or cannot be read.
    """
    target.mkdir(parents=True, exist_ok=True)
    done, left = [], []
    for wheel in manifest.wheels:
        name = wheel.file.split("-")[0]
        if wheel.spare and satisfied(wheel.requirement):
            continue
        if not runs_here(wheel.file):
            if not rehearsal():
                version = ".".join(map(str, sys.version_info[:2]))
                raise JobError(f"{wheel.file} is for another Python than {version}")
            left.append(name)
            continue
        try:
            with tarfile.open(folder / manifests.WHEELS / wheel.file) as archive:
                archive.extractall(target, filter="data")
        except (OSError, tarfile.TarError, ImportError) as error:
            raise JobError(f"{wheel.file}: cannot be unpacked: {error}") from error
        done.append(name)
    for project in PROJECTS:
        _declare(project, target)
    line = f"Installed {len(done)} of {len(manifest.wheels)} carried packages: {', '.join(done)}"
    return line + (f"; for another Python: {', '.join(left)}" if left else "")


def _declare(project: Path, target: Path) -> None:
    """Write down the version of a package of ours, whose code is not installed: it is asked for."""
    stated = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    name, version_ = stated["name"], stated["version"]
    folder = target / f"{name.replace('-', '_')}-{version_}.dist-info"
    folder.mkdir()
    text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version_}\n"
    (folder / "METADATA").write_text(text)


def runs_here(file: str) -> bool:
    """Whether this Python can import what is in a wheel, by the tags in its name."""
    python, abi = file.removesuffix(PACKED).split("-")[-3:-1]
    here = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    if abi == "none":
        return python.startswith("py") or python == here
    if abi == "abi3":
        return int(python.removeprefix("cp3")) <= sys.version_info[1]
    return python == here


def satisfied(requirement: str) -> bool:
    """Whether a package is there in a version that will do."""
    from packaging.requirements import Requirement

    wanted = Requirement(requirement)
    found = version(wanted.name)
    return found is not None and wanted.specifier.contains(found, prereleases=True)


def version(name: str) -> str | None:
    """Version of a package; None where it is not there."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
