"""SegmentVolume: volumes as they should be, as they should not be, and many at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from support import Gate, RunningServer, engine_of, gate_of, picture, running
from support_process import server_process
from vessa.v1 import pseudo_label_pb2 as pb
from vessa.v1 import pseudo_label_pb2_grpc as pb_grpc
from vessa_client import (
    AnyArray,
    ClientOptions,
    DeadlineError,
    OverloadedError,
    RetryPolicy,
    SegmentationRequest,
    SegmentationResult,
    VessaClient,
    VolumeRequest,
    convert,
    files,
    wire,
)
from vessa_server.engine_settings import EngineSettings

SLICES = tuple(picture(seed)[0] for seed in range(12))
LABELS = picture(5)[1]
VOLUME = VolumeRequest(slices=SLICES, request_id="v")
ONCE = ClientOptions(retry=RetryPolicy(attempts=1))


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return gate_of(tmp_path)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running(engine_of(tmp_path_factory.mktemp("volumes"))) as started:
        yield started


@pytest.fixture
def stub(server: RunningServer) -> Iterator[Any]:
    with grpc.insecure_channel(server.grpc) as channel:
        yield pb_grpc.PseudoLabelServiceStub(channel)


def metric(server: RunningServer, name: str) -> float:
    text = httpx.get(f"{server.http}/metrics").text
    line = next(line for line in text.splitlines() if line.startswith(f"{name} "))
    return float(line.split()[1])


def wait_until_free(server: RunningServer) -> None:
    while metric(server, "vessa_queue_depth") or metric(server, "vessa_volume_bytes"):
        pass


def header(**fields: Any) -> pb.SegmentVolumeRequest:
    return pb.SegmentVolumeRequest(header=pb.VolumeHeader(**{"request_id": "v", **fields}))


def part(index: int, image: AnyArray | bytes | None, **fields: Any) -> pb.SegmentVolumeRequest:
    message = None if image is None else convert.image_to_message(image)
    return pb.SegmentVolumeRequest(slice=pb.VolumeSlice(index=index, image=message, **fields))


def collect(client: VessaClient, request: VolumeRequest) -> dict[int, SegmentationResult]:
    """All answers of a volume, by slice."""
    found = {}
    for item in client.segment_volume(request):
        assert isinstance(item, SegmentationResult), item
        assert item.request_id == request.request_id
        found[item.slice_index] = item
    return found


# --- As it should be


def test_answers_are_those_of_slices_with_the_same_voters(
    server: RunningServer, tmp_path: Path
) -> None:
    engine = engine_of(tmp_path)
    most = engine.settings.policy.volume.slices
    voters = tuple(SLICES[i] for i in files.spread(len(SLICES), most))
    masks = {5: LABELS}
    with VessaClient(server.grpc) as client:
        found = collect(client, replace(VOLUME, student_masks=masks))
        again = collect(client, replace(VOLUME, student_masks=masks, indices=(5, 2)))
    assert sorted(found) == list(range(len(SLICES)))
    assert sorted(again) == [2, 5]
    for index, result in found.items():
        request = SegmentationRequest(
            image=SLICES[index], volume=voters, student_mask=masks.get(index)
        )
        expected = engine.segment(request)
        assert np.array_equal(result.labels, expected.labels)
        assert np.array_equal(result.confidence, expected.confidence)
        assert {r.volume_sha256 for r in found.values()} == {result.volume_sha256}
    assert all(np.array_equal(again[i].labels, found[i].labels) for i in again)


def test_slices_may_come_in_any_order(server: RunningServer, stub: Any) -> None:
    with VessaClient(server.grpc) as client:
        expected = collect(client, VOLUME)
    parts = [part(i, SLICES[i]) for i in reversed(range(len(SLICES)))]
    found = list(stub.SegmentVolume(iter([header(num_slices=len(SLICES)), *parts])))
    assert sorted(message.slice_index for message in found) == list(range(len(SLICES)))
    for message in found:
        result = convert.result_from_message(message)
        assert np.array_equal(result.labels, expected[result.slice_index].labels)


def test_two_volumes_at_a_time_do_not_mix(server: RunningServer) -> None:
    volumes = [VolumeRequest(slices=SLICES[k::2], request_id=str(k)) for k in range(2)]

    def ask(request: VolumeRequest) -> dict[int, SegmentationResult]:
        with VessaClient(server.grpc) as client:
            return collect(client, request)

    with ThreadPoolExecutor() as pool:
        together = list(pool.map(ask, volumes))
    for found, request in zip(together, volumes, strict=True):
        for index, result in ask(request).items():
            assert np.array_equal(found[index].labels, result.labels)


def test_many_slices_flow_and_leave_nothing_behind(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def volume() -> VolumeRequest:
        noise = rng.integers(0, 40, (300, 60, 52), dtype=np.uint8)
        return VolumeRequest(slices=tuple(slice_ + SLICES[0] // 2 for slice_ in noise))

    with server_process(tmp_path, feature_bytes=1 << 20) as server:
        with VessaClient(server.grpc) as client:
            assert len(collect(client, volume())) == 300
            before = server.resident
            assert len(collect(client, volume())) == 300
        assert server.resident - before < 64 << 20


# --- As it should not be


@pytest.mark.parametrize(
    ("messages", "code", "field"),
    [
        ([], "INVALID_ARGUMENT", "header"),
        ([part(0, SLICES[0])], "INVALID_ARGUMENT", "part"),
        ([header(num_slices=2), header(num_slices=2)], "INVALID_ARGUMENT", "part"),
        ([header(num_slices=2), pb.SegmentVolumeRequest()], "INVALID_ARGUMENT", "part"),
        ([header(num_slices=0)], "INVALID_ARGUMENT", "num_slices"),
        ([header(num_slices=2**32 - 1)], "INVALID_ARGUMENT", "num_slices"),
        ([header(num_slices=2), part(0, SLICES[0])], "INVALID_ARGUMENT", "num_slices"),
        ([header(num_slices=2), part(2, SLICES[0])], "INVALID_ARGUMENT", "slice.index"),
        ([header(num_slices=2)] + [part(1, SLICES[0])] * 2, "INVALID_ARGUMENT", "slice.index"),
        ([header(num_slices=2, class_names=["x"])], "NOT_FOUND", "class_names"),
        ([header(num_slices=2, class_names=["disc"] * 2)], "INVALID_ARGUMENT", "class_names"),
        ([header(num_slices=2, bank="none")], "NOT_FOUND", "bank"),
        ([header(num_slices=2, text="x" * 999)], "INVALID_ARGUMENT", "text"),
        (
            [header(num_slices=2, options=pb.SegmentOptions(policy_off=["x"]))],
            *("INVALID_ARGUMENT", "policy_off"),
        ),
        ([header(num_slices=2, ref=pb.VolumeRef(sha256="é\n" * 999))], "NOT_FOUND", "volume.ref"),
    ],
)
def test_a_wrong_volume_ends_the_call(
    stub: Any, messages: list[pb.SegmentVolumeRequest], code: str, field: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.SegmentVolume(iter(messages), timeout=20))
    error: Any = caught.value
    assert error.code().name == code
    assert dict(error.trailing_metadata())["vessa-field"] == field


def test_a_wrong_header_is_refused_before_the_slices_come(stub: Any) -> None:
    ended = threading.Event()

    def messages() -> Iterator[pb.SegmentVolumeRequest]:
        yield header(num_slices=2, class_names=["x"])
        ended.wait(30)

    with pytest.raises(grpc.RpcError) as caught:
        list(stub.SegmentVolume(messages(), timeout=20))
    ended.set()
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.NOT_FOUND


BAD_SLICES: dict[str, Callable[[int], pb.SegmentVolumeRequest]] = {
    "no image": lambda i: part(i, None),
    "no file": lambda i: part(i, b"none"),
    "another size": lambda i: part(i, SLICES[0][:40]),
    "a colour picture": lambda i: part(i, np.stack([SLICES[0]] * 3, -1)),
    "NaN": lambda i: part(i, np.full(SLICES[0].shape, np.nan)),
    "too few bytes": lambda i: pb.SegmentVolumeRequest(
        slice=pb.VolumeSlice(
            index=i,
            image=pb.Image(tensor=pb.Tensor(dtype=pb.DATA_TYPE_UINT8, shape=[60, 52], data=b"x")),
        )
    ),
    "an unknown reference": lambda i: pb.SegmentVolumeRequest(
        slice=pb.VolumeSlice(index=i, image=pb.Image(ref=pb.ImageRef(sha256="f" * 64)))
    ),
    "a mask of another size": lambda i: part(
        i, SLICES[i], student_mask=pb.StudentMask(label_map=wire.encode_label_map(LABELS[1:], 2))
    ),
}


@pytest.mark.parametrize("name", BAD_SLICES)
def test_a_bad_slice_fails_alone(stub: Any, name: str) -> None:
    parts = [part(i, SLICES[i]) for i in range(4)]
    parts[2] = BAD_SLICES[name](2)
    answers = list(stub.SegmentVolume(iter([header(num_slices=4), *parts])))
    failed = [answer for answer in answers if answer.HasField("error")]
    assert [answer.slice_index for answer in failed] == [2]
    assert failed[0].request_id == "v"
    assert failed[0].error.code in ("INVALID_ARGUMENT", "NOT_FOUND")
    assert failed[0].error.field
    assert sorted(a.slice_index for a in answers) == [0, 1, 2, 3]


def test_a_volume_by_reference_answers_what_is_asked(server: RunningServer, stub: Any) -> None:
    with VessaClient(server.grpc) as client:
        sent = collect(client, VOLUME)
    reference = pb.VolumeRef(sha256=sent[0].volume_sha256)
    mask = pb.StudentMask(label_map=wire.encode_label_map(LABELS, 2))
    messages = [header(ref=reference), part(5, None, student_mask=mask), part(3, SLICES[3])]
    answers = {a.slice_index: a for a in stub.SegmentVolume(iter(messages))}
    assert set(answers) == {3, 5}
    assert answers[3].error.field == "slice.image"
    assert not answers[5].HasField("error")
    with pytest.raises(grpc.RpcError, match=r"slice\.index"):
        list(stub.SegmentVolume(iter([header(ref=reference), part(99, None)])))


# --- Limits


def test_too_much_work_is_refused_with_the_first_slice(tmp_path: Path) -> None:
    pixels = SLICES[0].size
    engine = engine_of(tmp_path, settings=EngineSettings(max_request_pixels=30 * pixels))
    settings = {"max_request_pixels": 10 * pixels}
    with running(engine, **settings) as server, VessaClient(server.grpc, ONCE) as client:
        with pytest.raises(OverloadedError, match="x 12 slices x 2 classes") as caught:
            list(client.segment_volume(VOLUME))
        assert caught.value.field == "volume"
        assert len(collect(client, replace(VOLUME, slices=SLICES[:5]))) == 5
        assert len(collect(client, replace(VOLUME, slices=SLICES[:10], class_names=("bar",)))) == 10


def test_a_volume_that_is_too_large_is_refused_and_others_wait(gate: Gate) -> None:
    most = 15 * SLICES[0].nbytes
    with running(gate, max_queue_bytes=most) as server, ThreadPoolExecutor() as pool:
        with VessaClient(server.grpc, ONCE) as client, VessaClient(server.grpc) as patient:
            with pytest.raises(OverloadedError, match="VESSA_MAX_QUEUE_BYTES") as caught:
                list(client.segment_volume(replace(VOLUME, slices=SLICES * 2)))
            assert caught.value.retry_after == 0
            first = pool.submit(collect, patient, VOLUME)
            while not metric(server, "vessa_queue_depth"):
                pass
            with pytest.raises(OverloadedError) as caught:
                list(client.segment_volume(replace(VOLUME, slices=SLICES[::-1])))
            assert caught.value.retry_after > 0
            gate.opened.set()
            assert len(first.result(60)) == len(SLICES)
            assert len(collect(client, replace(VOLUME, slices=SLICES[::-1]))) == len(SLICES)
        wait_until_free(server)


def test_slices_of_a_volume_wait_for_a_place_in_the_queue(gate: Gate) -> None:
    with (
        running(gate, max_queue=2) as server,
        ThreadPoolExecutor() as pool,
        VessaClient(server.grpc, ONCE) as client,
    ):
        found = pool.submit(collect, client, VOLUME)
        while metric(server, "vessa_queue_depth") < 2:
            pass
        gate.opened.set()
        assert len(found.result(60)) == len(SLICES)


# --- Those who go away


def test_a_volume_whose_client_goes_away_is_forgotten(gate: Gate) -> None:
    with running(gate) as server:
        with grpc.insecure_channel(server.grpc) as channel:
            stub: Any = pb_grpc.PseudoLabelServiceStub(channel)
            ended = threading.Event()

            def half() -> Iterator[pb.SegmentVolumeRequest]:
                yield header(num_slices=12)
                yield from (part(i, SLICES[i]) for i in range(6))
                ended.wait(30)

            sending = stub.SegmentVolume(half())
            while metric(server, "vessa_volume_bytes") < 6 * SLICES[0].nbytes:
                pass
            sending.cancel()
            ended.set()
            wait_until_free(server)
            parts = [part(i, SLICES[i]) for i in range(12)]
            waiting = stub.SegmentVolume(iter([header(num_slices=12), *parts]))
            while metric(server, "vessa_queue_depth") < 12:
                pass
            waiting.cancel()
            wait_until_free(server)
        gate.opened.set()
        with VessaClient(server.grpc) as client:
            assert len(collect(client, VOLUME)) == 12


def test_a_deadline_ends_a_volume(gate: Gate) -> None:
    with running(gate) as server:
        with VessaClient(server.grpc, ONCE) as client, pytest.raises(DeadlineError):
            list(client.segment_volume(VOLUME, timeout=0.5))
        wait_until_free(server)
        gate.opened.set()


def test_a_reader_that_stops_in_the_middle_is_forgotten(server: RunningServer) -> None:
    with VessaClient(server.grpc) as client:
        answers = client.segment_volume(replace(VOLUME, slices=SLICES[::-1]))
        assert isinstance(next(answers), SegmentationResult)
        with suppress(GeneratorExit):
            answers.close()  # type: ignore[attr-defined]
    wait_until_free(server)
