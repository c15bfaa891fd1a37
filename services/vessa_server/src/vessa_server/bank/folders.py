"""The folders of the templates, and what is in each of them.

::

    <template id>/image.png or image.tiff
    <template id>/labels.png     0 background, i the template's i-th class
    <template id>/template.json  the template and its classes, so that an index can be rebuilt
    .new-*                       being written; a leftover of a crash where nobody holds the lock
    .deleted-<template id>-<ns>  deleted at that time; kept for those who still read it

A folder with the name of a template is never removed, only renamed when it is deleted.
All that changes something is called under the bank's lock.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from vessa_client import ClassDefinition, TemplateInfo
from vessa_server.bank.errors import BankError
from vessa_server.bank.files import (
    encode_image,
    encode_labels,
    read_image,
    replace_file,
    sync_folder,
    write_file,
)
from vessa_server.bank.index import TEMPLATES_FOLDER, Index, as_json, as_template
from vessa_server.bank.template import Template

RECORD_FILE, RECORD_FORMAT = "template.json", 1
NEW_PREFIX, DELETED_PREFIX = ".new-", ".deleted-"
_DELETED = re.compile(re.escape(DELETED_PREFIX) + r"([0-9a-f]+)-(\d+)")
# Longer than any request that began with the bank as it was before a deletion.
KEEP_DELETED_SECONDS = 600.0


@dataclass(frozen=True)
class Record:
    """What a template's folder says of it; ``added`` is in UTC and sorts by time."""

    info: TemplateInfo
    classes: tuple[ClassDefinition, ...]
    added: str

    @classmethod
    def of(cls, info: TemplateInfo, classes: Sequence[ClassDefinition], added: str) -> Record:
        """Record of a template; of ``classes``, those that it shows."""
        definitions = {c.name: c for c in classes}
        shown = (definitions.get(n, ClassDefinition(name=n)) for n in info.class_names)
        return cls(info, tuple(shown), added)

    @classmethod
    def read(cls, folder: Path) -> Record:
        """Read the record of a template's folder.

        Raises:
            FileNotFoundError: there is none, as in banks of older versions.
            ValueError: it is damaged.
        """
        try:
            content = json.loads((folder / RECORD_FILE).read_bytes())
            if content["format"] != RECORD_FORMAT:
                raise ValueError(f"format {content['format']}, expected {RECORD_FORMAT}")
            return cls(
                info=as_template(content["template"]),
                classes=tuple(ClassDefinition(**c) for c in content["classes"]),
                added=str(content["added"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{folder / RECORD_FILE} is damaged: {error!r}") from error

    def encode(self) -> bytes:
        """Content of the file."""
        content = {
            "format": RECORD_FORMAT,
            "added": self.added,
            "template": as_json(self.info),
            "classes": [dataclasses.asdict(c) for c in self.classes],
        }
        return json.dumps(content, indent=2).encode()


class TemplateFolders:
    """The folders of the templates of one bank."""

    def __init__(self, bank: Path) -> None:
        self.parent = bank / TEMPLATES_FOLDER

    def path(self, template_id: str) -> Path:
        """Folder of a template."""
        return self.parent / template_id

    def read(self, info: TemplateInfo) -> Template:
        """Read a template's pixels, also for a while after it was deleted.

        Raises:
            BankError: its files are missing or damaged.
        """
        for folder in self._places(info.template_id):
            try:
                return _read_template(folder, info)
            except FileNotFoundError as error:
                missing = error
            except (OSError, ValueError) as error:
                raise _unreadable(info, error) from error
        raise _unreadable(info, missing) from missing

    def put(
        self, info: TemplateInfo, classes: Sequence[ClassDefinition], files: dict[str, bytes]
    ) -> None:
        """Write a template's folder, whole or not at all.

        Args:
            info: the template.
            classes: definitions, those of its classes among them.
            files: from :func:`encode_files`.

        Raises:
            OSError: it cannot be written.
        """
        scratch = Path(tempfile.mkdtemp(prefix=NEW_PREFIX, dir=self.parent))
        try:
            for name, data in files.items():
                write_file(scratch / name, data)
            now = datetime.now(UTC).isoformat(timespec="microseconds")
            write_file(scratch / RECORD_FILE, Record.of(info, classes, now).encode())
            sync_folder(scratch)
            self.retire(info.template_id)  # a crash may have left one without an index
            os.replace(scratch, self.path(info.template_id))
            sync_folder(self.parent)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise

    def retire(self, template_id: str) -> None:
        """Make a folder a deleted one; it is removed by :meth:`tidy`, later.

        Raises:
            OSError: it cannot be renamed.
        """
        deleted = self.parent / f"{DELETED_PREFIX}{template_id}-{time.time_ns()}"
        with suppress(FileNotFoundError):
            os.replace(self.path(template_id), deleted)

    def withdraw(self, template_id: str) -> None:
        """Remove a folder that no index ever named."""
        shutil.rmtree(self.path(template_id), ignore_errors=True)

    def tidy(self, named: frozenset[str]) -> bool:
        """Remove what crashes and deletions left behind; ``named`` are the index's ids.

        A deletion that ended before the index was written is taken back.

        Returns:
            Whether deleted templates are left, which it is too early to remove.
        """
        left = False
        for folder in self._hidden():
            if folder.name.startswith(NEW_PREFIX):
                shutil.rmtree(folder, ignore_errors=True)
                continue
            match = _DELETED.fullmatch(folder.name)
            if match is None:
                continue
            template_id, deleted_ns = match[1], int(match[2])
            if template_id in named and not self.path(template_id).exists():
                with suppress(OSError):
                    os.replace(folder, self.path(template_id))
            elif time.time_ns() - deleted_ns >= KEEP_DELETED_SECONDS * 1e9:
                shutil.rmtree(folder, ignore_errors=True)
            else:
                left = True
        return left

    def write_records(self, index: Index, changed: frozenset[str] = frozenset()) -> None:
        """Write records that are missing, and those of templates that show a changed class.

        Raises:
            OSError: one cannot be written.
        """
        for info in index.templates:
            folder = self.path(info.template_id)
            if not folder.is_dir():
                continue
            outdated = not changed.isdisjoint(info.class_names)
            if outdated or not (folder / RECORD_FILE).exists():
                record = Record.of(info, index.classes, added_time(folder))
                replace_file(folder / RECORD_FILE, record.encode())

    def _places(self, template_id: str) -> Iterator[Path]:
        """Where a template may be; it may be deleted, and be added again, as we go."""
        yield self.path(template_id)
        for folder in self._hidden():
            if folder.name.startswith(f"{DELETED_PREFIX}{template_id}-"):
                yield folder
        yield self.path(template_id)

    def _hidden(self) -> tuple[Path, ...]:
        try:
            return tuple(f for f in self.parent.iterdir() if f.name.startswith("."))
        except FileNotFoundError:
            return ()


def encode_files(template: Template) -> dict[str, bytes]:
    """Content of a template's files, by name."""
    suffix, image = encode_image(template.image)
    return {"image" + suffix: image, "labels.png": encode_labels(template.labels)}


def _read_template(folder: Path, info: TemplateInfo) -> Template:
    size = (info.height, info.width)
    image, labels = read_image(folder, "image", size), read_image(folder, "labels", size)
    if labels.shape != size:
        raise ValueError(f"{folder}: labels of shape {labels.shape}, expected {size}")
    return Template(info, image, labels.astype(np.uint8))  # a copy: torch takes no read-only array


def added_time(folder: Path) -> str:
    """When a template was added: as its record says, or from its files."""
    with suppress(FileNotFoundError, ValueError):
        return Record.read(folder).added
    changed = (folder / "labels.png").stat().st_mtime
    return datetime.fromtimestamp(changed, UTC).isoformat(timespec="microseconds")


def _unreadable(info: TemplateInfo, error: Exception) -> BankError:
    return BankError(
        f"bank: template {info.template_id} cannot be read: {error}; delete it and add it again"
    )
