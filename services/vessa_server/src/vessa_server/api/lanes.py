"""The devices that requests are shared by: each with its engine, its queue, and what it knows."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

from vessa_client import TemplateInfo
from vessa_server.api.metrics import Metrics
from vessa_server.api.settings import ServerSettings
from vessa_server.cases.case import Case
from vessa_server.cases.segment import segment
from vessa_server.engine import VessaEngine
from vessa_server.runtime import threads
from vessa_server.scheduler.scheduler import Bounds, Priority, Scheduler, Ticket


@dataclass(frozen=True)
class Lane:
    """A device: its engine and the queue in front of it."""

    engine: VessaEngine
    scheduler: Scheduler


class Lanes:
    """Sends each case to the device that may know its image or volume already."""

    def __init__(
        self, engines: Sequence[VessaEngine], settings: ServerSettings, metrics: Metrics
    ) -> None:
        """Begin to run; ``engines`` are of the same weights, one for each device."""
        self.bounds = Bounds(
            settings.max_queue, settings.max_queue_bytes, devices=len(engines), observer=metrics
        )
        # That compute for each device.
        self.threads = settings.threads or max(1, threads.DEFAULT // len(engines))
        self._lanes = tuple(
            Lane(
                engine,
                Scheduler(
                    engine.run,
                    self.bounds,
                    max_batch=engine.settings.max_batch if engine.settings.fuse else 1,
                    max_wait=settings.max_wait_ms / 1000,
                    observe_batch=metrics.observe_batch,
                    on_start=partial(threads.compute_with, self.threads),
                ),
            )
            for engine in engines
        )

    @property
    def engines(self) -> tuple[VessaEngine, ...]:
        """Of all devices."""
        return tuple(lane.engine for lane in self._lanes)

    @property
    def alive(self) -> bool:
        """Whether all of them run requests."""
        return all(lane.scheduler.alive for lane in self._lanes)

    def place(self, case: Case) -> None:
        """Give a case the memory of its lane."""
        case.memory = self._lane(case).engine.memory

    def submit(self, case: Case, ticket: Ticket) -> Future[Any]:
        """Queue a case that was placed; see :meth:`Scheduler.submit`."""
        return self._lane(case).scheduler.submit(segment(case), ticket)

    def _lane(self, case: Case) -> Lane:
        """Images of the same content, and slices of the same volume, have the same one."""
        digest = (case.volume[0] if case.volume else case.scan).sha256
        return self._lanes[int(digest, 16) % len(self._lanes)]

    def encode(self, bank: str, templates: Sequence[TemplateInfo]) -> None:
        """Encode templates on every device, when nobody else needs it.

        Raises:
            OverloadedError: the queue is full.
            UnavailableError: the server is stopping.
        """
        for lane in self._lanes:
            steps = lane.engine.encode_templates(bank, templates)
            lane.scheduler.submit(steps, Ticket(priority=Priority.BACKGROUND))

    async def drain(self, deadline: float) -> None:
        """Finish what was accepted until ``deadline``, everywhere; see :meth:`Scheduler.drain`."""
        await asyncio.gather(
            *(asyncio.to_thread(lane.scheduler.drain, deadline) for lane in self._lanes)
        )
