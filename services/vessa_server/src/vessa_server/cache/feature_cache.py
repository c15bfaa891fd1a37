"""The interface, its key and value format, and the cache that keeps nothing.

A value is ``VESSA1``, the sha256 of the rest, and safetensors bytes. A corrupt, truncated
or missing value is a miss, is counted, and is computed again; it is never an error.
"""

from __future__ import annotations

import hashlib
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable

import structlog
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

log = structlog.get_logger(__name__)
MAGIC = b"VESSA1"
DIGEST_BYTES = 32
# A store that fails does so at every request; its owner reads of it once in a while.
WARNING_SECONDS = 60.0
Tensors = dict[str, Tensor]


def cache_key(kind: str, parts: Iterable[str]) -> str:
    """sha256 over the kind of value and everything that it depends on."""
    state = hashlib.sha256(kind.encode())
    for part in parts:
        state.update(len(part).to_bytes(8, "little") + part.encode())
    return state.hexdigest()


def encode(tensors: Tensors) -> bytes:
    """Tensors to bytes with a checksum."""
    body = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    return MAGIC + hashlib.sha256(body).digest() + body


def decode(data: bytes) -> Tensors | None:
    """Inverse of :func:`encode`; None where the data is damaged."""
    start = len(MAGIC) + DIGEST_BYTES
    body = data[start:]
    if data[: len(MAGIC)] != MAGIC or hashlib.sha256(body).digest() != data[len(MAGIC) : start]:
        return None
    try:
        return load(body)
    except SafetensorError:
        return None


class FeatureCache(ABC):
    """Tensors by key. Thread-safe. ``counts`` has hit, miss, corrupt, error."""

    backend: str

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._counting = threading.Lock()
        self._quiet_until = 0.0

    def get(self, key: str) -> Tensors | None:
        """Tensors under ``key``, or None."""
        data = self._read(key)
        if data is None:
            self._count("miss")
            return None
        tensors = decode(data)
        if tensors is None:
            self._count("corrupt")
            self._count("miss")
            self._remove(key)
            return None
        self._count("hit")
        return tensors

    def put(self, key: str, tensors: Tensors) -> None:
        """Keep tensors under ``key``, as far as the store can."""
        self._write(key, encode(tensors))

    @abstractmethod
    def close(self) -> None:
        """Release connections."""

    @abstractmethod
    def _read(self, key: str) -> bytes | None: ...

    @abstractmethod
    def _write(self, key: str, data: bytes) -> None: ...

    @abstractmethod
    def _remove(self, key: str) -> None: ...

    def _count(self, event: str) -> None:
        with self._counting:
            self.counts[event] += 1

    def _report_failure(self, event: str, **details: str) -> None:
        """Count a failure of the store, and warn of it where that was not done lately."""
        self._count("error")
        with self._counting:
            if time.monotonic() < self._quiet_until:
                return
            self._quiet_until = time.monotonic() + WARNING_SECONDS
        log.warning(event, **details)


class NoCache(FeatureCache):
    """Keeps nothing."""

    backend = "none"

    def close(self) -> None:
        """Nothing to release."""

    def _read(self, key: str) -> bytes | None:
        return None

    def _write(self, key: str, data: bytes) -> None:
        pass

    def _remove(self, key: str) -> None:
        pass
