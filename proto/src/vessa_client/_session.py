"""What both clients share, free of input and output: references, error mapping, streams."""

from __future__ import annotations

import dataclasses
import itertools
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import grpc

from vessa.v1 import pseudo_label_pb2 as pb
from vessa_client import convert, wire
from vessa_client._errors import (
    BY_CODE,
    InvalidRequestError,
    NotFoundError,
    ProtocolError,
    VessaError,
)
from vessa_client._types import (
    ImageInput,
    ImageReference,
    SegmentationRequest,
    SegmentationResult,
)

REMEMBERED_REFERENCES = 100_000

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
    return BY_CODE.get(code, VessaError)(
        error.details() or code,
        field=metadata.get(wire.METADATA_FIELD, ""),
        request_id=request_id,
        retry_after=float(metadata.get(wire.METADATA_RETRY_AFTER, "0")),
    )


def is_unknown_reference(error: VessaError) -> bool:
    """Whether the server no longer holds an image that was sent by reference."""
    return isinstance(error, NotFoundError) and error.field == wire.IMAGE_REF_FIELD


class References:
    """Digests of images that the server has confirmed to hold; oldest are forgotten."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, None] = OrderedDict()

    def by_reference(self, request: SegmentationRequest) -> SegmentationRequest:
        """The request with references for its images where those will do; or itself."""
        image, *volume = (self._reference(image) for image in _images(request))
        if all(new is old for new, old in zip((image, *volume), _images(request), strict=True)):
            return request
        return dataclasses.replace(request, image=image, volume=tuple(volume))

    def confirm(self, sent: SegmentationRequest) -> None:
        """The server holds the images of a request that it answered."""
        for image in _images(sent):
            digest = _digest(image)
            self._known[digest] = None
            self._known.move_to_end(digest)
        while len(self._known) > REMEMBERED_REFERENCES:
            self._known.popitem(last=False)

    def forget(self, request: SegmentationRequest) -> None:
        """The server does not hold all images of a request."""
        for image in _images(request):
            self._known.pop(_digest(image), None)

    def _reference(self, image: ImageInput) -> ImageInput:
        if isinstance(image, ImageReference):
            return image
        digest = _digest(image)
        return ImageReference(digest) if digest in self._known else image


def _images(request: SegmentationRequest) -> tuple[ImageInput, ...]:
    return (request.image, *request.volume)


def _digest(image: ImageInput) -> str:
    return image.sha256 if isinstance(image, ImageReference) else wire.image_digest(image)


@dataclass(frozen=True)
class _Asked:
    """A request in flight, and how it was sent last."""

    request: SegmentationRequest
    sent: SegmentationRequest


class StreamSession:
    """Bookkeeping of one logical stream: what is in flight, what to send again."""

    def __init__(
        self, references: References, requests: Iterable[SegmentationRequest], window: int
    ) -> None:
        if window < 1:
            raise ValueError(f"window {window}: expected at least 1")
        self._references = references
        self._source = iter(requests)
        self._window = window
        self._pending: OrderedDict[str, _Asked] = OrderedDict()
        self._numbers = itertools.count()

    @property
    def idle(self) -> bool:
        """Nothing is unanswered."""
        return not self._pending

    def fill(self) -> Iterator[pb.SegmentRequest | VessaError]:
        """Messages to send until the window is full; the error of a request that cannot be."""
        while len(self._pending) < self._window:
            request = next(self._source, None)
            if request is None:
                return
            try:
                yield self._open(request)
            except VessaError as error:
                error.request_id = request.request_id
                yield error

    def _open(self, request: SegmentationRequest) -> pb.SegmentRequest:
        request_id = request.request_id or f"#{next(self._numbers)}"
        if request_id in self._pending:
            raise InvalidRequestError(
                f"request_id: {request_id!r} is in flight already, expected unique ids",
                field="request_id",
            )
        named = dataclasses.replace(request, request_id=request_id)
        return self._send(named)

    def unfinished(self) -> list[pb.SegmentRequest]:
        """Messages to send again on a new connection."""
        return [self._send(asked.request) for asked in [*self._pending.values()]]

    def close(
        self, response: pb.SegmentResponse
    ) -> SegmentationResult | VessaError | pb.SegmentRequest:
        """Settle an answer.

        Returns:
            The result, the request's error, or a message to send again in full.

        Raises:
            ProtocolError: the answer belongs to no request.
        """
        asked = self._pending.get(response.request_id)
        if asked is None:
            raise ProtocolError(f"stream: answer to unknown request {response.request_id!r}")
        if response.HasField("error"):
            detail = response.error
            error = BY_CODE.get(detail.code, VessaError)(
                detail.message,
                field=detail.field,
                request_id=response.request_id,
                retry_after=detail.retry_after_seconds,
            )
            if is_unknown_reference(error) and asked.sent is not asked.request:
                self._references.forget(asked.request)
                return self._send(asked.request)
            del self._pending[response.request_id]
            return error
        del self._pending[response.request_id]
        result = convert.result_from_message(response)
        self._references.confirm(asked.sent)
        return result

    def _send(self, request: SegmentationRequest) -> pb.SegmentRequest:
        """The message of a request, which is in flight from now on."""
        sent = self._references.by_reference(request)
        message = convert.request_to_message(sent)
        self._pending[request.request_id] = _Asked(request, sent)
        return message
