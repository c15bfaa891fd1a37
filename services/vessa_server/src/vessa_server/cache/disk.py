"""The embedded cache: files in a folder, least recently used removed first."""

from __future__ import annotations

import os
import tempfile
import threading
from collections import OrderedDict
from pathlib import Path

import structlog

from vessa_server.cache.feature_cache import FeatureCache

log = structlog.get_logger(__name__)
SUFFIX = ".vessa"


class DiskCache(FeatureCache):
    """Files named by key. Writes are atomic; an unwritable folder is slower, never wrong."""

    backend = "disk"

    def __init__(self, folder: Path, max_bytes: int) -> None:
        super().__init__()
        self.folder = folder
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._sizes: OrderedDict[str, int] = OrderedDict()
        folder.mkdir(parents=True, exist_ok=True)
        found = sorted(folder.glob("*/*" + SUFFIX), key=lambda file: file.stat().st_mtime_ns)
        for file in found:
            self._sizes[file.stem] = file.stat().st_size

    def close(self) -> None:
        """Nothing to release."""

    def _file(self, key: str) -> Path:
        return self.folder / key[:2] / (key + SUFFIX)

    def _read(self, key: str) -> bytes | None:
        try:
            data = self._file(key).read_bytes()
            os.utime(self._file(key))
        except FileNotFoundError:
            return None
        except OSError as error:
            self._failed("read", error)
            return None
        with self._lock:
            self._sizes[key] = len(data)
            self._sizes.move_to_end(key)
        return data

    def _write(self, key: str, data: bytes) -> None:
        file = self._file(key)
        try:
            file.parent.mkdir(exist_ok=True)
            descriptor, partial = tempfile.mkstemp(dir=file.parent)
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(partial, file)
        except OSError as error:
            self._failed("write", error)
            return
        with self._lock:
            self._sizes[key] = len(data)
            self._sizes.move_to_end(key)
            over = sum(self._sizes.values()) - self.max_bytes
            while over > 0 and len(self._sizes) > 1:
                oldest, size = self._sizes.popitem(last=False)
                self._file(oldest).unlink(missing_ok=True)
                over -= size

    def _remove(self, key: str) -> None:
        self._file(key).unlink(missing_ok=True)
        with self._lock:
            self._sizes.pop(key, None)

    def _failed(self, action: str, error: OSError) -> None:
        self._count("error")
        log.warning("cache.disk_failed", action=action, folder=str(self.folder), error=str(error))
