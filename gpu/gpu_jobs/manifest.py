"""What was prepared for a job: settings, and digests of what is carried.

Only Python's own modules are used here, since this is read before anything is installed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gpu_jobs.errors import JobError
from gpu_jobs.jobs import JOBS, WEIGHTS

MANIFEST = "manifest.json"
CODE = (
    "gpu/device.sh",
    "gpu/gpu_jobs",
    "proto/src",
    "services/vessa_common/src",
    "services/vessa_server/src",
)
PACK, RECIPE, WHEELS, VOLUMES = "slices.pack", "recipe.yaml", "wheels", "volumes.zip"
WORK = Path("gpu") / ".work"


@dataclass(frozen=True)
class Wheel:
    """A carried package.

    Attributes:
        file: its name in the folder of wheels.
        requirement: what it is carried for, such as ``pydantic>=2.10``.
        spare: installed only where the machine's own does not do.
    """

    file: str
    requirement: str
    spare: bool = False


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What was prepared for a job.

    Attributes:
        date, commit: when it was prepared, and from which commit; with ``+`` where the tree had
            changes.
        weights, weights_digest: folder to begin with, in the tree, and its digest.
        settings: keys of ``training`` and of the whole configuration, over the recipe's.
        requirements: all packages that are needed, with versions.
        wheels: what is carried of them.
        files: sha256 of everything in the carried folder but this file.
        tree: digest of the code and the weights that travel beside it, see :func:`tree_digest`.
    """

    date: str
    commit: str
    weights: str
    weights_digest: str
    settings: dict[str, Any] = field(default_factory=dict)
    requirements: tuple[str, ...] = ()
    wheels: tuple[Wheel, ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    tree: str = ""

    def write(self, folder: Path) -> None:
        """Write it into the carried folder."""
        (folder / MANIFEST).write_text(json.dumps(asdict(self), indent=1) + "\n")


def read(folder: Path) -> Manifest:
    """Read the manifest in a carried folder.

    Raises:
        JobError: it is missing or damaged.
    """
    file = folder / MANIFEST
    if not file.is_file():
        raise JobError(
            f"no file {file}: carry {folder}, which `gpu/run {folder.name} prepare` makes"
        )
    try:
        content = json.loads(file.read_text())
        content["wheels"] = tuple(Wheel(**wheel) for wheel in content["wheels"])
        content["requirements"] = tuple(content["requirements"])
        return Manifest(**content)
    except (ValueError, TypeError, KeyError) as error:
        raise JobError(f"{file}: {error!r}; prepare again") from error


def sha256(file: Path) -> str:
    """Digest of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digests(folder: Path) -> dict[str, str]:
    """Digest of each file in a carried folder but the manifest, by its name there."""
    return {
        str(file.relative_to(folder)): sha256(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != MANIFEST
    }


def tree_digest(root: Path, job: str, weights: str) -> str:
    """Digest of all code that a job runs, and of its weights, in the project's folder ``root``."""
    state = hashlib.sha256()
    for name in (*CODE, *JOBS[job].code, *(f"{weights}/{file}" for file in WEIGHTS)):
        start = root / name
        for file in [start] if start.is_file() else sorted(start.rglob("*.py")):
            state.update(f"{file.relative_to(root)} {sha256(file)}\n".encode())
    return state.hexdigest()


def check(manifest: Manifest, folder: Path) -> None:
    """Compare what is there with what was prepared.

    Raises:
        JobError: a file is missing, or another one; or the code has changed.
    """
    if manifest.tree != tree_digest(Path.cwd(), folder.name, manifest.weights):
        raise JobError(
            f"code, or {manifest.weights}: not that of `prepare`; prepare and rehearse again"
        )
    found = digests(folder)
    for name, expected in manifest.files.items():
        if name not in found:
            raise JobError(f"no file {folder / name}: it was prepared and did not come along")
        if found[name] != expected:
            raise JobError(
                f"{folder / name}: sha256 {found[name][:12]}, expected {expected[:12]}; "
                "prepare again"
            )
