"""Memory that this process and a tritonserver on the same machine both see.

Measured (benchmarks/triton_overhead.py, on two busy cores), a canvas of 1024 x 1024 in float32 goes
there in 3 ms in place of 14. What `nano` sends, some 100 KB a tensor, gains nothing: it stays in
the message.
"""

from __future__ import annotations

import contextlib
import weakref
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

log = structlog.get_logger(__name__)
MIN_BYTES = 256 * 1024
SMALLEST_REGION = 4 * 1024 * 1024


class Region:
    """A block of memory that a tritonserver maps, too."""

    def __init__(self, client: InferenceServerClient, nbytes: int) -> None:
        """Make a block and have it mapped.

        Raises:
            OSError: there is no room for it.
            InferenceServerException: the tritonserver cannot map it.
        """
        self._client = client
        self._memory = SharedMemory(create=True, size=nbytes)
        self.name, self.nbytes = self._memory.name.lstrip("/"), nbytes
        # At exit, too: the system keeps what nobody removes.
        self._remove = weakref.finalize(self, _remove, self._memory)
        client.register_system_shared_memory(self.name, f"/{self.name}", nbytes)

    def write(self, array: npt.NDArray[Any], offset: int) -> None:
        """Copy an array into the block."""
        np.ndarray(array.shape, array.dtype, self._memory.buf, offset)[...] = array

    def read(self, shape: tuple[int, ...], dtype: type) -> npt.NDArray[Any]:
        """A copy of the array that begins the block."""
        return np.ndarray(shape, dtype, self._memory.buf).copy()

    def close(self) -> None:
        """Remove the block; a tritonserver that has gone has no mapping of it either."""
        with contextlib.suppress(InferenceServerException):
            self._client.unregister_system_shared_memory(self.name)
        self._remove()


class Regions:
    """The blocks of one client, which grow with what it sends and gets. One thread."""

    def __init__(self, client: InferenceServerClient, *, offered: bool) -> None:
        """Begin without blocks; ``offered`` says whether there may be any."""
        self._client = client
        self._offered = offered
        self._regions: dict[str, Region] = {}

    def get(self, name: str, nbytes: int) -> Region | None:
        """A block of at least ``nbytes``; None where that is no gain, or cannot be.

        Raises:
            InferenceServerException: the tritonserver is away.
        """
        if not self._offered or nbytes < MIN_BYTES:
            return None
        held = self._regions.get(name)
        if held is not None and held.nbytes >= nbytes:
            return held
        if held is not None:
            self._regions.pop(name).close()
        try:
            region = Region(self._client, max(SMALLEST_REGION, 1 << (nbytes - 1).bit_length()))
        except OSError as error:
            self._give_up(str(error))
            return None
        except InferenceServerException as error:
            if error.status() == "StatusCode.UNAVAILABLE":
                raise
            self._give_up(error.message())
            return None
        self._regions[name] = region
        return region

    def close(self) -> None:
        """Remove all blocks, such as those that a request which was given up may still write."""
        while self._regions:
            self._regions.popitem()[1].close()

    def _give_up(self, reason: str) -> None:
        """Send everything in messages from now on: the tritonserver may be in a container."""
        self._offered = False
        log.info("triton.no_shared_memory", reason=reason, effect="tensors go over gRPC")


def _remove(memory: SharedMemory) -> None:
    memory.close()
    memory.unlink()
