"""What both clients share, free of input and output: errors, attempts, references."""

from __future__ import annotations

import dataclasses
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, TypeVar, cast

import grpc

from vessa.v1 import pseudo_label_pb2 as pb
from vessa_client import wire
from vessa_client._errors import (
    BY_CODE,
    DeadlineError,
    NotFoundError,
    OverloadedError,
    ProtocolError,
    UnavailableError,
    VessaError,
)
from vessa_client._options import RetryPolicy
from vessa_client._types import (
    ImageInput,
    ImageReference,
    SegmentationRequest,
    SegmentationResult,
    VolumeRequest,
)

Request = TypeVar("Request", SegmentationRequest, VolumeRequest)

REMEMBERED_REFERENCES = 100_000
# How much the ends of a call differ between client and server: gRPC rounds what is left.
ROUNDED_SECONDS = 0.05

CHANNEL_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", wire.MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", wire.MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 30_000),
    # Reconnect soon after a server restart; the retry policy does the waiting.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]


def to_error(error: grpc.RpcError, request_id: str = "") -> VessaError:
    """Map a gRPC error to the package's tree."""
    code = error.code().name
    # The stubs call the metadata one pair; it is a sequence of them.
    pairs: Iterable[tuple[str, str | bytes]] = cast("Any", error.trailing_metadata()) or ()
    metadata = {k: v if isinstance(v, str) else v.decode() for k, v in pairs}
    details = error.details() or code
    if code == "UNAVAILABLE" and details.startswith("failed to connect to all addresses"):
        details = (
            "no VESSA server answers there: start one with `vessa-server serve`, or say where its "
            f"gRPC port is with --server HOST:PORT ({details})"
        )
    return BY_CODE.get(code, VessaError)(
        details,
        field=metadata.get(wire.METADATA_FIELD, ""),
        request_id=request_id,
        retry_after=float(metadata.get(wire.METADATA_RETRY_AFTER, "0")),
    )


def error_of(response: pb.SegmentResponse) -> VessaError:
    """The error that an answer of a stream carries."""
    detail = response.error
    return BY_CODE.get(detail.code, VessaError)(
        detail.message,
        field=detail.field,
        request_id=response.request_id,
        retry_after=detail.retry_after_seconds,
    )


def is_unknown_image(error: VessaError) -> bool:
    """Whether the server no longer holds an image that was sent by reference."""
    return isinstance(error, NotFoundError) and error.field == wire.IMAGE_REF_FIELD


def is_unknown_volume(error: VessaError) -> bool:
    """Whether the server no longer holds a volume that was sent by reference."""
    return isinstance(error, NotFoundError) and error.field == wire.VOLUME_REF_FIELD


def is_transient(error: VessaError) -> bool:
    """Whether the same request may succeed later: not where it is over a limit."""
    overloaded = isinstance(error, OverloadedError) and error.retry_after > 0
    return overloaded or isinstance(error, UnavailableError)


def with_bank(request: Request, bank: str) -> Request:
    """The request, for ``bank`` where it names none."""
    return request if request.bank or not bank else dataclasses.replace(request, bank=bank)


class Backoff:
    """When one call is tried again, until ``timeout`` seconds from now; None for no end."""

    def __init__(self, policy: RetryPolicy, timeout: float | None) -> None:
        self._policy = policy
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._failures = 0

    def remaining(self) -> float | None:
        """Seconds that are left."""
        return None if self._deadline is None else self._deadline - time.monotonic()

    def check_end(self, error: VessaError, kind: type[VessaError] = DeadlineError) -> None:
        """Tell the end of the call's time from an error of a single request.

        Raises:
            DeadlineError: ``error`` is of that kind, and the time of the call is over.
        """
        remaining = self.remaining()
        if isinstance(error, kind) and remaining is not None and remaining <= ROUNDED_SECONDS:
            raise DeadlineError("not all answers came within the time of the call") from error

    def succeeded(self) -> None:
        """Start over: the server answers."""
        self._failures = 0

    def wait(self, error: VessaError) -> float:
        """Seconds to wait after an attempt that failed: as long as the server says, or longer.

        Raises:
            VessaError: ``error``, where no attempt is left, or no time for one, or none would help.
        """
        # What grpc.aio calls a message that was being written when the time ended.
        self.check_end(error, ProtocolError)
        attempt, uniform = self._failures, random.random()
        self._failures += 1
        if not is_transient(error) or self._failures >= self._policy.attempts:
            raise error
        if error.retry_after > 0:
            wait = error.retry_after * (1 + self._policy.jitter * uniform)
        else:
            wait = self._policy.delay(attempt, uniform)
        remaining = self.remaining()
        if remaining is not None and wait > remaining:
            raise error
        return wait


class Digests:
    """Digests of what the server has confirmed to hold; the oldest are forgotten."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()

    def __contains__(self, digest: str) -> bool:
        return digest in self._known

    def add(self, digest: str) -> None:
        """The server holds it."""
        with self._lock:
            self._known[digest] = None
            self._known.move_to_end(digest)
            while len(self._known) > REMEMBERED_REFERENCES:
                self._known.popitem(last=False)

    def discard(self, digest: str) -> None:
        """The server does not hold it."""
        with self._lock:
            self._known.pop(digest, None)


class References:
    """Images and volumes that the server has confirmed to hold."""

    def __init__(self) -> None:
        self.images = Digests()
        self.volumes = Digests()

    def by_reference(self, request: SegmentationRequest) -> SegmentationRequest:
        """The request with references for its images where those will do; or itself."""
        image, *volume = (self._reference(image) for image in _images(request))
        if all(new is old for new, old in zip((image, *volume), _images(request), strict=True)):
            return request
        return dataclasses.replace(request, image=image, volume=tuple(volume))

    def confirm(self, sent: SegmentationRequest, result: SegmentationResult) -> None:
        """The server holds the images of a request that it answered."""
        self.images.add(result.image_sha256)
        for image in sent.volume:
            self.images.add(digest_of(image))

    def forget(self, request: SegmentationRequest) -> None:
        """The server does not hold all images of a request."""
        for image in _images(request):
            self.images.discard(digest_of(image))

    def _reference(self, image: ImageInput) -> ImageInput:
        if isinstance(image, ImageReference):
            return image
        digest = digest_of(image)
        return ImageReference(digest) if digest in self.images else image


def _images(request: SegmentationRequest) -> tuple[ImageInput, ...]:
    return (request.image, *request.volume)


def digest_of(image: ImageInput) -> str:
    """Reference of an image, or the reference that it is."""
    return image.sha256 if isinstance(image, ImageReference) else wire.image_digest(image)
