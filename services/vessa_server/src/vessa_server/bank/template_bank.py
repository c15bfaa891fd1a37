"""The template bank: annotated images on disk, versioned by content.

Layout, readable by people::

    index.json                      version, classes, templates
    templates/<template id>/image.png or image.tiff
    templates/<template id>/labels.png   0 background, i the template's i-th class

A template is written to a scratch folder, synced and renamed into place before the index
names it; the index is replaced atomically. A crash leaves the old index or the new one, and
at worst a folder that no index names, which the next change removes. Writers exclude each
other by a file lock; readers take the index as it is.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vessa_client import (
    AnyArray,
    BankListing,
    ClassDefinition,
    InvalidRequestError,
    NotFoundError,
    TemplateInfo,
    UInt8Array,
)
from vessa_client.wire import image_digest
from vessa_server.bank.files import (
    read_image,
    sync_folder,
    to_storable,
    write_image,
    write_labels,
)

INDEX_FILE, LOCK_FILE, TEMPLATES_FOLDER = "index.json", ".lock", "templates"
FORMAT_VERSION = 1
ID_DIGITS = 16
MAX_NAME_LENGTH, MAX_DESCRIPTION_LENGTH = 80, 400


class BankError(RuntimeError):
    """The bank on disk cannot be read."""


@dataclass(frozen=True)
class Template:
    """A template with its pixels; ``labels`` holds i for the i-th of ``info.class_names``."""

    info: TemplateInfo
    image: AnyArray
    labels: UInt8Array

    def mask(self, class_name: str) -> UInt8Array:
        """(H, W), 1 where the class is."""
        value = self.info.class_names.index(class_name) + 1
        mask: UInt8Array = (self.labels == value).astype(np.uint8)
        return mask


class TemplateBank:
    """Durable store of templates. Thread-safe; several processes may share the folder."""

    def __init__(self, folder: Path) -> None:
        """Open the bank in ``folder``, which is created where it is missing.

        Raises:
            BankError: the index is damaged or of another format.
        """
        self.folder = folder
        (folder / TEMPLATES_FOLDER).mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._stamp: tuple[int, int, int] | None = None
        self._listing = BankListing(templates=(), classes=(), version=_version((), ()))
        self.snapshot()

    def snapshot(self) -> BankListing:
        """Templates, classes and version, as one consistent state."""
        with self._lock:
            stamp = self._index_stamp()
            if stamp != self._stamp:
                self._listing = self._read_index()
                self._stamp = stamp
            return self._listing

    def load(self, info: TemplateInfo) -> Template:
        """Read a template's pixels.

        Raises:
            BankError: its files are missing or damaged.
        """
        folder = self._template_folder(info.template_id)
        try:
            image, labels = read_image(folder, "image"), read_image(folder, "labels")
        except (OSError, ValueError) as error:
            raise BankError(
                f"bank: template {info.template_id} cannot be read: {error}; "
                "delete it and add it again"
            ) from error
        if labels.shape != image.shape[:2]:
            raise BankError(f"bank: template {info.template_id}: image and labels differ in size")
        return Template(info, image, labels.astype(np.uint8))

    def add(
        self,
        image: AnyArray,
        labels: AnyArray,
        classes: Iterable[ClassDefinition],
        *,
        name: str = "",
    ) -> tuple[TemplateInfo, bool]:
        """Add a template; adding the same content again changes nothing.

        Args:
            image: (H, W) of any real dtype, or (H, W, 3) uint8.
            labels: (H, W) integers; i is the i-th of ``classes``.
            classes: names and descriptions; those without a labelled pixel are left out of
                the template, and stay known to the bank.
            name: free name, for people.

        Returns:
            The template, and whether it is new.

        Raises:
            InvalidRequestError: names the field and what was expected.
        """
        definitions = tuple(classes)
        _check_classes(definitions)
        _check_labels(image, labels, len(definitions))
        _check_length("name", name, MAX_NAME_LENGTH)
        storable = to_storable(image)
        present = [i for i in range(1, len(definitions) + 1) if bool((labels == i).any())]
        compact = np.zeros(labels.shape, dtype=np.uint8)
        for new, old in enumerate(present, start=1):
            compact[labels == old] = new
        class_names = tuple(definitions[i - 1].name for i in present)
        info = TemplateInfo(
            template_id=_template_id(storable, compact, class_names),
            name=name,
            height=labels.shape[0],
            width=labels.shape[1],
            class_names=class_names,
        )
        with self._writing():
            current = self._read_index()
            created = all(t.template_id != info.template_id for t in current.templates)
            templates = current.templates
            if created:
                self._write_template(info, storable, compact)
                templates = (*templates, info)
            self._write_index(templates, _merge(current.classes, definitions))
        return info, created

    def delete(self, template_id: str) -> str:
        """Delete a template; returns the new version.

        Raises:
            NotFoundError: no template has that id.
        """
        with self._writing():
            current = self._read_index()
            kept = tuple(t for t in current.templates if t.template_id != template_id)
            if len(kept) == len(current.templates):
                raise NotFoundError(
                    f"template_id: no template {template_id!r}; `vessa templates list` shows all",
                    field="template_id",
                )
            used = {name for t in kept for name in t.class_names}
            classes = tuple(c for c in current.classes if c.name in used)
            version = self._write_index(kept, classes)
            self._remove_orphans(kept)
        return version

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._lock, (self.folder / LOCK_FILE).open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def _template_folder(self, template_id: str) -> Path:
        return self.folder / TEMPLATES_FOLDER / template_id

    def _write_template(self, info: TemplateInfo, image: AnyArray, labels: UInt8Array) -> None:
        parent = self.folder / TEMPLATES_FOLDER
        target = self._template_folder(info.template_id)
        if target.exists():  # left by a crash before the index was written
            shutil.rmtree(target)
        scratch = Path(tempfile.mkdtemp(prefix=".new-", dir=parent))
        try:
            write_image(scratch, "image", image)
            write_labels(scratch, labels)
            sync_folder(scratch)
            os.replace(scratch, target)
            sync_folder(parent)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise

    def _write_index(
        self, templates: tuple[TemplateInfo, ...], classes: tuple[ClassDefinition, ...]
    ) -> str:
        version = _version(templates, classes)
        content = {
            "format": FORMAT_VERSION,
            "version": version,
            "classes": [dataclasses.asdict(c) for c in classes],
            "templates": [dataclasses.asdict(t) for t in templates],
        }
        partial = self.folder / (INDEX_FILE + ".partial")
        with partial.open("w") as stream:
            json.dump(content, stream, indent=2)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, self.folder / INDEX_FILE)
        sync_folder(self.folder)
        return version

    def _read_index(self) -> BankListing:
        file = self.folder / INDEX_FILE
        if not file.exists():
            return BankListing(templates=(), classes=(), version=_version((), ()))
        try:
            content = json.loads(file.read_text())
            if content["format"] != FORMAT_VERSION:
                raise ValueError(f"format {content['format']}, expected {FORMAT_VERSION}")
            classes = tuple(ClassDefinition(**c) for c in content["classes"])
            templates = tuple(
                TemplateInfo(**{**t, "class_names": tuple(t["class_names"])})
                for t in content["templates"]
            )
        except (ValueError, KeyError, TypeError) as error:
            raise BankError(f"bank: {file} is damaged ({error}); restore it from a copy") from error
        return BankListing(
            templates=templates, classes=classes, version=_version(templates, classes)
        )

    def _remove_orphans(self, kept: tuple[TemplateInfo, ...]) -> None:
        names = {t.template_id for t in kept}
        for folder in (self.folder / TEMPLATES_FOLDER).iterdir():
            if folder.name not in names:
                shutil.rmtree(folder, ignore_errors=True)

    def _index_stamp(self) -> tuple[int, int, int] | None:
        try:
            stat = (self.folder / INDEX_FILE).stat()
        except FileNotFoundError:
            return None
        return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _template_id(image: AnyArray, labels: UInt8Array, class_names: tuple[str, ...]) -> str:
    text = "\0".join((image_digest(image), image_digest(labels), *class_names))
    return hashlib.sha256(text.encode()).hexdigest()[:ID_DIGITS]


def _version(templates: tuple[TemplateInfo, ...], classes: tuple[ClassDefinition, ...]) -> str:
    content = json.dumps(
        [sorted(t.template_id for t in templates), [dataclasses.astuple(c) for c in classes]]
    )
    return hashlib.sha256(content.encode()).hexdigest()[:ID_DIGITS]


def _merge(
    known: tuple[ClassDefinition, ...], added: tuple[ClassDefinition, ...]
) -> tuple[ClassDefinition, ...]:
    """Known classes keep their place; a new description replaces the old one."""
    merged = {c.name: c for c in known}
    for definition in added:
        if definition.name not in merged or definition.description:
            merged[definition.name] = definition
    return tuple(merged.values())


def _check_classes(definitions: tuple[ClassDefinition, ...]) -> None:
    names = [c.name for c in definitions]
    if not names or len(set(names)) != len(names) or not all(n.strip() for n in names):
        raise InvalidRequestError(
            f"classes: {names}, expected one or more different, non-empty names", field="classes"
        )
    for definition in definitions:
        _check_length("classes.name", definition.name, MAX_NAME_LENGTH)
        _check_length("classes.description", definition.description, MAX_DESCRIPTION_LENGTH)


def _check_length(field: str, text: str, limit: int) -> None:
    if len(text) > limit:
        raise InvalidRequestError(
            f"{field}: {len(text)} characters, expected at most {limit}", field=field
        )


def _check_labels(image: AnyArray, labels: AnyArray, num_classes: int) -> None:
    if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
        raise InvalidRequestError(
            f"label_map: shape {labels.shape} of {labels.dtype}, expected (H, W) integers",
            field="label_map",
        )
    if labels.shape != image.shape[:2]:
        raise InvalidRequestError(
            f"label_map: {labels.shape[0]} x {labels.shape[1]}, expected the image's size, "
            f"{image.shape[0]} x {image.shape[1]}",
            field="label_map",
        )
    if not labels.any():
        raise InvalidRequestError(
            "label_map: no pixel is labelled, expected at least one pixel of a class",
            field="label_map",
        )
    if labels.min() < 0 or labels.max() > num_classes:
        raise InvalidRequestError(
            f"label_map: labels {labels.min()}..{labels.max()}, expected 0..{num_classes}, "
            "one for each of `classes`",
            field="label_map",
        )
