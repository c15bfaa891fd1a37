"""Servers of VESSA on the GPU: one for each annotated subset, shared by the runs that have it."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from ssl_processes import RunError, Server, served
from ssl_runs import fill_bank
from ssl_tasks import Task
from vessa_client import VessaClient, VessaError

# Of the environment that servers start in: looks of several runs in one forward, and no run is
# turned away.
SETTINGS = {"VESSA_BATCH_MODE": "fused", "VESSA_MAX_QUEUE": "1024"}


class Servers:
    """All start at once."""

    def __init__(self, task: Task, subsets: Iterable[str], folder: Path, device: str) -> None:
        self.task, self.folder, self.device = task, folder, device
        self._stack = ExitStack()
        names = list(dict.fromkeys(subsets))
        self._pool = ThreadPoolExecutor(max(1, len(names)))
        self._starting = {name: self._pool.submit(self._start, name) for name in names}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=True)
        self._stack.close()

    @property
    def starting(self) -> bool:
        """Whether one is neither up nor has failed."""
        return not all(server.done() for server in self._starting.values())

    def address(self, subset: str) -> str | None:
        """Of a subset's server; None while it starts.

        Raises:
            RunError: it did not start, or ended.
        """
        found: Future[Server] = self._starting[subset]
        if not found.done():
            return None
        server = found.result()
        if server.process.ended:
            server.process.check()
            raise RunError(f"server of subset {subset}: it stopped")
        return server.address

    def _start(self, subset: str) -> Server:
        try:
            return self._started(subset)
        except (VessaError, OSError) as error:
            raise RunError(f"server of subset {subset}: {error}") from error

    def _started(self, subset: str) -> Server:
        fill = partial(fill_bank, self.task, subset)
        server = self._stack.enter_context(served(self.folder / subset, fill))
        with VessaClient(server.address) as client:
            info = client.info()
        print(
            f"  server of subset {subset}: {info.device}, {info.dtype}, "
            f"{info.device_memory_bytes >> 20} MiB, at {server.address}",
            flush=True,
        )
        if not info.device.startswith(self.device):
            raise RunError(f"server of subset {subset}: on {info.device}, expected {self.device}")
        return server
