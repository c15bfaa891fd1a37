"""Clients that go away, flood, or have no token, and a bank in trouble."""

from __future__ import annotations

import itertools
import resource
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from pydantic import ValidationError

from support import CLASSES, Gate, RunningServer, engine_of, gate_of, picture, running
from support_files import png
from support_process import server_process
from vessa.v1 import pseudo_label_pb2 as pb
from vessa.v1 import pseudo_label_pb2_grpc as pb_grpc
from vessa_client import (
    ClientOptions,
    OverloadedError,
    RetryPolicy,
    SegmentationRequest,
    SegmentationResult,
    VessaClient,
    VessaError,
    convert,
)
from vessa_server.api.settings import ServerSettings
from vessa_server.cases.case import Case
from vessa_server.cases.images import StoredImage
from vessa_server.engine import VessaEngine

IMAGE, _ = picture(0)
ONCE = ClientOptions(retry=RetryPolicy(attempts=1))


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return gate_of(tmp_path)


def depth(server: RunningServer) -> int:
    """Requests that wait or run."""
    text = httpx.get(f"{server.http}/metrics").text
    line = next(line for line in text.splitlines() if line.startswith("vessa_queue_depth "))
    return int(float(line.split()[1]))


def wait_for_depth(server: RunningServer, wanted: int) -> None:
    while depth(server) != wanted:
        pass


def request_bytes(content: bytes) -> bytes:
    """A whole request with a form, as it goes over the wire."""
    built = httpx.Request("POST", "http://x/pseudolabel", files={"image": content})
    lines = [f"{name}: {value}" for name, value in built.headers.items()]
    return "\r\n".join(["POST /pseudolabel HTTP/1.1", *lines, "", ""]).encode() + built.read()


def connect(server: RunningServer) -> socket.socket:
    host, port = server.http.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)))


# --- Those who go away


@pytest.mark.parametrize("at_once", [True, False])
def test_nothing_is_computed_for_closed_connections(gate: Gate, at_once: bool) -> None:
    with running(gate) as server, ThreadPoolExecutor() as pool:
        first = pool.submit(httpx.post, f"{server.http}/pseudolabel", files={"image": png(IMAGE)})
        assert gate.entered.wait(30)
        connections = []
        for seed in range(1, 11):
            connection = connect(server)
            connection.sendall(request_bytes(png(picture(seed)[0])))
            connections.append(connection)
            if at_once:
                connection.close()
        if not at_once:
            wait_for_depth(server, 11)
            for connection in connections:
                connection.close()
        wait_for_depth(server, 1)
        live = pool.submit(
            httpx.post, f"{server.http}/pseudolabel", files={"image": png(picture(99)[0])}
        )
        wait_for_depth(server, 2)
        gate.opened.set()
        assert first.result(30).status_code == live.result(30).status_code == 200
    assert len(gate.seen) == 2


def test_nothing_is_computed_for_cancelled_calls(gate: Gate) -> None:
    with running(gate) as server, grpc.insecure_channel(server.grpc) as channel:
        stub: Any = pb_grpc.PseudoLabelServiceStub(channel)

        def ask(seed: int) -> Any:
            image = convert.image_to_message(picture(seed)[0])
            return stub.Segment.future(pb.SegmentRequest(image=image))

        first = ask(0)
        assert gate.entered.wait(30)
        dead = [ask(seed) for seed in range(1, 64)]
        wait_for_depth(server, 64)
        for call in dead:
            call.cancel()
        wait_for_depth(server, 1)
        live = ask(99)
        wait_for_depth(server, 2)
        gate.opened.set()
        assert first.result(30).label_map.height == live.result(30).label_map.height == 60
    assert len(gate.seen) == 2


# --- Those who flood


def test_a_full_queue_says_when_to_come_back_in_both_transports(gate: Gate) -> None:
    with running(gate, max_queue=1) as server, ThreadPoolExecutor() as pool:
        url, files = f"{server.http}/pseudolabel", {"image": png(IMAGE)}
        first = pool.submit(httpx.post, url, files=files)
        assert gate.entered.wait(30)
        answer = httpx.post(url, files=files)
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        with VessaClient(server.grpc, ONCE) as client:
            with pytest.raises(OverloadedError) as caught:
                client.segment(SegmentationRequest(image=IMAGE))
            assert caught.value.retry_after > 0
            (refused,) = client.segment_stream([SegmentationRequest(image=IMAGE)])
            assert isinstance(refused, OverloadedError)
            assert refused.retry_after > 0
        gate.opened.set()
        assert first.result(30).status_code == 200


