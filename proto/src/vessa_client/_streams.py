"""Bookkeeping of streams for both clients: what is unanswered, what to send again, and when."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from vessa.v1 import pseudo_label_pb2 as pb
from vessa_client import convert, wire
from vessa_client._errors import (
    InvalidRequestError,
    OverloadedError,
    ProtocolError,
    VessaError,
)
from vessa_client._options import RetryPolicy
from vessa_client._session import (
    Backoff,
    References,
    digest_of,
    error_of,
    is_transient,
    is_unknown_image,
    is_unknown_volume,
)
from vessa_client._types import (
    SegmentationRequest,
    SegmentationResult,
    VolumeReference,
    VolumeRequest,
)


@dataclass(frozen=True)
class Outgoing:
    """A message to send, after ``delay`` seconds."""

    message: pb.SegmentRequest
    delay: float = 0.0


@dataclass
class _Asked:
    """A request in flight, how it was sent last, and when it may be sent again."""

    request: SegmentationRequest
    sent: SegmentationRequest
    backoff: Backoff
    due: float = 0.0


class StreamSession:
    """One logical stream of requests, over as many connections as it takes."""

    def __init__(
        self,
        references: References,
        requests: Iterable[SegmentationRequest],
        *,
        window: int,
        retry: RetryPolicy,
        timeout: float | None,
    ) -> None:
        if window < 1:
            raise ValueError(f"window {window}: expected at least 1")
        self._references = references
        self._source = iter(requests)
        self._window = window
        self._retry = retry
        self._backoff = Backoff(retry, timeout)
        self._pending: OrderedDict[str, _Asked] = OrderedDict()
        self._numbers = itertools.count()

    @property
    def idle(self) -> bool:
        """Nothing is unanswered."""
        return not self._pending

    def remaining(self) -> float | None:
        """Seconds that are left for the stream."""
        return self._backoff.remaining()

    def wait(self, error: VessaError) -> float:
        """Seconds until a broken connection is replaced, or the error where it is not."""
        return self._backoff.wait(error)

    def fill(self) -> Iterator[Outgoing | VessaError]:
        """Messages to send until the window is full; the error of a request that cannot be."""
        while len(self._pending) < self._window:
            request = next(self._source, None)
            if request is None:
                return
            try:
                yield Outgoing(self._open(request))
            except VessaError as error:
                error.request_id = request.request_id
                yield error

    def unfinished(self) -> list[Outgoing]:
        """Messages to send again on a new connection."""
        now = time.monotonic()
        return [
            Outgoing(self._send(asked), max(0.0, asked.due - now))
            for asked in self._pending.values()
        ]

    def settle(self, response: pb.SegmentResponse) -> SegmentationResult | VessaError | Outgoing:
        """Take an answer.

        Returns:
            The result, the request's error, or a message to send again.

        Raises:
            ProtocolError: the answer belongs to no request.
            DeadlineError: the time of the stream is over.
        """
        asked = self._pending.get(response.request_id)
        if asked is None:
            raise ProtocolError(f"stream: answer to unknown request {response.request_id!r}")
        self._backoff.succeeded()
        if response.HasField("error"):
            return self._failed(asked, error_of(response))
        del self._pending[response.request_id]
        result = convert.result_from_message(response)
        self._references.confirm(asked.sent, result)
        return result

    def _open(self, request: SegmentationRequest) -> pb.SegmentRequest:
        request_id = request.request_id or f"#{next(self._numbers)}"
        if request_id in self._pending:
            raise InvalidRequestError(
                f"request_id: {request_id!r} is in flight already, expected unique ids",
                field="request_id",
            )
        named = dataclasses.replace(request, request_id=request_id)
        asked = _Asked(named, named, Backoff(self._retry, self.remaining()))
        message = self._send(asked)
        if message.ByteSize() > wire.MAX_MESSAGE_BYTES:
            # gRPC would end the whole stream.
            raise OverloadedError(
                f"image: {message.ByteSize()} bytes, expected at most {wire.MAX_MESSAGE_BYTES}",
                field="image",
            )
        self._pending[request_id] = asked
        return message

    def _failed(self, asked: _Asked, error: VessaError) -> VessaError | Outgoing:
        self._backoff.check_end(error)
        if is_unknown_image(error) and asked.sent is not asked.request:
            self._references.forget(asked.request)
            return Outgoing(self._send(asked))
        try:
            delay = asked.backoff.wait(error)
        except VessaError as final:
            del self._pending[error.request_id]
            return final
        asked.due = time.monotonic() + delay
        return Outgoing(self._send(asked), delay)

    def _send(self, asked: _Asked) -> pb.SegmentRequest:
        asked.sent = self._references.by_reference(asked.request)
        return convert.request_to_message(asked.sent)


class VolumeSession:
    """One volume, over as many calls as it takes until the wanted slices are answered."""

    def __init__(
        self,
        references: References,
        request: VolumeRequest,
        *,
        retry: RetryPolicy,
        timeout: float | None,
    ) -> None:
        _check_indices(request)
        self._references = references
        self._request = request
        self._backoff = Backoff(retry, timeout)
        self._digest = wire.volume_digest(digest_of(image) for image in request.slices)
        self._unanswered = set(request.indices or range(len(request.slices)))
        self._by_reference = False
        self._overloaded: VessaError | None = None
        self._unsendable: VessaError | None = None

    @property
    def idle(self) -> bool:
        """Nothing is unanswered."""
        return not self._unanswered

    def remaining(self) -> float | None:
        """Seconds that are left for the volume."""
        return self._backoff.remaining()

    def messages(self) -> Iterator[pb.SegmentVolumeRequest]:
        """All messages of the next call: the volume, or its reference and what is unanswered."""
        self._by_reference = self._digest in self._references.volumes
        self._overloaded = None
        if not self._by_reference:
            return self._parts(None, range(len(self._request.slices)))
        wanted = sorted(self._unanswered)
        everything = len(wanted) == len(self._request.slices)
        short = everything and not any(_by_slice(self._request).values())
        return self._parts(VolumeReference(self._digest), [] if short else wanted)

    def settle(self, response: pb.SegmentResponse) -> SegmentationResult | VessaError | None:
        """Take an answer.

        Returns:
            The result, the slice's error, or None where the slice is asked for again, was
            answered before or was not asked for.

        Raises:
            ProtocolError: the answer is of another request.
            DeadlineError: the time of the volume is over.
        """
        index = response.slice_index
        known = response.request_id == self._request.request_id
        if not known or index >= len(self._request.slices):
            raise ProtocolError(
                f"volume: answer to request {response.request_id!r}, slice {index}; expected "
                f"{self._request.request_id!r}, 0..{len(self._request.slices) - 1}"
            )
        if index not in self._unanswered:
            return None
        if response.HasField("error"):
            return self._failed(index, error_of(response))
        self._settled(index)
        result = convert.result_from_message(response)
        if result.volume_sha256 == self._digest:
            self._references.volumes.add(self._digest)
        return result

    def wait(self, error: VessaError) -> float:
        """Seconds until the next call, after one that left slices unanswered.

        Raises:
            VessaError: there is to be none; ``error``, or what led to it.
        """
        if self._unsendable is not None:
            raise self._unsendable
        if self._by_reference and is_unknown_volume(error):
            self._references.volumes.discard(self._digest)
            return 0.0
        return self._backoff.wait(self._overloaded or error)

    def _parts(
        self, reference: VolumeReference | None, indices: Iterable[int]
    ) -> Iterator[pb.SegmentVolumeRequest]:
        """Made one by one while they are sent, by another thread where gRPC wants it so."""
        header = convert.volume_header_to_message(self._request, reference)
        yield pb.SegmentVolumeRequest(header=header)
        for index in indices:
            try:
                part = convert.volume_slice_to_message(
                    self._request, index, image=reference is None
                )
            except VessaError as error:
                error.request_id, error.slice_index = self._request.request_id, index
                self._unsendable = error
                return
            yield pb.SegmentVolumeRequest(slice=part)

    def _failed(self, index: int, error: VessaError) -> VessaError | None:
        self._backoff.check_end(error)
        error.slice_index = index
        if is_transient(error):
            if self._overloaded is None or error.retry_after > self._overloaded.retry_after:
                self._overloaded = error
            return None
        self._settled(index)
        return error

    def _settled(self, index: int) -> None:
        self._unanswered.discard(index)
        self._backoff.succeeded()


def _check_indices(request: VolumeRequest) -> None:
    count = len(request.slices)
    if count == 0:
        raise InvalidRequestError("slices: none, expected at least one", field="slices")
    for field, indices in {"indices": request.indices, **_by_slice(request)}.items():
        for index in indices:
            if not 0 <= index < count:
                raise InvalidRequestError(f"{field}: {index}, expected 0..{count - 1}", field=field)


def _by_slice(request: VolumeRequest) -> dict[str, Mapping[int, object]]:
    """What is known of some slices alone."""
    return {
        "student_masks": request.student_masks,
        "points": request.points,
        "boxes": request.boxes,
    }
