"""The index of a bank: which templates and classes it has.

``index.json`` is replaced at once or not at all, and carries a checksum of its content.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vessa_client import BankListing, ClassDefinition, TemplateInfo
from vessa_server.bank.errors import BankError
from vessa_server.bank.files import replace_file, sync_folder

INDEX_FILE, TEMPLATES_FOLDER = "index.json", "templates"
FORMAT_VERSION = 1
ID_DIGITS = 16
_ID = re.compile(f"[0-9a-f]{{{ID_DIGITS}}}")

# Inode, time of change and size: what differs between two states of the file.
Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class Index:
    """Templates, and definitions of classes, also of those that no template shows."""

    templates: tuple[TemplateInfo, ...] = ()
    classes: tuple[ClassDefinition, ...] = ()

    @property
    def ids(self) -> frozenset[str]:
        """Ids of the templates."""
        return frozenset(t.template_id for t in self.templates)

    @property
    def listing(self) -> BankListing:
        """What users see: classes that a template shows, and the version of that."""
        shown = {name for t in self.templates for name in t.class_names}
        classes = tuple(c for c in self.classes if c.name in shown)
        content = json.dumps([sorted(self.ids), [dataclasses.astuple(c) for c in classes]])
        version = hashlib.sha256(content.encode()).hexdigest()[:ID_DIGITS]
        return BankListing(templates=self.templates, classes=classes, version=version)


def is_template_id(text: str) -> bool:
    """Whether a text has the form of an id."""
    return _ID.fullmatch(text) is not None


def stamp_of(folder: Path) -> Stamp | None:
    """Stamp of the index in ``folder``; None where there is none that can be read."""
    try:
        return _stamp((folder / INDEX_FILE).stat())
    except OSError:
        return None


def read_index(folder: Path) -> tuple[Index, Stamp | None]:
    """The index in ``folder`` and its stamp; without a file and templates it is empty.

    Raises:
        BankError: the index is damaged, of another format, or lost.
    """
    found = _read(folder / INDEX_FILE)
    if found is None and template_folders(folder):
        # The first template of a bank may have come after we looked for its index.
        found = _read(folder / INDEX_FILE)
        if found is None:
            raise BankError(
                f"bank: {folder / INDEX_FILE} is missing, but there are templates; "
                f"{way_out(folder)}"
            )
    return found or (Index(), None)


def write_index(folder: Path, index: Index) -> None:
    """Replace the index. Once it returns, or is interrupted after that, the change is made.

    Raises:
        OSError: it cannot be written; the old index stays.
    """
    body = {
        "classes": [dataclasses.asdict(c) for c in index.classes],
        "templates": [as_json(t) for t in index.templates],
    }
    content = {
        "format": FORMAT_VERSION,
        "version": index.listing.version,
        "sha256": _checksum(body),
        **body,
    }
    replace_file(folder / INDEX_FILE, json.dumps(content, indent=2).encode())
    with suppress(OSError):  # the change is made; a power cut may take it back, no more
        sync_folder(folder)


def read_remains(folder: Path) -> Index:
    """What can be read of an index, whatever its checksum says; may be nothing."""
    try:
        return _decode((folder / INDEX_FILE).read_bytes(), check=False)
    except (OSError, ValueError, KeyError, TypeError):
        return Index()


def template_folders(folder: Path) -> tuple[Path, ...]:
    """Folders of templates, whether an index names them or not; by name."""
    parent = folder / TEMPLATES_FOLDER
    try:
        return tuple(sorted(f for f in parent.iterdir() if is_template_id(f.name) and f.is_dir()))
    except FileNotFoundError:
        return ()


def merge_classes(
    known: Iterable[ClassDefinition], added: Iterable[ClassDefinition]
) -> tuple[ClassDefinition, ...]:
    """Known classes keep their place; a new description replaces the old one."""
    merged = {c.name: c for c in known}
    for definition in added:
        if definition.name not in merged or definition.description:
            merged[definition.name] = definition
    return tuple(merged.values())


def way_out(folder: Path) -> str:
    """What a user does about a damaged or lost index."""
    return (
        f"restore {INDEX_FILE} from a copy, or rebuild it from the templates with "
        f"`python -m vessa_server.bank {folder}`"
    )


def as_json(template: TemplateInfo) -> dict[str, Any]:
    """A template as a JSON object; older versions read those without a window."""
    content = dataclasses.asdict(template)
    if template.window is None:
        del content["window"]
    return content


def as_template(content: dict[str, Any]) -> TemplateInfo:
    """A template from its JSON object.

    Raises:
        ValueError, KeyError, TypeError: it is none.
    """
    window = content.get("window")
    if window is not None:
        low, high = map(float, window)
        window = low, high
    template = TemplateInfo(
        **{**content, "class_names": tuple(content["class_names"]), "window": window}
    )
    if not is_template_id(template.template_id):
        raise ValueError(f"template_id {template.template_id!r}, expected {_ID.pattern}")
    return template


def _read(file: Path) -> tuple[Index, Stamp] | None:
    try:
        with file.open("rb") as stream:
            stamp = _stamp(os.fstat(stream.fileno()))
            return _decode(stream.read()), stamp
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BankError(f"bank: {file} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise BankError(f"bank: {file} is damaged ({error!r}); {way_out(file.parent)}") from error


def _decode(data: bytes, *, check: bool = True) -> Index:
    content = json.loads(data)
    if content["format"] != FORMAT_VERSION:
        raise ValueError(f"format {content['format']}, expected {FORMAT_VERSION}")
    body = {key: content[key] for key in ("classes", "templates")}
    # Banks of older versions have no checksum.
    if check and content.get("sha256", _checksum(body)) != _checksum(body):
        raise ValueError("its content does not fit its sha256")
    return Index(
        templates=tuple(as_template(t) for t in content["templates"]),
        classes=tuple(ClassDefinition(**c) for c in content["classes"]),
    )


def _checksum(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _stamp(stat: os.stat_result) -> Stamp:
    return stat.st_ino, stat.st_mtime_ns, stat.st_size
