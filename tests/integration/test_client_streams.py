"""Both clients against small real servers: flow, full queues, volumes, broken connections."""

# ruff: noqa: N802 (the names of the wire contract)

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import grpc
import numpy as np
import pytest

from support_client import Context, Images, abort, answer, expected_labels, pixels, refusal, serving
from vessa.v1 import pseudo_label_pb2 as pb
from vessa.v1 import pseudo_label_pb2_grpc as pb_grpc
from vessa_client import (
    AsyncVessaClient,
    ClassDefinition,
    ClientOptions,
    DeadlineError,
    ImageReference,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    RetryPolicy,
    SegmentationRequest,
    SegmentationResult,
    TemplateContent,
    TemplateInfo,
    UInt8Array,
    VessaClient,
    VessaError,
    VolumeRequest,
    convert,
    wire,
)

Item = SegmentationResult | VessaError
QUICK = ClientOptions(timeout=30, retry=RetryPolicy(attempts=5, initial_seconds=0.01))
SLICES: tuple[UInt8Array, ...] = tuple(np.full((6, 7), 50 * i, np.uint8) for i in range(5))
VOLUME = VolumeRequest(slices=SLICES, class_names=("disc",), request_id="v")


class Client:
    """Either client, with one way to use it; open while a test runs."""

    def __init__(self, kind: Literal["sync", "async"]) -> None:
        self.kind = kind
        self.runner = asyncio.Runner()
        self.exits = contextlib.ExitStack()

    def connect(self, target: str, options: ClientOptions = QUICK) -> None:
        if self.kind == "sync":
            self.sync = self.exits.enter_context(VessaClient(target, options))
            return

        async def opened() -> AsyncVessaClient:
            return AsyncVessaClient(target, options)

        self.asynchronous = self.runner.run(opened())
        self.exits.callback(lambda: self.runner.run(self.asynchronous.close()))

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        if self.kind == "sync":
            return getattr(self.sync, method)(*arguments, **options)
        found: Awaitable[Any] = getattr(self.asynchronous, method)(*arguments, **options)

        async def wait() -> Any:
            return await found

        return self.runner.run(wait())

    def collect(self, method: str, *arguments: Any, **options: Any) -> list[Item]:
        if self.kind == "sync":
            return list(getattr(self.sync, method)(*arguments, **options))

        async def gather() -> list[Item]:
            items = getattr(self.asynchronous, method)(*arguments, **options)
            return [item async for item in items]

        return self.runner.run(gather())

    def close(self) -> None:
        self.exits.close()
        self.runner.close()


@pytest.fixture(params=["sync", "async"])
def client(request: pytest.FixtureRequest) -> Iterator[Client]:
    opened = Client(request.param)
    yield opened
    opened.close()


def requests(images: Sequence[UInt8Array]) -> list[SegmentationRequest]:
    return [SegmentationRequest(image=image, request_id=str(i)) for i, image in enumerate(images)]


def assert_right(items: Sequence[Item], images: Sequence[UInt8Array]) -> None:
    """One result for each image, by its request id."""
    results = {item.request_id: item for item in items}
    assert len(items) == len(results) == len(images)
    for index, image in enumerate(images):
        result = results[str(index)]
        assert isinstance(result, SegmentationResult), result
        assert np.array_equal(result.labels, expected_labels(image))


class PausesReading(pb_grpc.PseudoLabelServiceServicer):
    """Reads no further while eight of its answers are unread."""

    async def SegmentStream(
        self, request_iterator: AsyncIterator[pb.SegmentRequest], context: Context
    ) -> AsyncIterator[pb.SegmentResponse]:
        async def answers() -> AsyncIterator[pb.SegmentResponse]:
            async for message in request_iterator:
                yield answer(pixels(message.image), message.request_id)

        async for response in self._paused(answers()):
            yield response

    async def SegmentVolume(
        self, request_iterator: AsyncIterator[pb.SegmentVolumeRequest], context: Context
    ) -> AsyncIterator[pb.SegmentResponse]:
        async def answers() -> AsyncIterator[pb.SegmentResponse]:
            header = (await anext(request_iterator)).header
            async for part in request_iterator:
                yield answer(pixels(part.slice.image), header.request_id, index=part.slice.index)

        async for response in self._paused(answers()):
            yield response

    async def _paused(
        self, answers: AsyncIterator[pb.SegmentResponse]
    ) -> AsyncIterator[pb.SegmentResponse]:
        places = asyncio.Semaphore(8)
        unread: asyncio.Queue[pb.SegmentResponse | None] = asyncio.Queue()

        async def read() -> None:
            async for response in answers:
                unread.put_nowait(response)
                await places.acquire()
            unread.put_nowait(None)

        reader = asyncio.create_task(read())
        while (response := await unread.get()) is not None:
            yield response
            places.release()
        await reader


