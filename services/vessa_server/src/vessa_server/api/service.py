"""The service itself: one object behind every transport.

Payloads are decoded and answers encoded in a pool of threads, looks run in the scheduler's: the
event loop only passes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from typing import TypeVar

import numpy as np

from vessa_client import (
    AnyArray,
    AuthenticationError,
    BankListing,
    ClassDefinition,
    DeadlineError,
    OverloadedError,
    SegmentationRequest,
    SegmentationResult,
    ServerInfo,
    ServerLimits,
    TemplateInfo,
    UnavailableError,
)
from vessa_client._types import ImageInput, Window
from vessa_client.annotated import AnnotatedSlice
from vessa_server.api import corrections
from vessa_server.api.corrections import Outdated
from vessa_server.api.lanes import Lanes
from vessa_server.api.metrics import Metrics
from vessa_server.api.room import RETRY_SECONDS, Room
from vessa_server.api.settings import ServerSettings
from vessa_server.bank import BankError, Template
from vessa_server.cases.case import Case
from vessa_server.cases.images import StoredImage, check_template
from vessa_server.cases.segment import Draft, known
from vessa_server.engine import VessaEngine
from vessa_server.policy import POLICY_VERSION, RULES
from vessa_server.runtime import threads
from vessa_server.scheduler.scheduler import Priority, Ticket

T = TypeVar("T")
Words = tuple[str, ...]
POOL_NAME = "payloads"
PRIORITIES = {"interactive": Priority.INTERACTIVE, "bulk": Priority.BULK}


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who asks: by whom the device is shared, how urgent it is unless he says, and until when.

    Attributes:
        name: such as the address.
        deadline: in seconds of ``time.monotonic``; None for no end.
    """

    name: str = ""
    priority: Priority = Priority.INTERACTIVE
    deadline: float | None = None

    def left(self, most: float = math.inf) -> float:
        """Seconds until the deadline, not more than ``most`` and not less than 0."""
        end = math.inf if self.deadline is None else self.deadline
        return max(0.0, min(most, end - time.monotonic()))

    def ticket(self, request: SegmentationRequest, case: Case) -> Ticket:
        """For the queue."""
        return Ticket(
            client=self.name,
            priority=PRIORITIES.get(request.priority, self.priority),
            deadline=self.deadline,
            nbytes=case.nbytes,
        )

    @staticmethod
    def within(seconds: float | None, name: str, priority: Priority) -> Caller:
        """A caller who waits for ``seconds``, or for ever."""
        deadline = None if seconds is None else time.monotonic() + seconds
        return Caller(name=name, priority=priority, deadline=deadline)


