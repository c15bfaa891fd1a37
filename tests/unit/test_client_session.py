"""What both clients share: attempts, streams and volumes, without a connection."""

from __future__ import annotations

from dataclasses import replace
from inspect import signature
from typing import Any
from unittest import mock

import numpy as np
import pytest

from support_client import answer, refusal
from vessa.v1 import pseudo_label_pb2 as pb
from vessa_client import (
    AsyncVessaClient,
    ClientOptions,
    DeadlineError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    ProtocolError,
    RetryPolicy,
    SegmentationRequest,
    SegmentationResult,
    UInt8Array,
    UnavailableError,
    VessaClient,
    VessaError,
    VolumeRequest,
    wire,
)
from vessa_client._session import Backoff, References
from vessa_client._streams import Outgoing, StreamSession, VolumeSession

RETRY = RetryPolicy(attempts=3, initial_seconds=0.1, multiplier=2.0, jitter=0.5)
SLICES: tuple[UInt8Array, ...] = tuple(np.full((4, 5), 60 * i, np.uint8) for i in range(4))
DIGEST = wire.volume_digest(wire.image_digest(image) for image in SLICES)
FULL_QUEUE: dict[str, Any] = {
    "code": "RESOURCE_EXHAUSTED",
    "message": "queue full",
    "retry_after_seconds": 4.0,
}


def test_waits_are_as_long_as_the_server_says_or_follow_the_policy() -> None:
    backoff = Backoff(RETRY, None)
    assert 4 <= backoff.wait(OverloadedError("", retry_after=4)) <= 6
    assert 0.1 <= backoff.wait(UnavailableError("")) <= 0.3
    backoff.succeeded()
    assert 7 <= backoff.wait(UnavailableError("", retry_after=7)) <= 10.5


@pytest.mark.parametrize(
    "error",
    [
        OverloadedError("over a limit"),
        InvalidRequestError(""),
        DeadlineError(""),
        NotFoundError(""),
    ],
)
def test_what_waiting_cannot_mend_fails_at_once(error: VessaError) -> None:
    with pytest.raises(type(error)):
        Backoff(RETRY, None).wait(error)


def test_attempts_and_time_are_bounded() -> None:
    backoff = Backoff(RETRY, None)
    backoff.wait(UnavailableError(""))
    backoff.wait(UnavailableError(""))
    with pytest.raises(UnavailableError, match="third"):
        backoff.wait(UnavailableError("third"))
    with pytest.raises(OverloadedError):
        Backoff(RETRY, timeout=3.0).wait(OverloadedError("", retry_after=4))


@pytest.mark.parametrize(("token", "position"), [("geheim-ü", 8), ("a\nb", 2), ("ключ", 1)])
def test_a_token_that_metadata_cannot_carry_is_refused(token: str, position: int) -> None:
    with pytest.raises(ValueError, match=f"token: character {position} ") as caught:
        ClientOptions(token=token)
    assert token not in str(caught.value)
    assert ClientOptions(token="s3cret-~!").metadata()


def test_both_clients_have_the_same_methods() -> None:
    methods = [name for name in vars(AsyncVessaClient) if not name.startswith("_")]
    assert {"segment", "segment_stream", "segment_volume", "info"} <= set(methods)
    for name in methods:
        one, other = getattr(VessaClient, name), getattr(AsyncVessaClient, name)
        assert list(signature(one).parameters.values()) == list(
            signature(other).parameters.values()
        ), name


def stream_session(count: int = 3, window: int = 8) -> StreamSession:
    requests = [
        SegmentationRequest(image=image, request_id=str(i))
        for i, image in enumerate(SLICES[:count])
    ]
    return StreamSession(References(), requests, window=window, retry=RETRY, timeout=None)


def sent(session: StreamSession) -> list[str]:
    items = list(session.fill())
    assert all(isinstance(item, Outgoing) for item in items)
    return [item.message.request_id for item in items if isinstance(item, Outgoing)]


def test_a_request_that_meets_a_full_queue_is_sent_again_alone() -> None:
    session = stream_session()
    assert sent(session) == ["0", "1", "2"]
    again = session.settle(refusal("1", **FULL_QUEUE))
    assert isinstance(again, Outgoing)
    assert again.message.request_id == "1"
    assert again.delay >= 4
    assert isinstance(session.settle(answer(SLICES[0], "0")), SegmentationResult)
    unfinished = {item.message.request_id: item.delay for item in session.unfinished()}
    assert set(unfinished) == {"1", "2"}
    assert unfinished["1"] > 3, "a new connection does not come sooner than the server said"
    assert unfinished["2"] == 0
    assert isinstance(session.settle(refusal("1", **FULL_QUEUE)), Outgoing)
    refused = session.settle(refusal("1", **FULL_QUEUE))
    assert isinstance(refused, OverloadedError), "attempts are bounded"
    assert refused.retry_after == 4
    assert isinstance(session.settle(answer(SLICES[2], "2")), SegmentationResult)
    assert session.idle


def test_requests_that_wait_keep_their_place_in_the_window() -> None:
    session = stream_session(window=2)
    assert sent(session) == ["0", "1"]
    session.settle(refusal("0", **FULL_QUEUE))
    assert sent(session) == []
    session.settle(answer(SLICES[1], "1"))
    assert sent(session) == ["2"]


def test_an_image_over_a_limit_fails_at_once() -> None:
    session = stream_session()
    sent(session)
    refused = session.settle(refusal("1", code="RESOURCE_EXHAUSTED", message="over the limit"))
    assert isinstance(refused, OverloadedError)