def test_many_large_images_in_flight_do_not_block_each_other(client: Client) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (1024, 1024), dtype=np.uint8) for _ in range(64)]
    with serving(PausesReading()) as target:
        client.connect(target)
        items = client.collect("segment_stream", requests(images), window=64, timeout=60)
        assert_right(items, images)
        volume = VolumeRequest(slices=tuple(images[:32]))
        items = client.collect("segment_volume", volume, timeout=60)
        assert sorted(item.slice_index or 0 for item in items) == [*range(32)]
        assert all(isinstance(item, SegmentationResult) for item in items)


class Refuses(pb_grpc.PseudoLabelServiceServicer):
    """Refuses each request ``times`` times with ``code``; notes when it was asked for which."""

    def __init__(
        self, times: int, retry_after: float = 0.3, code: str = "RESOURCE_EXHAUSTED"
    ) -> None:
        self.times = times
        self.retry_after = retry_after
        self.code = code
        self.asked: dict[str, list[float]] = {}
        self.images = Images()

    def refuses(self, request_id: str) -> bool:
        asked = self.asked.setdefault(request_id, [])
        asked.append(time.monotonic())
        return len(asked) <= self.times

    def waits(self, request_id: str) -> list[float]:
        return np.diff(self.asked[request_id]).tolist()

    async def Segment(self, request: pb.SegmentRequest, context: Context) -> pb.SegmentResponse:
        if self.refuses(request.request_id):
            await abort(context, grpc.StatusCode[self.code], retry_after=self.retry_after)
        return answer(self.images.pixels(request.image), request.request_id)

    async def SegmentStream(
        self, request_iterator: AsyncIterator[pb.SegmentRequest], context: Context
    ) -> AsyncIterator[pb.SegmentResponse]:
        async for message in request_iterator:
            name = message.request_id
            if name == "1" and self.refuses(name):
                yield refusal(name, code=self.code, retry_after_seconds=self.retry_after)
            else:
                yield answer(self.images.pixels(message.image), name)


@pytest.mark.parametrize("code", ["RESOURCE_EXHAUSTED", "UNAVAILABLE"])
def test_one_who_is_asked_to_come_back_later_does(client: Client, code: str) -> None:
    with serving(servicer := Refuses(2, code=code)) as target:
        client.connect(target)
        result = client.call("segment", requests(SLICES)[0])
        assert isinstance(result, SegmentationResult)
        assert len(servicer.waits("0")) == 2
        assert all(0.3 <= wait < 5 for wait in servicer.waits("0"))
        items = client.collect("segment_stream", requests(SLICES), window=2)
        assert_right(items, SLICES)
        assert len(servicer.waits("1")) == 2
        assert all(0.3 <= wait < 5 for wait in servicer.waits("1"))
        assert items[-1].request_id == "1", "the others do not wait for it"


def test_an_image_over_a_limit_is_sent_once(client: Client) -> None:
    with serving(servicer := Refuses(9, retry_after=0)) as target:
        client.connect(target)
        with pytest.raises(OverloadedError):
            client.call("segment", requests(SLICES)[0])
        kinds = {i.request_id: type(i) for i in client.collect("segment_stream", requests(SLICES))}
        assert kinds.pop("1") is OverloadedError
        assert set(kinds.values()) == {SegmentationResult}
        assert [len(times) for times in servicer.asked.values()] == [1, 1]


def test_a_queue_that_stays_full_is_an_error_after_all_attempts(client: Client) -> None:
    with serving(servicer := Refuses(99, retry_after=0.01)) as target:
        client.connect(target)
        with pytest.raises(OverloadedError) as caught:
            client.call("segment", requests(SLICES)[0])
        assert caught.value.retry_after == pytest.approx(0.01)
        kinds = [type(i) for i in client.collect("segment_stream", requests(SLICES))]
        assert kinds.count(OverloadedError) == 1
        assert [len(times) for times in servicer.asked.values()] == [5, 5]


