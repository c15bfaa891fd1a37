"""A bank as a folder of images and labels that other programs, and other banks, can read.

``NAME.png`` or ``NAME.tif``, ``NAME_gt.png``, and ``dataset.json`` with the classes.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from vessa_client import files
from vessa_client._sync import VessaClient
from vessa_client._types import AnyArray, BankListing, TemplateInfo, Window

CLASSES_FILE = "dataset.json"


def export(client: VessaClient, listing: BankListing, out: Path) -> Iterator[TemplateInfo]:
    """Write the templates of a bank, one after the other.

    Raises:
        FileError: the folder is there and not empty, or a file cannot be written.
        VessaError: a template cannot be read.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise files.FileError(f"{out}: is there already, expected a new folder")
    names = [definition.name for definition in listing.classes]
    taken: set[str] = set()
    windows: dict[str, Window] = {}
    for info in listing.templates:
        content = client.get_template(info.template_id)
        name = re.sub(r'[/\\:*?"<>|]', "_", info.name).strip(". ") or info.template_id
        if name.casefold() in taken:
            name = f"{name} {info.template_id}"
        taken.add(name.casefold())
        if info.window is not None:
            windows[name] = info.window
        suffix, form = (".tif", "TIFF") if content.image.dtype == np.float32 else (".png", "PNG")
        _write(out / f"{name}{suffix}", content.image, form)
        _write(out / f"{name}{files.LABEL_SUFFIX}.png", content.numbered(names), "PNG")
        yield info
    described = {
        "labels": {"background": 0, **{name: i for i, name in enumerate(names, start=1)}},
        "descriptions": {c.name: c.description for c in listing.classes if c.description},
        **({"windows": windows} if windows else {}),
    }
    files.write_text(out / CLASSES_FILE, json.dumps(described, indent=1) + "\n")


def _write(file: Path, pixels: AnyArray, form: str) -> None:
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, form)
    files.write_bytes(file, encoded.getvalue())