class Service:
    """Segments, and keeps the bank; coroutines are for the event loop."""

    def __init__(self, engines: Sequence[VessaEngine], settings: ServerSettings) -> None:
        """``engines`` are one for each device, over the same weights, banks and images."""
        self.engine = engines[0]
        self.settings = settings
        self.metrics = Metrics(engines)
        self.lanes = Lanes(engines, settings, self.metrics)
        # What volumes hold while they are answered.
        self.volumes = Room(settings.max_queue_bytes, "volume")
        self.metrics.volume_bytes.set_function(lambda: self.volumes.held)
        self.when_closing: list[Callable[[], None]] = []
        self.ready = False
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._pool = ThreadPoolExecutor(
            max(2, os.cpu_count() or 2),
            thread_name_prefix=POOL_NAME,
            initializer=threads.compute_alone,
        )

    def authenticate(self, authorization: str | None) -> None:
        """Check the bearer token, where the server has one.

        Raises:
            AuthenticationError: it is missing or wrong.
        """
        if self.settings.token is None:
            return
        scheme, _, given = (authorization or "").partition(" ")
        expected = self.settings.token.get_secret_value()
        same = hmac.compare_digest(given.strip().encode(), expected.encode())
        if not same or scheme.lower() != "bearer":
            raise AuthenticationError(
                "authorization: expected `Bearer <token>` with the server's VESSA_TOKEN",
                field="authorization",
            )

    async def check_ready(self) -> None:
        """Whether requests are accepted and the bank can be read.

        Raises:
            UnavailableError: they are not, or it cannot; says why.
        """
        if not self.ready or not self.lanes.alive:
            raise UnavailableError("the server is starting or stopping")
        try:
            await asyncio.to_thread(self.engine.bank.snapshot)
        except BankError as error:
            raise UnavailableError(str(error)) from error

    async def segment(
        self,
        parse: Callable[[], SegmentationRequest],
        render: Callable[[SegmentationResult], T],
        caller: Caller,
        volume: Sequence[StoredImage] = (),
    ) -> T:
        """Segment one image.

        Args:
            parse: makes the request of its payload; runs in the pool.
            render: makes the payload of the answer; runs in the pool.
            caller: who asks.
            volume: slices of the image's volume that are decoded already.

        Raises:
            VessaError: the request is wrong, refused, or out of time.
        """
        if self._calls >= 2 * self.settings.max_queue:  # many wait to be decoded or encoded
            raise OverloadedError(
                f"queue: full with {self._calls} requests, try again in {RETRY_SECONDS:g} s",
                retry_after=RETRY_SECONDS,
            )
        self.lanes.bounds.check(Ticket())
        self._calls += 1
        self._idle.clear()
        try:
            return await self._segment(parse, render, caller, volume)
        finally:
            self._calls -= 1
            if not self._calls:
                self._idle.set()

    async def _segment(
        self,
        parse: Callable[[], SegmentationRequest],
        render: Callable[[SegmentationResult], T],
        caller: Caller,
        volume: Sequence[StoredImage],
    ) -> T:
        ended = threading.Event()

        def finished(request: SegmentationRequest, case: Case, draft: Draft, words: Words) -> T:
            result = self.engine.finish(request, case, draft, words)
            self.metrics.observe_result(result)
            return render(result)

        def opened() -> tuple[SegmentationRequest, Case, Ticket, tuple[T] | None]:
            request = parse()
            case = self.engine.open(request, volume)
            case.ended = ended
            self.lanes.place(case)
            answer = known(case)  # nothing to wait for
            ticket = caller.ticket(request, case)
            if answer is None and ticket.priority is Priority.INTERACTIVE:
                # Bulk images are scaled when it is their turn: many of them, prepared at once,
                # would hold up everybody's payloads.
                self.lanes.bounds.check(ticket)
                case.prepare()
                ticket = caller.ticket(request, case)
            return request, case, ticket, answer and (finished(request, case, *answer),)

        deadline = asyncio.timeout_at(caller.deadline)  # the loop's clock is the monotonic one
        try:
            async with deadline:
                request, case, ticket, answer = await self.work(opened)
                if answer is not None:
                    return answer[0]
                future = self.lanes.submit(case, ticket)
                draft, words = await asyncio.wrap_future(future)
                return await self.work(lambda: finished(request, case, draft, words))
        except TimeoutError:
            if not deadline.expired():  # the work's own, such as a socket's
                raise
            raise DeadlineError("no answer within the request's deadline") from None
        finally:
            ended.set()  # what is under way in the pool ends, too

    def size_of(self, image: ImageInput) -> tuple[int, int]:
        """Height and width of an image; see :meth:`.ImageStore.resolve`."""
        height, width = self.engine.images.resolve(image).pixels.shape[:2]
        return height, width

    async def work(self, function: Callable[[], T]) -> T:
        """Run ``function`` in the pool."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function)

    async def add_template(
        self,
        image: AnyArray | bytes,
        labels: AnyArray,
        classes: Sequence[ClassDefinition],
        name: str,
        bank: str = "",
        window: Window | None = None,
        *,
        outdated: Outdated = "keep",
    ) -> tuple[TemplateInfo, bool]:
        """Add a template, and encode it when nobody else needs the device.

        ``outdated`` says what becomes of templates with other labels of the same pixels. See
        :meth:`TemplateBank.add`.

        Raises:
            InvalidRequestError: there are such templates, and they are to be refused.
        """

        def add() -> tuple[TemplateInfo, bool]:
            pixels = self.engine.images.resolve(image).pixels
            check_template(pixels)
            old = []
            if outdated != "keep":
                new = AnnotatedSlice(pixels, labels.astype(np.uint8), name, window)
                old = corrections.outdated(self.engine.banks, bank, new, classes)
            if old and outdated == "refuse":
                raise corrections.refusal(old)
            added = self.engine.add_template(
                image, labels, classes, name=name, bank=bank, window=window
            )
            corrections.remove(self.engine.banks, bank, [o.info.template_id for o in old])
            return added

        info, created = await self.work(add)
        if created:
            self.encode_soon([info], bank)
        return info, created

    def encode_soon(self, templates: Sequence[TemplateInfo], bank: str = "") -> None:
        """Encode templates when nobody else needs the device."""
        with contextlib.suppress(OverloadedError, UnavailableError):  # requests will encode them
            self.lanes.encode(bank, templates)

    async def template(self, template_id: str, bank: str = "") -> Template:
        """A template with its pixels; see :meth:`TemplateBank.find`."""
        return await self.work(lambda: self.engine.banks.get(bank).find(template_id))

    async def delete_template(self, template_id: str, bank: str = "") -> str:
        """Delete a template; see :meth:`TemplateBank.delete`."""
        return await self.work(lambda: self.engine.banks.get(bank).delete(template_id))

    async def listing(self, bank: str = "") -> BankListing:
        """Templates and classes."""
        return await self.work(lambda: self.engine.banks.get(bank).snapshot())

    async def info(self, bank_name: str = "") -> ServerInfo:
        """Model, device, bank, policy and limits."""
        bank = await self.listing(bank_name)
        settings, runtime = self.settings, self.engine.info
        devices = [engine.runtime.info for engine in self.lanes.engines]
        return ServerInfo(
            version=version("vessa-server"),
            model_name=runtime.model_name,
            model_digest=runtime.model_digest,
            model_parameters=runtime.parameters,
            canvas_size=runtime.canvas,
            bank_version=bank.version,
            num_templates=len(bank.templates),
            classes=bank.classes,
            limits=ServerLimits(
                max_image_bytes=settings.max_image_bytes,
                max_image_side=settings.max_image_side,
                max_classes=settings.max_classes,
                max_top_k=self.engine.settings.max_top_k,
                max_stream_in_flight=settings.max_stream_in_flight,
                max_request_pixels=settings.max_request_pixels,
            ),
            cache_backend=self.engine.cache.backend,
            runtime=runtime.runtime,
            device=", ".join(info.device for info in devices),
            dtype=runtime.dtype,
            device_memory_bytes=sum(info.memory for info in devices),
            bank=bank_name,
            banks=await self.work(self.engine.banks.names),
            policy_version=POLICY_VERSION,
            policy_rules=tuple(filter(self.engine.settings.policy.uses, RULES)),
        )

    async def close(self, deadline: float) -> None:
        """Refuse new requests, finish those accepted until ``deadline``, stop."""
        for notify in self.when_closing:
            notify()
        await self.lanes.drain(deadline)
        with contextlib.suppress(TimeoutError):  # answers that are being encoded
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                await self._idle.wait()
        self._pool.shutdown(wait=False, cancel_futures=True)