def test_no_one_waits_beyond_the_deadline(client: Client) -> None:
    with serving(servicer := Refuses(99, retry_after=60)) as target:
        client.connect(target, replace(QUICK, timeout=5))
        begin = time.monotonic()
        with pytest.raises(OverloadedError):
            client.call("segment", requests(SLICES)[0])
        kinds = [type(i) for i in client.collect("segment_stream", requests(SLICES), timeout=5)]
        assert kinds.count(OverloadedError) == 1
        assert time.monotonic() - begin < 5
        assert [len(times) for times in servicer.asked.values()] == [1, 1]


class Volumes(pb_grpc.PseudoLabelServiceServicer):
    """Holds volumes, and notes what it received; tests change how it answers.

    Attributes:
        received: of each call its header, the indices of its slices, and its bytes.
        held: slices of each volume, by its reference.
        breaks_after: answers after which a call breaks off, for each call in order.
        busy: calls for which a slice meets a full queue.
    """

    def __init__(self) -> None:
        self.received: list[tuple[pb.VolumeHeader, list[int], int]] = []
        self.held: dict[str, list[UInt8Array]] = {}
        self.breaks_after: list[int] = []
        self.busy: dict[int, int] = {}
        self.times: list[float] = []
        self.remaining: list[float] = []
        self.students: dict[int, Any] = {}

    async def SegmentVolume(
        self, request_iterator: AsyncIterator[pb.SegmentVolumeRequest], context: Context
    ) -> AsyncIterator[pb.SegmentResponse]:
        self.times.append(time.monotonic())
        self.remaining.append(context.time_remaining())
        parts = [part async for part in request_iterator]
        header, slices = parts[0].header, [part.slice for part in parts[1:]]
        size = sum(part.ByteSize() for part in parts)
        self.received.append((header, [part.index for part in slices], size))
        for part in slices:
            self.students[part.index] = convert.student_from_message(part.student_mask)
        reference = header.ref.sha256
        if not header.HasField("ref"):
            images = [pixels(part.image) for part in slices]
            if len(images) != header.num_slices:
                await abort(context, grpc.StatusCode.INVALID_ARGUMENT, field="slice")
            reference = wire.volume_digest(map(wire.image_digest, images))
            self.held[reference] = images
        elif reference not in self.held:
            await abort(context, grpc.StatusCode.NOT_FOUND, field=wire.VOLUME_REF_FIELD)
        wanted = [part.index for part in slices] or list(range(header.num_slices))
        breaks = self.breaks_after.pop(0) if self.breaks_after else None
        for count, index in enumerate(reversed(wanted)):
            if count == breaks:
                await abort(context, grpc.StatusCode.UNAVAILABLE)
            if self.busy.get(index, 0) > 0:
                self.busy[index] -= 1
                yield refusal(
                    header.request_id, index=index,
                    code="RESOURCE_EXHAUSTED", retry_after_seconds=0.3,
                )  # fmt: skip
            elif not self.held[reference][index].any() and header.text == "not empty":
                yield refusal(
                    header.request_id, index=index, code="INVALID_ARGUMENT", field="image"
                )
            else:
                yield answer(
                    self.held[reference][index], header.request_id, index=index, volume=reference
                )


def assert_volume(items: Sequence[Item], indices: Sequence[int] = range(len(SLICES))) -> None:
    """One right result for each of these slices."""
    assert sorted(i.slice_index for i in items if i.slice_index is not None) == [*indices]
    for item in items:
        assert isinstance(item, SegmentationResult), item
        assert item.request_id == "v"
        assert np.array_equal(item.labels, expected_labels(SLICES[item.slice_index]))


def test_a_volume_is_sent_once_and_then_by_reference(client: Client) -> None:
    with serving(servicer := Volumes()) as target:
        client.connect(target)
        assert_volume(client.collect("segment_volume", VOLUME, timeout=30))
        masks = {2: np.ones((6, 7), np.uint8)}
        assert_volume(client.collect("segment_volume", VOLUME))
        some = replace(VOLUME, indices=(4, 2), student_masks=masks)
        assert_volume(client.collect("segment_volume", some), [2, 4])
    (first, every, size), (second, none, small), (_, two, _) = servicer.received
    assert (every, none, two) == ([0, 1, 2, 3, 4], [], [2, 4])
    assert not first.HasField("ref")
    assert second.ref.sha256 in servicer.held
    assert small < 150 < size
    assert np.array_equal(servicer.students[2], masks[2])
    assert servicer.students[4] is None
    # gRPC rounds what it sends.
    assert 0 < servicer.remaining[0] < 35, "the server knows how long is waited"


