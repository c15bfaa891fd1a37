"""The carried pack of annotated slices: made once for a recipe and its data, then used again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from gpu_jobs.errors import JobError
from vessa_common import layouts, patients
from vessa_server.training import config as configuration
from vessa_server.training import pack as packs
from vessa_server.training import sources
from vessa_server.training.config import Stage1Config
from vessa_server.training.run import make_pack

# Quality of the pictures: the first at which everything fits.
QUALITIES = (80, 65, 50, 35)


def pack(recipe: Path, data: Path, quality: int, cache: Path) -> Path:
    """The pack of a recipe's data sets in ``data``, from ``cache`` where neither has changed.

    Raises:
        ValueError: the recipe names no data sets, or they are not as described.
    """
    config = configuration.load(recipe)
    file = cache / f"{_key(config, data, quality)}.pack"
    # The digest is written last.
    if not beside(file).is_file():
        cache.mkdir(parents=True, exist_ok=True)
        made = make_pack(config, data)
        if made is None:
            raise JobError(f"recipe: {recipe} names no data sets")
        packs.write(made, file, quality=quality)
    return file


def beside(file: Path) -> Path:
    """The file with a pack's digest."""
    return file.with_name(file.name + packs.DIGEST_SUFFIX)


def _key(config: Stage1Config, data: Path, quality: int) -> str:
    """Of all that a pack depends on: the recipe's data, their names, sizes and dates, our code."""
    described = configuration.to_dict(config)
    del described["training"]
    parts = [json.dumps(described, sort_keys=True), str(quality)]
    for source in config.data.sources:
        for file in sorted(f for f in (data / source.folder).rglob("*") if f.is_file()):
            status = file.stat()
            parts.append(f"{file.relative_to(data)}:{status.st_size}:{status.st_mtime_ns}")
    parts += [Path(str(m.__file__)).read_text() for m in (packs, sources, layouts, patients)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