class SlowEngine(VessaEngine):
    """An engine that waits until it may decode."""

    opened: threading.Event

    def open(self, request: SegmentationRequest, volume: Sequence[StoredImage] = ()) -> Case:
        assert self.opened.wait(30)
        return super().open(request, volume)


def test_requests_that_are_not_decoded_yet_are_counted(tmp_path: Path) -> None:
    engine = engine_of(tmp_path)
    engine.__class__ = SlowEngine
    assert isinstance(engine, SlowEngine)
    engine.opened = threading.Event()
    with running(engine, max_queue=2) as server, ThreadPoolExecutor() as pool:
        url, files = f"{server.http}/pseudolabel", {"image": png(IMAGE)}
        waiting = [pool.submit(httpx.post, url, files=files, timeout=60) for _ in range(6)]
        done, _ = wait(waiting, return_when=FIRST_COMPLETED)
        refused = next(iter(done)).result()
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        engine.opened.set()
        statuses = [found.result(60).status_code for found in waiting]
        assert statuses.count(200) >= 2
        assert set(statuses) == {200, 429}


def test_too_much_work_is_refused_in_both_transports(tmp_path: Path) -> None:
    settings = {"max_request_pixels": 10_000}
    engine = engine_of(tmp_path)
    engine.settings = type(engine.settings)(max_request_pixels=10_000)
    big = np.pad(IMAGE, ((0, 60), (0, 52)))
    with running(engine, **settings) as server, VessaClient(server.grpc, ONCE) as client:
        with pytest.raises(OverloadedError, match="12480 pixels x 2 classes"):
            client.segment(SegmentationRequest(image=big))
        with pytest.raises(OverloadedError, match="x 2 classes x 3 slices"):
            client.segment(SegmentationRequest(image=IMAGE, volume=(IMAGE,) * 3))
        answer = httpx.post(f"{server.http}/pseudolabel", files={"image": png(big)})
        assert answer.status_code == 413
        assert "VESSA_MAX_REQUEST_PIXELS" in answer.json()["error"]["message"]
        one = SegmentationRequest(image=IMAGE, class_names=("disc",))
        assert isinstance(client.segment(one), SegmentationResult)


# --- Strangers


def test_a_body_of_a_stranger_is_not_waited_for(tmp_path: Path) -> None:
    with running(engine_of(tmp_path), token="s3cret") as server:
        for length, status in ((120_000_000, b"401"), (10**15, b"401")):
            with connect(server) as connection:
                connection.sendall(
                    b"POST /pseudolabel HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n"
                    b"Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n" % length
                )
                assert connection.recv(1000).startswith(b"HTTP/1.1 " + status)
        whole = httpx.post(f"{server.http}/pseudolabel", content=bytes(120_000_000), timeout=60)
        assert whole.status_code == 401
        assert whole.headers["www-authenticate"] == "Bearer"
        assert whole.json()["error"]["code"] == "UNAUTHENTICATED"


def test_a_call_of_a_stranger_is_refused_before_its_messages(tmp_path: Path) -> None:
    with running(engine_of(tmp_path), token="s3cret") as server:
        never: Iterator[bytes] = iter(threading.Event().wait, b"")  # type: ignore[arg-type]
        with grpc.insecure_channel(server.grpc) as channel:
            for path in (
                "/vessa.v1.PseudoLabelService/SegmentStream",
                "/vessa.v1.PseudoLabelService/SegmentVolume",
                "/inference.GRPCInferenceService/ModelInfer",
            ):
                call: Any = channel.stream_stream(path, bytes, bytes)
                with pytest.raises(grpc.RpcError) as caught:
                    list(call(never, timeout=5))
                assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_the_scheme_is_written_in_any_way(tmp_path: Path) -> None:
    with running(engine_of(tmp_path), token="s3cret") as server:
        for given, status in (
            ("bearer s3cret", 200),
            ("BEARER  s3cret", 200),
            ("Basic s3cret", 401),
            ("s3cret", 401),
            ("Bearer s3crét", 401),
            ("Bearer", 401),
        ):
            headers = {b"Authorization": given.encode("latin-1")}
            assert httpx.get(f"{server.http}/templates", headers=headers).status_code == status


@pytest.mark.parametrize("token", ["schlüssel", "two words", "tab\t", "\x1b"])
def test_a_token_that_no_header_can_carry_is_refused_at_the_start(token: str) -> None:
    with pytest.raises(ValidationError, match="printable ASCII") as caught:
        ServerSettings.model_validate({"token": token})
    assert token not in str(caught.value.errors()[0]["msg"])


# --- The bank


