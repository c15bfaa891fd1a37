"""A bank as a folder of images and labels that other programs, and other banks, can read.

``NAME.png`` or ``NAME.tif``, ``NAME_gt.png``, and ``dataset.json`` with the classes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vessa_client import files
from vessa_client._sync import VessaClient
from vessa_client._types import BankListing, TemplateInfo, Window

CLASSES_FILE = "dataset.json"


def export(client: VessaClient, listing: BankListing, out: Path) -> Iterator[TemplateInfo]:
    """Write the templates of a bank, one after the other; the folder is there when all are.

    Raises:
        FileError: the folder is there and not empty, or a file cannot be written.
        VessaError: a template cannot be read.
    """
    names = [definition.name for definition in listing.classes]
    described: dict[str, object] = {
        "labels": {"background": 0, **{name: i for i, name in enumerate(names, start=1)}},
        "descriptions": {c.name: c.description for c in listing.classes if c.description},
    }
    taken: set[str] = set()
    windows: dict[str, Window] = {}
    with files.new_folder(out) as folder:
        for info in listing.templates:
            content = client.get_template(info.template_id)
            name = re.sub(r'[/\\:*?"<>|]', "_", info.name).strip(". ") or info.template_id
            if name.casefold() in taken:
                name = f"{name} {info.template_id}"
            taken.add(name.casefold())
            if info.window is not None:
                windows[name] = info.window
            suffix = ".tif" if content.image.dtype == np.float32 else ".png"
            files.write_picture(folder / f"{name}{suffix}", content.image)
            labels = folder / f"{name}{files.LABEL_SUFFIX}.png"
            files.write_picture(labels, content.numbered(names))
            yield info
        if windows:
            described["windows"] = windows
        files.write_text(folder / CLASSES_FILE, json.dumps(described, indent=1) + "\n")