def test_a_volume_that_the_server_forgot_is_sent_again(client: Client) -> None:
    with serving(servicer := Volumes()) as target:
        client.connect(target)
        client.collect("segment_volume", VOLUME)
        servicer.held.clear()
        assert_volume(client.collect("segment_volume", replace(VOLUME, indices=(1,))), [1])
    assert [header.HasField("ref") for header, _, _ in servicer.received] == [False, True, False]


def test_after_a_broken_call_only_the_rest_is_asked_for(client: Client) -> None:
    with serving(servicer := Volumes()) as target:
        client.connect(target)
        servicer.breaks_after = [0, 2, 1]
        assert_volume(client.collect("segment_volume", VOLUME))
    sent = [(header.HasField("ref"), indices) for header, indices, _ in servicer.received]
    assert sent == [
        (False, [0, 1, 2, 3, 4]),
        (False, [0, 1, 2, 3, 4]),
        (True, [0, 1, 2]),
        (True, [0, 1]),
    ]


def test_slices_that_meet_a_full_queue_are_asked_for_again(client: Client) -> None:
    with serving(servicer := Volumes()) as target:
        client.connect(target)
        servicer.busy = {0: 1, 3: 1}
        assert_volume(client.collect("segment_volume", VOLUME))
    assert [indices for _, indices, _ in servicer.received] == [[0, 1, 2, 3, 4], [0, 3]]
    assert servicer.times[1] - servicer.times[0] >= 0.3


def test_a_wrong_slice_fails_alone_and_a_wrong_volume_as_a_whole(client: Client) -> None:
    with serving(Volumes()) as target:
        client.connect(target)
        items = client.collect("segment_volume", replace(VOLUME, text="not empty"))
        (error,) = (item for item in items if isinstance(item, VessaError))
        assert isinstance(error, InvalidRequestError)
        assert (error.slice_index, error.field) == (0, "image")
        assert_volume([item for item in items if item is not error], range(1, 5))
        unsendable = replace(VOLUME, slices=(*SLICES[:4], np.zeros((6, 7), np.complex64)))
        with pytest.raises(InvalidRequestError, match="complex64"):
            client.collect("segment_volume", unsendable)


class Hangs(pb_grpc.PseudoLabelServiceServicer):
    """Answers one image, and no other until the client gives up."""

    async def SegmentStream(
        self, request_iterator: AsyncIterator[pb.SegmentRequest], context: Context
    ) -> AsyncIterator[pb.SegmentResponse]:
        message = await anext(request_iterator)
        yield answer(pixels(message.image), message.request_id)
        with contextlib.suppress(StopAsyncIteration):
            while True:
                await anext(request_iterator)


class AnswersAll(pb_grpc.PseudoLabelServiceServicer):
    """Answers all images of a stream."""

    async def SegmentStream(
        self, request_iterator: AsyncIterator[pb.SegmentRequest], context: Context
    ) -> AsyncIterator[pb.SegmentResponse]:
        async for message in request_iterator:
            yield answer(pixels(message.image), message.request_id)


def test_a_stream_ends_with_its_time_limit(client: Client) -> None:
    with serving(Hangs()) as target:
        client.connect(target)
        with pytest.raises(DeadlineError):
            client.collect("segment_stream", requests(SLICES), timeout=0.5)


class Late(pb_grpc.PseudoLabelServiceServicer):
    """Says of each image and slice that its time is over, a moment before it is."""

    async def SegmentStream(
        self, request_iterator: AsyncIterator[pb.SegmentRequest], context: Context
    ) -> AsyncIterator[pb.SegmentResponse]:
        message = await anext(request_iterator)
        await asyncio.sleep(context.time_remaining() - 0.02)
        yield refusal(message.request_id, code="DEADLINE_EXCEEDED", message="late")

    async def SegmentVolume(
        self, request_iterator: AsyncIterator[pb.SegmentVolumeRequest], context: Context
    ) -> AsyncIterator[pb.SegmentResponse]:
        parts = [part async for part in request_iterator]
        await asyncio.sleep(context.time_remaining() - 0.02)
        yield refusal(parts[0].header.request_id, index=1, code="DEADLINE_EXCEEDED", message="late")


@pytest.mark.parametrize("method", ["segment_stream", "segment_volume"])
def test_the_end_of_the_time_is_raised_whoever_says_it(client: Client, method: str) -> None:
    asked = requests(SLICES) if method == "segment_stream" else VOLUME
    with serving(Late()) as target:
        client.connect(target)
        with pytest.raises(DeadlineError):
            client.collect(method, asked, timeout=0.5)