def test_templates_may_go_while_others_segment(tmp_path: Path) -> None:
    engine = engine_of(tmp_path)
    with running(engine) as server, VessaClient(server.grpc) as client:
        stop = threading.Event()

        def change() -> None:
            for seed in itertools.count(500):
                if stop.is_set():
                    return
                with VessaClient(server.grpc) as other:
                    info, _ = other.add_template(*picture(seed), CLASSES)
                    other.delete_template(info.template_id)

        changing = threading.Thread(target=change)
        changing.start()
        requests = [SegmentationRequest(image=picture(i)[0], request_id=str(i)) for i in range(50)]
        results = list(client.segment_stream(requests))
        stop.set()
        changing.join(30)
    assert [r for r in results if isinstance(r, VessaError)] == []


def test_a_full_disk_is_said_in_both_transports(tmp_path: Path) -> None:
    with server_process(tmp_path) as server, VessaClient(server.grpc, ONCE) as client:
        before = client.list_templates()
        _, hard = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (0, hard))
        with pytest.raises(OverloadedError, match=r"the disk of .* is full"):
            client.add_template(*picture(7), CLASSES)
        image, labels = picture(7)
        answer = httpx.post(
            f"{server.http}/templates",
            files={"image": png(image), "labels": png(labels)},
            data={"class_names": "disc,bar"},
        )
        assert answer.status_code == 507
        assert "is full" in answer.json()["error"]["message"]
        assert client.list_templates() == before
        assert isinstance(client.segment(SegmentationRequest(image=IMAGE)), SegmentationResult)
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
        assert client.add_template(*picture(7), CLASSES)[1]


def test_a_bank_that_cannot_be_read_is_said_where_readiness_is_asked(tmp_path: Path) -> None:
    with running(engine_of(tmp_path)) as server:
        index = tmp_path / "bank" / "index.json"
        whole = index.read_bytes()
        index.write_bytes(whole[:100])
        ready = httpx.get(f"{server.http}/health/ready")
        assert ready.status_code == 503
        assert "is damaged" in ready.json()["error"]["message"]
        assert httpx.get(f"{server.http}/health/live").status_code == 200
        metrics = httpx.get(f"{server.http}/metrics")
        assert 'vessa_templates{bank="default"} 3.0' in metrics.raise_for_status().text
        answer = httpx.post(f"{server.http}/pseudolabel", files={"image": png(IMAGE)})
        assert answer.status_code == 500
        assert "is damaged" in answer.json()["error"]["message"]
        index.write_bytes(whole)
        assert httpx.get(f"{server.http}/health/ready").status_code == 200
        answer = httpx.post(f"{server.http}/pseudolabel", files={"image": png(IMAGE)})
        assert answer.status_code == 200


def test_a_large_template_is_added_while_others_segment(tmp_path: Path) -> None:
    image, labels = picture(3, (4096, 4096))
    with server_process(tmp_path) as server, ThreadPoolExecutor() as pool:
        with VessaClient(server.grpc) as client, VessaClient(server.grpc) as other:
            client.segment(SegmentationRequest(image=IMAGE))
            adding = pool.submit(other.add_template, image, labels, CLASSES)
            answered = 0
            while not adding.done():
                client.segment(SegmentationRequest(image=picture(1000 + answered)[0]))
                answered += 1
            assert adding.result()[1]
        assert answered >= 5


def test_the_largest_image_holds_up_nobody_and_its_time_is_accounted_for(tmp_path: Path) -> None:
    image = picture(3, (4096, 4096))[0].astype(np.uint16)
    with server_process(tmp_path) as server, ThreadPoolExecutor() as pool:
        with VessaClient(server.grpc) as client:
            client.segment(SegmentationRequest(image=IMAGE))
            started = time.monotonic()
            large = pool.submit(client.segment, SegmentationRequest(image=image))
            slowest = 0.0
            while not large.done():
                asked = time.monotonic()
                httpx.get(f"{server.http}/health/live").raise_for_status()
                slowest = max(slowest, time.monotonic() - asked)
            took = time.monotonic() - started
        assert slowest < 1
        assert sum(large.result().stage_ms.values()) / 1000 > took / 2


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as item:
            item.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6")
def test_an_address_of_the_newer_kind_is_listened_on(tmp_path: Path) -> None:
    with running(engine_of(tmp_path), host="::1") as server:
        assert server.ports is not None
        with VessaClient(f"[::1]:{server.ports.grpc}") as client:
            assert client.healthy()
        answer = httpx.get(f"http://[::1]:{server.ports.http}/health/ready")
        assert answer.status_code == 200
