"""A volume as one request: it comes in slice by slice and is answered slice by slice."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeVar

from vessa_client import (
    AnyArray,
    Box,
    ImageReference,
    InvalidRequestError,
    OverloadedError,
    Point,
    SegmentationRequest,
    SegmentationResult,
    VessaError,
    VolumeReference,
    VolumeRequest,
)
from vessa_client._types import ImageInput
from vessa_client.wire import check_window
from vessa_server.api import errors
from vessa_server.api.room import Share
from vessa_server.api.service import Caller, Service
from vessa_server.cases.images import StoredImage, check_same_size
from vessa_server.inference.plan import make_plan

T = TypeVar("T")
MAX_SLICES = 4096


@dataclass(frozen=True)
class Known:
    """What a caller knows of a slice."""

    student_mask: AnyArray | None = None
    points: tuple[Point, ...] = ()
    boxes: tuple[Box, ...] = ()


NOTHING = Known()


@dataclass
class IncomingVolume:
    """The slices of a volume, as far as they have come.

    Attributes:
        request: what is asked of all slices.
        count: of slices in the whole volume.
        reference: where the server is to hold the volume already.
        service: that it is for.
        share: of the room for volumes.
        images: by index.
        known: by index.
        failed: errors of slices that cannot be answered.
    """

    request: VolumeRequest
    count: int
    reference: VolumeReference | None
    service: Service
    share: Share
    images: dict[int, StoredImage] = field(default_factory=dict)
    known: dict[int, Known] = field(default_factory=dict)
    failed: dict[int, VessaError] = field(default_factory=dict)
    digest: str = ""

    def __post_init__(self) -> None:
        check_window(self.request.window)
        self._store = self.service.engine.images
        self._came: set[int] = set()
        if self.reference is not None:
            self.images = dict(enumerate(self._store.volume(self.reference)))
            self.digest = self.reference.sha256
            self.count = len(self.images)
        if not 1 <= self.count <= MAX_SLICES:
            raise InvalidRequestError(
                f"num_slices: {self.count}, expected 1..{MAX_SLICES}", field="num_slices"
            )
        engine = self.service.engine
        bank = engine.banks.get(self.request.bank)
        policy = engine.settings.policy.without(self.request.policy_off)
        plan = make_plan(self._ask(ImageReference("")), bank, policy, engine.limits)
        self._num_classes = len(plan.classes)
        if self.images:
            self._check_work(self.images[0])

    def _ask(self, image: ImageReference, known: Known = NOTHING) -> SegmentationRequest:
        """What is asked of one slice."""
        wanted = self.request
        return SegmentationRequest(
            image=image,
            class_names=wanted.class_names,
            text=wanted.text,
            window=wanted.window,
            student_mask=known.student_mask,
            points=known.points,
            boxes=known.boxes,
            top_k=wanted.top_k,
            template_ids=wanted.template_ids,
            return_probabilities=wanted.return_probabilities,
            explain=wanted.explain,
            bank=wanted.bank,
            policy_off=wanted.policy_off,
            priority=wanted.priority,
            request_id=wanted.request_id,
        )

    def add(
        self,
        index: int,
        image: Callable[[], ImageInput] | None = None,
        known: Callable[[tuple[int, int]], Known] = lambda shape: NOTHING,
    ) -> None:
        """Take a slice in; one that is wrong fails alone.

        Args:
            index: of the slice.
            image: takes it out of its payload; none where the volume is named by reference.
            known: the same of what is known of it, given the image's height and width.

        Raises:
            InvalidRequestError: the volume as a whole is not as announced.
            OverloadedError: it is too large, or has no room beside others.
        """
        if not 0 <= index < self.count or index in self._came:
            raise InvalidRequestError(
                f"slice.index: {index}, expected each of 0..{self.count - 1} at most once",
                field="slice.index",
            )
        self._came.add(index)
        try:
            if (image is None) != (self.reference is not None):
                raise InvalidRequestError(
                    "slice.image: expected with each slice, or with none after a reference",
                    field="slice.image",
                )
            stored = self.images[index] if image is None else self._store.resolve(image())
            first = next(iter(self.images.values()), stored)
            check_same_size(stored, first)
        except VessaError as error:
            self.failed[index] = error
            return
        if image is not None:
            self._take(index, stored)
        try:
            height, width = stored.pixels.shape[:2]
            self.known[index] = known((height, width))
        except VessaError as error:
            self.failed[index] = error

    def _take(self, index: int, image: StoredImage) -> None:
        if not self.images:
            self._check_work(image)
        self.share.take(image.pixels.nbytes)
        self.images[index] = image

    def _check_work(self, image: StoredImage) -> None:
        """Refuse a volume that would keep everybody waiting, once its first slice is there."""
        settings, classes = self.service.settings, self._num_classes
        height, width = image.pixels.shape[:2]
        limit = settings.max_request_pixels
        if height * width * self.count * classes > limit:
            raise OverloadedError(
                f"volume: {height} x {width} pixels x {self.count} slices x {classes} classes, "
                f"expected at most {limit} (VESSA_MAX_REQUEST_PIXELS); ask for fewer classes, or "
                "for parts of the volume",
                field="volume",
            )
        if image.pixels.nbytes * self.count > settings.max_queue_bytes:
            raise OverloadedError(
                f"volume: {image.pixels.nbytes} bytes x {self.count} slices, expected at most "
                f"{settings.max_queue_bytes} (VESSA_MAX_QUEUE_BYTES)",
                field="volume",
            )

    def close(self, asked: set[int]) -> list[int]:
        """All slices have come; returns the indices to answer.

        Raises:
            InvalidRequestError: slices are missing.
        """
        if self.reference is None:
            missing = sorted(set(range(self.count)) - set(self.images) - set(self.failed))
            if missing:
                raise InvalidRequestError(
                    f"num_slices: {self.count} announced, slice {missing[0]} did not come",
                    field="num_slices",
                )
            if not self.failed:
                self.digest = self._store.keep_volume([self.images[i] for i in range(self.count)])
        return sorted(asked) if asked else sorted({*self.images, *self.failed})

    def requests(self, indices: list[int]) -> Iterator[tuple[int, SegmentationRequest]]:
        """A request for each slice that can be answered."""
        for index in indices:
            if index not in self.failed:
                image = ImageReference(self.images[index].sha256)
                yield index, self._ask(image, self.known.get(index, NOTHING))


async def answers(
    service: Service,
    volume: IncomingVolume,
    indices: list[int],
    render: Callable[[SegmentationResult], T],
    caller: Caller,
) -> AsyncGenerator[tuple[int, T | VessaError], None]:
    """The answers of a volume's slices, as they are ready.

    Slices with errors come first. The client decides how fast: only so many slices are under
    way as ``max_stream_in_flight`` allows.
    """
    for index in indices:
        if index in volume.failed:
            yield index, volume.failed[index]
    ready: asyncio.Queue[tuple[int, T | VessaError] | None] = asyncio.Queue()
    places = asyncio.Semaphore(service.settings.max_stream_in_flight)
    slices = [volume.images[i] for i in sorted(volume.images)]

    async def work(index: int, request: SegmentationRequest) -> None:
        def rendered(result: SegmentationResult) -> T:
            return render(replace(result, slice_index=index, volume_sha256=volume.digest))

        try:
            outcome: T | VessaError = await patiently(
                lambda: service.segment(lambda: request, rendered, caller, slices), caller
            )
        except Exception as raised:
            outcome = errors.public(raised)
        ready.put_nowait((index, outcome))

    async def start() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for index, request in volume.requests(indices):
                    await places.acquire()
                    group.create_task(work(index, request))
        finally:
            ready.put_nowait(None)

    starter = asyncio.create_task(start())
    try:
        while (answer := await ready.get()) is not None:
            yield answer
            places.release()
    finally:
        starter.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await starter


async def patiently(ask: Callable[[], Awaitable[T]], caller: Caller) -> T:
    """Ask, however often there is no room now: what this is a part of was accepted already."""
    while True:
        try:
            return await ask()
        except OverloadedError as full:
            if not full.retry_after or not caller.left():
                raise
            await asyncio.sleep(caller.left(full.retry_after))
