"""Dynamic batching: a bounded queue in front of the engine.

Requests that arrive while the engine works form the next batch, at most ``max_batch`` of
them; an idle engine waits ``max_wait_ms`` for company. The engine runs in one thread of its
own, so the event loop stays free.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import structlog

from vessa_client import (
    OverloadedError,
    SegmentationRequest,
    SegmentationResult,
    UnavailableError,
    VessaError,
)
from vessa_server.engine import VessaEngine
from vessa_server.serving.metrics import Metrics

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class _Waiting:
    request: SegmentationRequest
    future: asyncio.Future[SegmentationResult | VessaError]
    since: float


class Batcher:
    """Queues requests and runs them through the engine in batches."""

    def __init__(
        self,
        engine: VessaEngine,
        metrics: Metrics,
        *,
        max_batch: int,
        max_wait_ms: float,
        max_queue: int,
    ) -> None:
        self.engine = engine
        self.metrics = metrics
        self.max_batch = max_batch
        self.max_wait = max_wait_ms / 1000
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue(max_queue)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._runner: asyncio.Task[None] | None = None
        self._in_flight = 0
        self._closing = False
        # Recent seconds of one request, for the retry delay of refused ones.
        self._pace = 0.05

    def start(self) -> None:
        """Begin to serve; call in the event loop."""
        self._runner = asyncio.create_task(self._run(), name="batcher")

    async def submit(self, request: SegmentationRequest) -> SegmentationResult:
        """Queue a request and wait for its result.

        Raises:
            OverloadedError: the queue is full; carries when to try again.
            UnavailableError: the server is stopping.
            VessaError: what the engine raised for this request.
        """
        if self._closing:
            raise UnavailableError("the server is stopping", request_id=request.request_id)
        future: asyncio.Future[SegmentationResult | VessaError] = (
            asyncio.get_running_loop().create_future()
        )
        try:
            self._queue.put_nowait(_Waiting(request, future, time.perf_counter()))
        except asyncio.QueueFull:
            wait = max(0.05, self._pace * self._queue.qsize())
            raise OverloadedError(
                f"queue: full with {self._queue.qsize()} requests, try again in {wait:.2f} s",
                request_id=request.request_id,
                retry_after=wait,
            ) from None
        self.metrics.queue_depth.set(self._queue.qsize())
        outcome = await future
        if isinstance(outcome, VessaError):
            raise outcome
        return outcome

    async def drain(self, timeout: float) -> None:
        """Refuse new requests, finish those accepted, stop."""
        self._closing = True
        deadline = time.monotonic() + timeout
        while (self._queue.qsize() or self._in_flight) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        if self._runner is not None:
            self._runner.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._runner
        while not self._queue.empty():
            waiting = self._queue.get_nowait()
            _settle(waiting.future, UnavailableError("the server has stopped"))
        self._executor.shutdown(wait=True)

    async def _run(self) -> None:
        while True:
            batch = await self._collect()
            self._in_flight = len(batch)
            try:
                await self._process([w for w in batch if not w.future.cancelled()])
            finally:
                self._in_flight = 0

    async def _collect(self) -> list[_Waiting]:
        batch = [await self._queue.get()]
        self._in_flight = 1
        closes = asyncio.get_running_loop().time() + self.max_wait
        while len(batch) < self.max_batch:
            with contextlib.suppress(asyncio.QueueEmpty):
                batch.append(self._queue.get_nowait())
                continue
            try:
                async with asyncio.timeout_at(closes):
                    batch.append(await self._queue.get())
            except TimeoutError:
                break
        self.metrics.queue_depth.set(self._queue.qsize())
        return batch

    async def _process(self, batch: list[_Waiting]) -> None:
        if not batch:
            return
        start = time.perf_counter()
        requests = [waiting.request for waiting in batch]
        try:
            outcomes = await asyncio.get_running_loop().run_in_executor(
                self._executor, self.engine.segment_batch, requests
            )
        except Exception as error:
            log.exception("engine.failed", requests=len(batch))
            for waiting in batch:
                _settle(waiting.future, VessaError(f"internal error: {error}"))
            return
        spent = time.perf_counter() - start
        self._pace += 0.2 * (spent / len(batch) - self._pace)
        self.metrics.batch_size.observe(len(batch))
        for waiting, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, SegmentationResult):
                self.metrics.observe_result(outcome, waited=start - waiting.since)
            _settle(waiting.future, outcome)


def _settle(
    future: asyncio.Future[SegmentationResult | VessaError],
    outcome: SegmentationResult | VessaError,
) -> None:
    if not future.done():
        future.set_result(outcome)
