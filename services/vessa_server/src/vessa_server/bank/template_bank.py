"""The template bank: annotated images on disk, versioned by content.

Layout, readable by people::

    index.json                version, classes, templates
    templates/<template id>/  image, labels and record of a template
    banks/<name>/             further banks, each with this layout

A template's folder is written, synced and renamed into place before the index names it; the
index is replaced atomically, and that is the moment of a change. A crash leaves the old index
or the new one. Writers exclude each other by a file lock, which they wait for a bounded time;
readers wait for nobody.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from vessa_client import (
    AnyArray,
    BankListing,
    ClassDefinition,
    InvalidRequestError,
    NotFoundError,
    TemplateInfo,
)
from vessa_client._types import Window
from vessa_server.bank import folders
from vessa_server.bank.errors import BankError, BankFullError, as_bank_errors
from vessa_server.bank.folders import TemplateFolders, encode_files
from vessa_server.bank.index import (
    INDEX_FILE,
    Index,
    Stamp,
    merge_classes,
    read_index,
    stamp_of,
    way_out,
    write_index,
)
from vessa_server.bank.lock import exclusive
from vessa_server.bank.rebuild import rebuild_index
from vessa_server.bank.template import (
    MAX_DESCRIPTION_LENGTH,
    PreparedTemplate,
    Template,
    TemplateEntry,
    check_text,
    prepare,
)

__all__ = ["BankError", "BankFullError", "Template", "TemplateBank", "TemplateEntry"]

log = structlog.get_logger(__name__)
LOCK_FILE = ".lock"
LOCK_SECONDS = 30.0
# A file system counts time in steps, so that soon after a change a second one need not show.
_SETTLED_SECONDS = 2.0


@dataclass(frozen=True)
class _State:
    """The index as it was last read; ``settled`` when its stamp tells it from every other."""

    listing: BankListing
    stamp: Stamp | None
    settled: bool


class TemplateBank:
    """Durable store of templates. Thread-safe; several processes may share the folder."""

    def __init__(self, folder: Path, *, lock_seconds: float = LOCK_SECONDS) -> None:
        """Open the bank in ``folder``, which is created where it is missing.

        A folder that cannot be written is opened for reading.

        Args:
            folder: of the bank.
            lock_seconds: how long a change waits for those of others.

        Raises:
            BankError: the folder cannot be made, or the index is damaged, lost or of another
                format.
        """
        self.folder = folder
        self.lock_seconds = lock_seconds
        self._folders = TemplateFolders(folder)
        if not folder.is_dir():
            with as_bank_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
        self._state = _State(Index().listing, None, settled=False)
        self._tidy_at = math.inf
        self.snapshot()
        self._tidy()

    @staticmethod
    def rebuild(folder: Path, class_names: Sequence[str] = ()) -> BankListing:
        """Make a new index from the templates' folders; that of now is kept beside it.

        Args:
            folder: of the bank.
            class_names: names of classes, for templates of older versions, which do not
                record theirs. A name is used only where it fits the template's id.

        Raises:
            BankError: names the templates that are damaged or whose classes are not known;
                nothing was changed.
        """
        if not TemplateFolders(folder).parent.is_dir():
            raise BankError(f"bank: {folder} has no templates, expected the folder of a bank")
        with as_bank_errors(folder), exclusive(folder / LOCK_FILE, LOCK_SECONDS):
            return rebuild_index(folder, class_names).listing

    @property
    def last_good(self) -> BankListing:
        """The newest listing that could be read; never fails."""
        return self._state.listing

    def snapshot(self) -> BankListing:
        """Templates, classes and version, as one consistent state.

        Its templates can be loaded for minutes, whatever is deleted meanwhile.

        Raises:
            BankError: the index is damaged or lost.
        """
        if time.monotonic() > self._tidy_at:
            self._tidy()
        state = self._state
        if not state.settled or stamp_of(self.folder) != state.stamp:
            self._read_index()
        return self._state.listing

    def load(self, info: TemplateInfo) -> Template:
        """Read a template's pixels.

        Raises:
            BankError: its files are missing or damaged.
        """
        return self._folders.read(info)

    def find(self, template_id: str) -> Template:
        """The template of that id, with its pixels.

        Raises:
            NotFoundError: no template has that id.
            BankError: its files are missing or damaged.
        """
        for info in self.snapshot().templates:
            if info.template_id == template_id:
                return self.load(info)
        raise _unknown(template_id)

    def add(
        self,
        image: AnyArray,
        labels: AnyArray,
        classes: Iterable[ClassDefinition],
        *,
        name: str = "",
        window: Window | None = None,
    ) -> tuple[TemplateInfo, bool]:
        """Add a template; adding the same content again changes nothing.

        The arguments are those of :class:`TemplateEntry`. A description that comes with a new
        template replaces that of a known class.

        Returns:
            The template, and whether it is new.

        Raises:
            InvalidRequestError: names the field and what was expected.
            BankFullError: the disk is full.
            BankError: the bank cannot be changed.
        """
        entry = TemplateEntry(image=image, labels=labels, classes=classes, name=name, window=window)
        return self._add([prepare(entry)])[0]

    def add_many(self, entries: Iterable[TemplateEntry]) -> tuple[tuple[TemplateInfo, bool], ...]:
        """Add several templates, all or none; see :meth:`add`.

        Raises:
            InvalidRequestError: names the entry, its field and what was expected.
            BankFullError: the disk is full.
            BankError: the bank cannot be changed.
        """
        prepared = []
        for position, entry in enumerate(entries):
            try:
                prepared.append(prepare(entry))
            except InvalidRequestError as error:
                at = f"entries[{position}]."
                raise InvalidRequestError(at + error.message, field=at + error.field) from error
        return self._add(prepared)

    def delete(self, template_id: str) -> str:
        """Delete a template; returns the new version.

        Raises:
            NotFoundError: no template has that id.
            BankError: the bank cannot be changed.
        """
        with self._changing() as current:
            if template_id not in current.ids:
                raise _unknown(template_id)
            kept = tuple(t for t in current.templates if t.template_id != template_id)
            used = {name for t in kept for name in t.class_names}
            classes = tuple(c for c in current.classes if c.name in used)
            self._folders.retire(template_id)
            self._tidy_later()
            return self._commit(current, Index(kept, classes))

    def describe(self, class_name: str, description: str) -> str:
        """Replace the description of a class; returns the new version.

        Raises:
            InvalidRequestError: the description is too long or has control characters.
            NotFoundError: no template shows that class.
            BankError: the bank cannot be changed.
        """
        check_text("description", description, MAX_DESCRIPTION_LENGTH)
        with self._changing() as current:
            known = [c.name for c in current.listing.classes]
            if class_name not in known:
                raise NotFoundError(
                    f"class_name: {class_name!r}, expected one of {', '.join(known) or 'none yet'}",
                    field="class_name",
                )
            classes = tuple(
                ClassDefinition(name=class_name, description=description)
                if c.name == class_name
                else c
                for c in current.classes
            )
            return self._commit(current, Index(current.templates, classes))

    def _add(self, prepared: Sequence[PreparedTemplate]) -> tuple[tuple[TemplateInfo, bool], ...]:
        # Encoding takes longest; others need not wait for it.
        held = {t.template_id for t in self.snapshot().templates}
        files = {
            p.info.template_id: encode_files(p.template)
            for p in prepared
            if p.info.template_id not in held
        }
        with self._changing() as current:
            known = {t.template_id: t for t in current.templates}
            classes = current.classes
            new: list[PreparedTemplate] = []
            results = []
            for item in prepared:
                created = item.info.template_id not in known
                if created:
                    known[item.info.template_id] = item.info
                    classes = merge_classes(classes, item.definitions)
                    new.append(item)
                results.append((known[item.info.template_id], created))
            if not new:
                return tuple(results)
            written: list[TemplateInfo] = []
            try:
                for item in new:
                    content = files.get(item.info.template_id) or encode_files(item.template)
                    self._folders.put(item.info, classes, content)
                    written.append(item.info)
                self._commit(current, Index(tuple(known.values()), classes))
            except BaseException:
                self._withdraw(written)
                raise
        return tuple(results)

    @contextmanager
    def _changing(self) -> Iterator[Index]:
        """Hold the bank alone, as it is on disk; what fails inside leaves it as it was."""
        self.snapshot()  # where the bank is lost, nothing is made in its place
        with as_bank_errors(self.folder):
            self._folders.parent.mkdir(parents=True, exist_ok=True)
            with exclusive(self.folder / LOCK_FILE, self.lock_seconds):
                current, stamp = self._read_index()
                if stamp is None:  # from now on, templates without an index are a damage
                    write_index(self.folder, current)
                self._folders.tidy(current.ids)
                try:
                    yield current
                except BaseException:
                    with suppress(BankError):
                        self._folders.tidy(read_index(self.folder)[0].ids)
                    raise

    def _commit(self, current: Index, changed: Index) -> str:
        """Write the index; returns the new version."""
        write_index(self.folder, changed)
        listing = changed.listing
        self._state = _State(listing, stamp_of(self.folder), settled=False)
        redefined = frozenset(c.name for c in set(changed.classes) - set(current.classes))
        self._write_records(changed, redefined)
        return listing.version

    def _write_records(self, index: Index, changed: frozenset[str] = frozenset()) -> None:
        try:
            self._folders.write_records(index, changed)
        except OSError as error:  # only a rebuild needs them; the next change writes them
            log.warning("bank.record_not_written", folder=str(self.folder), error=str(error))

    def _withdraw(self, written: Sequence[TemplateInfo]) -> None:
        """Remove the folders of new templates, unless the index was written after all."""
        with suppress(BankError):
            named = read_index(self.folder)[0].ids
            for info in written:
                if info.template_id not in named:
                    self._folders.withdraw(info.template_id)

    def _read_index(self) -> tuple[Index, Stamp | None]:
        index, stamp = read_index(self.folder)
        if stamp is None and self._state.stamp is not None:
            raise BankError(
                f"bank: {self.folder / INDEX_FILE} is gone, it was there before; "
                f"{way_out(self.folder)}"
            )
        settled = stamp is not None and time.time() - stamp[1] / 1e9 > _SETTLED_SECONDS
        self._state = _State(index.listing, stamp, settled)
        return index, stamp

    def _tidy(self) -> None:
        """Remove leftovers, unless the folder is read-only, or being changed."""
        if self._state.stamp is None:
            return
        self._tidy_later()
        with suppress(BankError, OSError), exclusive(self.folder / LOCK_FILE, 0):
            index = self._read_index()[0]
            if not self._folders.tidy(index.ids):
                self._tidy_at = math.inf
            self._write_records(index)

    def _tidy_later(self) -> None:
        """See to it that a deleted template leaves the disk, whether or not others change."""
        self._tidy_at = time.monotonic() + folders.KEEP_DELETED_SECONDS


def _unknown(template_id: str) -> NotFoundError:
    return NotFoundError(
        f"template_id: no template {template_id[:80]!r}; `vessa templates list` shows all",
        field="template_id",
    )
