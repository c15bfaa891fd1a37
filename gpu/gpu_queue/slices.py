"""The carried pack of annotated slices: made once for a recipe and its data, then used again."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

from gpu_jobs.manifest import sha256
from gpu_queue.errors import QueueError
from gpu_queue.paths import CODE

DIGEST_SUFFIX = ".sha256"
# Quality of the pictures: the first at which everything fits.
QUALITIES = (80, 65, 50, 35)


def pack(recipe: Path, data: Path, quality: int, cache: Path) -> Path:
    """The pack of a recipe's data sets in ``data``, from ``cache`` where neither has changed.

    Raises:
        QueueError: it cannot be made.
    """
    cache.mkdir(parents=True, exist_ok=True)
    file = cache / f"{_key(recipe, data, quality)}.pack"
    if is_whole(file):
        return file
    done = subprocess.run(
        [
            sys.executable, "-m", "vessa_server", "pack", str(recipe),
            "--data", str(data), "--out", str(file), "--quality", str(quality),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, CODE))},
        stdout=subprocess.DEVNULL,
        check=False,
    )  # fmt: skip
    if done.returncode or not is_whole(file):
        raise QueueError(f"pack: `vessa-server pack {recipe} --data {data}` failed")
    return file


def is_whole(file: Path) -> bool:
    """Whether a pack is there with the digest that is written beside it."""
    beside = file.with_name(file.name + DIGEST_SUFFIX)
    if not (file.is_file() and beside.is_file()):
        return False
    return beside.read_text().strip() == sha256(file)


def _key(recipe: Path, data: Path, quality: int) -> str:
    """Of all that a pack depends on: the recipe's data, their names, sizes and dates, our code."""
    try:
        content = yaml.safe_load(recipe.read_text())
        folders = [source["folder"] for source in content["data"]["sources"]]
        described = {key: content.get(key) for key in ("preset", "canvas", "data")}
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise QueueError(f"recipe: {recipe} names no data sets: {error!r}") from error
    parts = [json.dumps(described, sort_keys=True), str(quality)]
    for folder in folders:
        files = sorted(f for f in (data / folder).rglob("*") if f.is_file())
        if not files:
            raise QueueError(f"data: no files in {data / folder}, which {recipe.name} names")
        for file in files:
            status = file.stat()
            parts.append(f"{file.relative_to(data)}:{status.st_size}:{status.st_mtime_ns}")
    training = CODE[-1] / "vessa_server" / "training"
    parts += [(training / f"{name}.py").read_text() for name in ("pack", "sources", "layouts")]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
