"""What the model's instance keeps for its clients: handles by name, bounded by bytes."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Iterable

from vessa_server.runtime.protocol import Handle, HandleLostError, RuntimeUnavailableError


class HandleStore:
    """Handles by random names, the least recently used removed first. One thread.

    Clients release what they do not need; one that died does not, and its features make room
    when others need it. Names are random: after a restart an old one names nothing, and no client
    can guess another's.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._handles: OrderedDict[str, tuple[Handle, int]] = OrderedDict()
        self._bytes = 0

    @property
    def bytes(self) -> int:
        """Bytes held now."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._handles)

    def put(self, handle: Handle) -> tuple[str, int]:
        """Keep a handle; returns its name and bytes.

        Raises:
            RuntimeUnavailableError: it is larger than all that may be kept.
        """
        size = handle.nbytes
        if size > self.max_bytes:
            raise RuntimeUnavailableError(
                f"feature_bytes: {size} bytes of features, at most {self.max_bytes} are kept on "
                "the tritonserver; raise VESSA_FEATURE_BYTES there",
                retry_after=1.0,
            )
        while self._bytes + size > self.max_bytes:
            _, (_, removed) = self._handles.popitem(last=False)
            self._bytes -= removed
        name = secrets.token_hex(16)
        self._handles[name] = handle, size
        self._bytes += size
        return name, size

    def get(self, name: str) -> Handle:
        """The handle, which becomes the most recently used.

        Raises:
            HandleLostError: it is not here (any more).
        """
        entry = self._handles.get(name)
        if entry is None:
            raise HandleLostError("the tritonserver does not hold a handle (any more)")
        self._handles.move_to_end(name)
        return entry[0]

    def release(self, names: Iterable[str]) -> None:
        """Forget handles; those that are not here are none of a client's worries."""
        for name in names:
            entry = self._handles.pop(name, None)
            if entry is not None:
                self._bytes -= entry[1]