def test_a_restarted_server_is_sent_what_is_unfinished() -> None:
    options = ClientOptions(retry=RetryPolicy(attempts=60, initial_seconds=0.1, max_seconds=0.2))
    with contextlib.ExitStack() as first:
        target = first.enter_context(serving(Hangs()))
        with VessaClient(target, options) as client:
            stream = client.segment_stream(requests(SLICES))
            items = [next(stream)]
            first.close()
            with serving(AnswersAll(), port=int(target.rpartition(":")[2])):
                items += stream
    assert_right(items, SLICES)


class Banks(pb_grpc.PseudoLabelServiceServicer):
    """Notes the bank of each call."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def Segment(self, request: pb.SegmentRequest, context: Context) -> pb.SegmentResponse:
        self.asked.append(request.bank)
        return answer(pixels(request.image), request.request_id)

    async def SegmentStream(
        self, request_iterator: AsyncIterator[pb.SegmentRequest], context: Context
    ) -> AsyncIterator[pb.SegmentResponse]:
        async for message in request_iterator:
            self.asked.append(message.bank)
            yield answer(SLICES[0], message.request_id)

    async def SegmentVolume(
        self, request_iterator: AsyncIterator[pb.SegmentVolumeRequest], context: Context
    ) -> AsyncIterator[pb.SegmentResponse]:
        parts = [part async for part in request_iterator]
        self.asked.append(parts[0].header.bank)
        for part in parts[1:]:
            yield answer(SLICES[0], parts[0].header.request_id, index=part.slice.index)

    async def AddTemplate(
        self, request: pb.AddTemplateRequest, context: Context
    ) -> pb.AddTemplateResponse:
        self.asked.append(request.bank)
        return pb.AddTemplateResponse(created=True)

    async def GetTemplate(
        self, request: pb.GetTemplateRequest, context: Context
    ) -> pb.GetTemplateResponse:
        self.asked.append(request.bank)
        info = TemplateInfo(template_id="t", name="", height=1, width=1, class_names=("disc",))
        one = np.zeros((1, 1), np.uint8)
        return convert.template_content_to_message(TemplateContent(info, one, one))

    async def ListTemplates(
        self, request: pb.ListTemplatesRequest, context: Context
    ) -> pb.ListTemplatesResponse:
        self.asked.append(request.bank)
        return pb.ListTemplatesResponse()

    async def DeleteTemplate(
        self, request: pb.DeleteTemplateRequest, context: Context
    ) -> pb.DeleteTemplateResponse:
        self.asked.append(request.bank)
        return pb.DeleteTemplateResponse()

    async def GetServerInfo(
        self, request: pb.GetServerInfoRequest, context: Context
    ) -> pb.GetServerInfoResponse:
        self.asked.append(request.bank)
        return pb.GetServerInfoResponse()


@pytest.mark.parametrize(
    ("default", "named", "expected"),
    [("", "", ""), ("brain", "", "brain"), ("brain", "cardiac", "cardiac"), ("", "knee", "knee")],
)
def test_every_call_names_its_bank(client: Client, default: str, named: str, expected: str) -> None:
    classes = [ClassDefinition(name="disc")]
    with serving(servicer := Banks()) as target:
        client.connect(target, replace(QUICK, bank=default))
        request = SegmentationRequest(image=SLICES[0], bank=named)
        client.call("segment", request)
        client.collect("segment_stream", [request])
        client.collect("segment_volume", replace(VOLUME, bank=named))
        client.call("add_template", SLICES[0], SLICES[0] * 0, classes, bank=named)
        client.call("get_template", "t", bank=named)
        client.call("list_templates", bank=named)
        client.call("delete_template", "t", bank=named)
        client.call("info", bank=named)
    assert servicer.asked == [expected] * 8


def test_images_that_the_server_forgot_are_sent_again(client: Client) -> None:
    class Forgets(pb_grpc.PseudoLabelServiceServicer):
        """Holds no image."""

        async def Segment(self, request: pb.SegmentRequest, context: Context) -> pb.SegmentResponse:
            if request.image.HasField("ref"):
                await abort(context, grpc.StatusCode.NOT_FOUND, field=wire.IMAGE_REF_FIELD)
            return answer(pixels(request.image), request.request_id)

    with serving(Forgets()) as target:
        client.connect(target)
        request = SegmentationRequest(image=SLICES[3])
        for _ in range(2):
            result = client.call("segment", request)
            assert np.array_equal(result.labels, expected_labels(SLICES[3]))
        with pytest.raises(NotFoundError):
            client.call("segment", replace(request, image=ImageReference("f" * 64)))
