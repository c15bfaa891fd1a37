"""Leave-one-out over a bank, by the code of ``vessa check`` and through the queue of requests."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TypeVar

from vessa_client import (
    OverloadedError,
    SegmentationRequest,
    SegmentationResult,
    TemplateContent,
    UnavailableError,
    VessaError,
    VolumeRequest,
    checking,
)
from vessa_client.checking import ScanCheck
from vessa_server.api import volumes
from vessa_server.api.room import Share
from vessa_server.api.service import Caller, Service
from vessa_server.api.volumes import IncomingVolume

T = TypeVar("T")
RETRY_SECONDS = 10.0
# Of different banks at one time; each has a thread.
MAX_CHECKS = 2


class Checks:
    """Those that run: one of a bank at a time."""

    def __init__(self) -> None:
        self._banks: set[str] = set()

    @contextmanager
    def of(self, bank: str) -> Iterator[None]:
        """Hold the place of a check.

        Raises:
            OverloadedError: the bank is being checked, or too many others are.
        """
        if bank in self._banks or len(self._banks) >= MAX_CHECKS:
            what = f"{bank or 'the default one'} is" if bank in self._banks else "others are"
            raise OverloadedError(
                f"bank: {what} being checked already; try again when that is done",
                field="bank",
                retry_after=RETRY_SECONDS,
            )
        self._banks.add(bank)
        try:
            yield
        finally:
            self._banks.remove(bank)


class BankCheck:
    """One check: what :mod:`vessa_client.checking` asks from a thread, this server answers.

    Attributes:
        scans: how many are to be held out.
    """

    def __init__(
        self, service: Service, bank: str, patient: re.Pattern[str] | None, caller: Caller
    ) -> None:
        """Look at the bank; not for the event loop.

        Raises:
            InvalidRequestError: it has fewer than two scans.
            OverloadedError: a scan of it is too large.
            VessaError: there is no such bank.
        """
        self._service, self._bank, self._caller = service, bank, caller
        self._asking: asyncio.Task[object] | None = None
        self._ended = False
        listing = service.engine.banks.get(bank).snapshot()
        annotated = checking.scans(listing.templates, patient)
        for scan in annotated:
            # Its pixels, as floats, are read at once.
            if 4 * sum(t.height * t.width for t in scan.templates) > self._most:
                raise OverloadedError(
                    f"bank: {scan.name!r} has {len(scan.templates)} slices, expected at most "
                    f"{self._most} bytes of pixels in a scan (VESSA_MAX_QUEUE_BYTES)",
                    field="bank",
                )
        self.scans = len(annotated)
        self._held_out = checking.check(self, annotated, [c.name for c in listing.classes])

    @property
    def _most(self) -> int:
        return self._service.settings.max_queue_bytes

    async def results(self) -> AsyncGenerator[ScanCheck, None]:
        """Of each scan as soon as it is done; whoever closes this ends the work."""
        self._loop = asyncio.get_running_loop()
        try:
            while (one := await asyncio.to_thread(next, self._held_out, None)) is not None:
                yield one
        finally:
            self._ended = True
            if self._asking is not None:
                self._asking.cancel()

    def get_template(self, template_id: str) -> TemplateContent:
        """A template with its pixels."""
        return self._wait(lambda: self._service.template(template_id, self._bank))

    def segment_volume(self, request: VolumeRequest) -> Iterator[SegmentationResult | VessaError]:
        """Answers to all slices."""
        asked = replace(request, bank=self._bank)
        return iter(self._wait(partial(self._patiently, partial(self._segmented, asked))))

    def segment_stream(
        self, requests: Iterable[SegmentationRequest]
    ) -> Iterator[SegmentationResult | VessaError]:
        """Answers in order."""
        for request in requests:
            asked = replace(request, bank=self._bank)
            answer = partial(self._service.segment, partial(_same, asked), _same, self._caller)
            yield self._wait(partial(self._patiently, answer))

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        return await volumes.patiently(ask, self._caller)

    async def _segmented(self, request: VolumeRequest) -> list[SegmentationResult | VessaError]:
        with Share(self._service.volumes) as share:
            volume, indices = await self._service.work(partial(self._incoming, request, share))
            answers = volumes.answers(self._service, volume, indices, _same, self._caller)
            async with contextlib.aclosing(answers):
                return [answer async for _, answer in answers]

    def _incoming(self, request: VolumeRequest, share: Share) -> tuple[IncomingVolume, list[int]]:
        volume = IncomingVolume(request, len(request.slices), None, self._service, share)
        for index, image in enumerate(request.slices):
            volume.add(index, partial(_same, image))
        return volume, volume.close(set())

    def _wait(self, ask: Callable[[], Awaitable[T]]) -> T:
        """What the event loop answers, unless the check ends before."""

        async def answer() -> T:
            if self._ended:
                raise UnavailableError("the check has ended")
            self._asking = asyncio.current_task()
            return await ask()

        return asyncio.run_coroutine_threadsafe(answer(), self._loop).result()


def patients(end: str) -> re.Pattern[str] | None:
    """What names of scans of one patient share: all before ``end``; none without it.

    The command takes any regular expression; one from outside could hold the server for ever.
    """
    return re.compile(f"^(.+?){re.escape(end)}") if end else None


def _same(value: T) -> T:
    return value
