"""A volume as one request: it comes in slice by slice and is answered slice by slice."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeVar

from vessa_client import (
    AnyArray,
    ImageReference,
    InvalidRequestError,
    OverloadedError,
    SegmentationRequest,
    SegmentationResult,
    VessaError,
    VolumeReference,
    VolumeRequest,
)
from vessa_client._types import ImageInput
from vessa_server.api import errors
from vessa_server.api.service import Caller, Service
from vessa_server.cases.images import ImageStore, StoredImage

T = TypeVar("T")
MAX_SLICES = 4096


@dataclass
class IncomingVolume:
    """The slices of a volume, as far as they have come.

    Attributes:
        request: what is asked of all slices.
        count: of slices in the whole volume.
        reference: where the server is to hold the volume already.
        images: by index.
        masks: students' masks by index.
        failed: errors of slices that cannot be answered.
    """

    request: VolumeRequest
    count: int
    reference: VolumeReference | None
    store: ImageStore
    images: dict[int, StoredImage] = field(default_factory=dict)
    masks: dict[int, AnyArray] = field(default_factory=dict)
    failed: dict[int, VessaError] = field(default_factory=dict)
    digest: str = ""

    def __post_init__(self) -> None:
        if self.reference is not None:
            self.images = dict(enumerate(self.store.volume(self.reference)))
            self.digest = self.reference.sha256
            self.count = len(self.images)
        if not 1 <= self.count <= MAX_SLICES:
            raise InvalidRequestError(
                f"num_slices: {self.count}, expected 1..{MAX_SLICES}", field="num_slices"
            )

    def add(
        self, index: int, image: ImageInput | None, mask: Callable[[], AnyArray | None]
    ) -> None:
        """Take a slice in; one that is wrong fails alone.

        Raises:
            InvalidRequestError: the volume as a whole is not as announced.
        """
        if not 0 <= index < self.count or index in self.masks or index in self.failed:
            raise InvalidRequestError(
                f"slice.index: {index}, expected each of 0..{self.count - 1} at most once",
                field="slice.index",
            )
        try:
            if (image is None) != (self.reference is not None):
                raise InvalidRequestError(
                    "slice.image: expected with each slice, or with none after a reference",
                    field="slice.image",
                )
            if image is not None:
                self.images[index] = self.store.resolve(image)
            found = mask()
            if found is not None:
                self.masks[index] = found
        except VessaError as error:
            self.failed[index] = error

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
                self.digest = self.store.keep_volume([self.images[i] for i in range(self.count)])
        return sorted(asked) if asked else sorted({*self.images, *self.failed})

    def requests(self, indices: list[int]) -> Iterator[tuple[int, SegmentationRequest]]:
        """A request for each slice that can be answered."""
        wanted = self.request
        for index in indices:
            if index not in self.failed:
                yield (
                    index,
                    SegmentationRequest(
                        image=ImageReference(self.images[index].sha256),
                        class_names=wanted.class_names,
                        text=wanted.text,
                        student_mask=self.masks.get(index),
                        top_k=wanted.top_k,
                        template_ids=wanted.template_ids,
                        return_probabilities=wanted.return_probabilities,
                        explain=wanted.explain,
                        bank=wanted.bank,
                        policy_off=wanted.policy_off,
                        priority=wanted.priority,
                        request_id=wanted.request_id,
                    ),
                )


def check_work(service: Service, volume: IncomingVolume) -> None:
    """Refuse a volume that would keep everybody waiting, before any of it is computed.

    Raises:
        OverloadedError: more pixels, classes and slices than the limit.
    """
    classes = len(volume.request.class_names)
    if not classes:
        classes = len(service.engine.banks.get(volume.request.bank).snapshot().classes)
    pixels = sum(i.pixels.shape[0] * i.pixels.shape[1] for i in volume.images.values())
    limit = service.settings.max_request_pixels
    if pixels * max(1, classes) > limit:
        raise OverloadedError(
            f"volume: {pixels} pixels in all x {classes} classes, expected at most {limit} "
            "(VESSA_MAX_REQUEST_PIXELS); ask for fewer classes, or for parts of the volume",
            field="volume",
        )


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
        try:
            outcome: T | VessaError = await service.segment(
                lambda: request,
                lambda result: render(
                    replace(result, slice_index=index, volume_sha256=volume.digest)
                ),
                caller,
                volume=slices,
            )
        except Exception as raised:
            outcome = errors.public(raised)
        await ready.put((index, outcome))

    async def start() -> None:
        async with asyncio.TaskGroup() as group:
            for index, request in volume.requests(indices):
                await places.acquire()
                group.create_task(work(index, request))
        await ready.put(None)

    starter = asyncio.create_task(start())
    try:
        while (answer := await ready.get()) is not None:
            yield answer
            places.release()
    finally:
        starter.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await starter