def test_an_image_larger_than_a_message_fails_alone() -> None:
    images = (SLICES[0], np.zeros((200, 200), np.uint8), SLICES[1])
    requests = [
        SegmentationRequest(image=image, request_id=str(i)) for i, image in enumerate(images)
    ]
    session = StreamSession(References(), requests, window=8, retry=RETRY, timeout=None)
    with mock.patch.object(wire, "MAX_MESSAGE_BYTES", 10_000):
        first, error, last = session.fill()
    assert isinstance(error, OverloadedError)
    assert (error.field, error.request_id) == ("image", "1")
    assert isinstance(first, Outgoing)
    assert isinstance(last, Outgoing)


def volume_session(request: VolumeRequest, references: References | None = None) -> VolumeSession:
    return VolumeSession(references or References(), request, retry=RETRY, timeout=None)


VOLUME = VolumeRequest(slices=SLICES, class_names=("disc",), request_id="v")


def settle(session: VolumeSession, index: int) -> SegmentationResult | VessaError | None:
    return session.settle(answer(SLICES[index], "v", index=index, volume=DIGEST))


def header_and_slices(session: VolumeSession) -> tuple[pb.VolumeHeader, list[pb.VolumeSlice]]:
    header, *slices = session.messages()
    assert header.HasField("header")
    assert all(part.HasField("slice") for part in slices)
    return header.header, [part.slice for part in slices]


def test_a_volume_is_sent_whole_and_later_by_reference() -> None:
    references = References()
    session = volume_session(VOLUME, references)
    header, slices = header_and_slices(session)
    assert header.num_slices == 4
    assert not header.HasField("ref")
    assert [part.index for part in slices] == [0, 1, 2, 3]
    assert all(part.HasField("image") for part in slices)
    for index in (2, 0, 3, 1):
        result = settle(session, index)
        assert isinstance(result, SegmentationResult)
        assert result.slice_index == index
    assert session.idle
    header, slices = header_and_slices(volume_session(VOLUME, references))
    assert header.ref.sha256 == DIGEST
    assert slices == [], "none at all means all of them"
    masks = {1: np.ones((4, 5), np.uint8)}
    _, slices = header_and_slices(
        volume_session(replace(VOLUME, student_masks=masks, indices=(3, 1)), references)
    )
    assert [part.index for part in slices] == [1, 3]
    assert [part.HasField("student_mask") for part in slices] == [True, False]
    assert not any(part.HasField("image") for part in slices)


def test_after_a_broken_connection_only_the_unanswered_slices_are_asked_for() -> None:
    session = volume_session(VOLUME)
    header_and_slices(session)
    settle(session, 2)
    settle(session, 1)
    assert session.wait(UnavailableError("gone")) > 0
    header, slices = header_and_slices(session)
    assert header.ref.sha256 == DIGEST
    assert [part.index for part in slices] == [0, 3]
    assert session.wait(NotFoundError("", field="volume.ref")) == 0
    _, slices = header_and_slices(session)
    assert [part.index for part in slices] == [0, 1, 2, 3], "it is sent whole again"
    assert settle(session, 1) is None, "what was answered before is not given twice"
    assert isinstance(settle(session, 0), SegmentationResult)
    assert isinstance(settle(session, 3), SegmentationResult)
    assert session.idle


def test_a_volume_that_was_sent_whole_is_not_sent_in_circles() -> None:
    session = volume_session(VOLUME)
    header_and_slices(session)
    with pytest.raises(NotFoundError):
        session.wait(NotFoundError("", field="volume.ref"))


def test_slices_that_meet_a_full_queue_are_asked_for_again_together() -> None:
    session = volume_session(VOLUME)
    header_and_slices(session)
    assert session.settle(refusal("v", index=1, **FULL_QUEUE)) is None
    assert session.settle(refusal("v", index=3, **FULL_QUEUE)) is None
    settle(session, 0)
    settle(session, 2)
    assert not session.idle
    assert session.wait(UnavailableError("the server closed the stream")) >= 4
    _, slices = header_and_slices(session)
    assert [part.index for part in slices] == [1, 3]


def test_a_wrong_slice_fails_alone() -> None:
    session = volume_session(replace(VOLUME, indices=(1, 2)))
    header_and_slices(session)
    error = session.settle(refusal("v", index=2, code="INVALID_ARGUMENT", field="image"))
    assert isinstance(error, InvalidRequestError)
    assert (error.slice_index, error.request_id, error.field) == (2, "v", "image")
    assert settle(session, 0) is None, "it was not asked for"
    assert isinstance(settle(session, 1), SegmentationResult)
    assert session.idle


def test_a_volume_that_cannot_be_sent_says_why() -> None:
    wrong = replace(VOLUME, slices=(*SLICES[:2], np.zeros((4, 5), np.complex64), SLICES[3]))
    session = volume_session(wrong)
    header, slices = header_and_slices(session)
    assert (header.num_slices, len(slices)) == (4, 2)
    with pytest.raises(InvalidRequestError, match="complex64") as caught:
        session.wait(InvalidRequestError("2 slices, expected 4"))
    assert caught.value.slice_index == 2


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"slices": ()}, "slices"),
        ({"indices": (4,)}, "indices"),
        ({"student_masks": {-1: SLICES[0]}}, "student_masks"),
    ],
)
def test_indices_outside_of_the_volume_are_refused(change: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        volume_session(replace(VOLUME, **change))  # type: ignore[arg-type]
    assert caught.value.field == field


def test_answers_of_another_request_break_the_contract() -> None:
    session = volume_session(VOLUME)
    with pytest.raises(ProtocolError):
        session.settle(answer(SLICES[0], "other"))
    with pytest.raises(ProtocolError):
        session.settle(answer(SLICES[0], "v", index=4))
    with pytest.raises(ProtocolError):
        stream_session().settle(answer(SLICES[0], "0"))
