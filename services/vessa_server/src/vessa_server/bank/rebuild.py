"""Rebuild the index of a bank from the folders of its templates.

Nothing is invented. A template's id is a digest of its pixels, class names and window, so that
names from elsewhere (other templates, what is left of the index, the user), and windows of other
templates, are known to be right.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from itertools import islice, permutations, product
from pathlib import Path

from vessa_client import TemplateInfo
from vessa_client._types import Window
from vessa_server.bank.errors import BankError
from vessa_server.bank.files import read_image
from vessa_server.bank.folders import Record, TemplateFolders, added_time
from vessa_server.bank.index import (
    INDEX_FILE,
    TEMPLATES_FOLDER,
    Index,
    merge_classes,
    read_remains,
    template_folders,
    write_index,
)
from vessa_server.bank.template import content_of, template_id

REPLACED_FILE = INDEX_FILE + ".replaced"
# Orders of known names that are tried for a template without a record.
_MAX_ORDERS = 100_000


def rebuild_index(folder: Path, class_names: Sequence[str]) -> Index:
    """Write a new index of ``folder``, under the bank's lock; the old one is kept beside it.

    Raises:
        BankError: names the templates that are damaged or whose classes are not known;
            nothing was changed.
        OSError: the index cannot be written.
    """
    paths = template_folders(folder)
    remains = read_remains(folder)
    recorded = [record for path in paths if (record := _read_record(path)) is not None]
    names = list(class_names)
    names += [name for record in recorded for name in record.info.class_names]
    names += [definition.name for definition in remains.classes]
    windows = [None, *(t.window for t in (*remains.templates, *(r.info for r in recorded)))]
    known = list(dict.fromkeys(names)), list(dict.fromkeys(windows))
    records, problems = [], []
    for path in paths:
        try:
            records.append(_record_of(path, remains, *known))
        except (OSError, ValueError) as error:
            problems.append(f"{path.name} ({error})")
    if problems:
        raise BankError(
            f"bank: {folder} cannot be rebuilt, nothing was changed. Templates that nothing is "
            f"known of: {'; '.join(problems)}. Name their classes with --class, or move their "
            f"folders out of {folder / TEMPLATES_FOLDER} and add these templates again"
        )
    index = _index_of(sorted(records, key=lambda r: (r.added, r.info.template_id)), remains)
    if (folder / INDEX_FILE).exists():
        shutil.copyfile(folder / INDEX_FILE, folder / REPLACED_FILE)
    write_index(folder, index)
    TemplateFolders(folder).write_records(index)
    return index


def _read_record(path: Path) -> Record | None:
    try:
        return Record.read(path)
    except (OSError, ValueError):
        return None


def _record_of(
    path: Path, remains: Index, names: list[str], windows: list[Window | None]
) -> Record:
    """The record whose class names and window fit pixels and id of a template's folder."""
    image, labels = read_image(path, "image"), read_image(path, "labels")
    height, width = labels.shape[:2]
    content = content_of(image, labels)
    known = [record] if (record := _read_record(path)) is not None else []
    known += [
        Record.of(info, remains.classes, added_time(path))
        for info in remains.templates
        if info.template_id == path.name
    ]
    for record in known:
        size = (record.info.height, record.info.width)
        found = template_id(content, record.info.class_names, record.info.window)
        fits = found == record.info.template_id
        if fits and record.info.template_id == path.name and size == (height, width):
            return record
    num_classes = int(labels.max())
    for order, window in product(_orders(names, num_classes), windows):
        if template_id(content, order, window) == path.name:
            info = TemplateInfo(
                template_id=path.name,
                name="",
                height=height,
                width=width,
                class_names=order,
                window=window,
            )
            return Record.of(info, (), added_time(path))
    raise ValueError(f"no names that are known fit its pixels, {num_classes} classes")


def _orders(names: list[str], length: int) -> Iterator[tuple[str, ...]]:
    return islice(permutations(names, length), _MAX_ORDERS)


def _index_of(records: Sequence[Record], remains: Index) -> Index:
    shown = {name for record in records for name in record.info.class_names}
    classes = tuple(c for c in remains.classes if c.name in shown)
    for record in records:
        classes = merge_classes(classes, record.classes)
    return Index(tuple(record.info for record in records), classes)
