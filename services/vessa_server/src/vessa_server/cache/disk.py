"""The embedded cache: files in a folder, least recently used removed first."""

from __future__ import annotations

import os
import re
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from vessa_server.cache.feature_cache import FeatureCache

SUFFIX = ".vessa"
# mkstemp's own; others than ours are never in folders of two hexadecimal digits.
PARTIAL_PREFIX = "tmp"
PARTIAL_LEFT_SECONDS = 3600.0
_SHARD = re.compile(r"[0-9a-f]{2}")
# Other processes write to the folder too: its sizes are read anew after this share of
# `max_bytes` was written.
_RESCAN_SHARE = 1 / 16


class DiskCache(FeatureCache):
    """Files named by key. Writes are atomic; an unwritable folder is slower, never wrong.

    Several processes may share the folder. It is made again where it was removed.
    """

    backend = "disk"

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Open the cache in ``folder``, which is created where it is missing.

        Raises:
            OSError: it is no folder, and none can be made.
        """
        super().__init__()
        self.folder = folder
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._total = 0
        self._unscanned = 0
        folder.mkdir(parents=True, exist_ok=True)
        self._scan()

    def close(self) -> None:
        """Nothing to release."""

    def _file(self, key: str) -> Path:
        return self.folder / key[:2] / (key + SUFFIX)

    def _read(self, key: str) -> bytes | None:
        file = self._file(key)
        try:
            data = file.read_bytes()
        except FileNotFoundError:
            with self._lock:
                self._forget(key)
            return None
        except OSError as error:
            self._failed("read", error)
            return None
        with suppress(OSError):  # read-only, or just removed: the value is as good
            os.utime(file)
        with self._lock:
            self._account(key, len(data))
        return data

    def _write(self, key: str, data: bytes) -> None:
        if len(data) > self.max_bytes:
            return
        try:
            self._replace(self._file(key), data)
        except OSError as error:
            self._failed("write", error)
            return
        with self._lock:
            self._account(key, len(data))
            self._unscanned += len(data)
            if self._unscanned > self.max_bytes * _RESCAN_SHARE:
                self._scan()
            removed = self._evict()
        for oldest in removed:
            self._unlink(oldest)

    def _remove(self, key: str) -> None:
        self._unlink(key)
        with self._lock:
            self._forget(key)

    def _replace(self, file: Path, data: bytes) -> None:
        """Write a file at once or not at all; a failure leaves nothing behind.

        It is not synced: what a power cut spoils is a miss by its checksum.
        """
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, partial = tempfile.mkstemp(prefix=PARTIAL_PREFIX, dir=file.parent)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
            os.replace(partial, file)
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise

    def _unlink(self, key: str) -> None:
        try:
            self._file(key).unlink(missing_ok=True)
        except OSError as error:
            self._failed("remove", error)

    def _account(self, key: str, size: int) -> None:
        """Count a file as the one that was used last."""
        self._forget(key)
        self._sizes[key] = size
        self._total += size

    def _forget(self, key: str) -> None:
        self._total -= self._sizes.pop(key, 0)

    def _evict(self) -> list[str]:
        """Forget what is too much; returns keys of files to remove."""
        removed = []
        while self._total > self.max_bytes:
            key, size = self._sizes.popitem(last=False)
            self._total -= size
            removed.append(key)
        return removed

    def _scan(self) -> None:
        """Read the sizes of all files, in order of their last use; remove old leftovers."""
        # The file system's clock has steps; within one, what we know of the order counts.
        order = {key: position for position, key in enumerate(self._sizes)}
        leftover = time.time() - PARTIAL_LEFT_SECONDS
        found = []
        for entry in _entries(self.folder):
            with suppress(OSError):  # another process may remove it as we go
                stat = entry.stat()
                if entry.name.endswith(SUFFIX):
                    key = entry.name.removesuffix(SUFFIX)
                    found.append((stat.st_mtime_ns, order.get(key, -1), key, stat.st_size))
                elif entry.name.startswith(PARTIAL_PREFIX) and stat.st_mtime < leftover:
                    os.unlink(entry.path)
        self._sizes = OrderedDict((key, size) for _, _, key, size in sorted(found))
        self._total = sum(self._sizes.values())
        self._unscanned = 0

    def _failed(self, action: str, error: OSError) -> None:
        self._report_failure(
            "cache.disk_failed",
            action=action,
            folder=str(self.folder),
            error=str(error),
            effect="features are computed again instead of read; results stay the same",
            fix="free space, or set VESSA_CACHE to a folder that can be written, or to none",
        )


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Files of the cache; nothing where a folder is gone or cannot be read."""
    for shard in _directory(folder):
        if _SHARD.fullmatch(shard.name):
            yield from _directory(Path(shard.path))


def _directory(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []
