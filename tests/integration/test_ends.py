"""How a server ends: signals, parts that die, and what the log keeps to itself."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from support import picture
from support_files import png
from support_process import GO_FILE, ServerProcess, server_process
from vessa_client import (
    ClientOptions,
    RetryPolicy,
    SegmentationRequest,
    SegmentationResult,
    UnavailableError,
    VessaClient,
    VessaError,
    VolumeRequest,
)

IMAGE, _ = picture(0)
ONCE = ClientOptions(retry=RetryPolicy(attempts=1))
VOLUME = VolumeRequest(slices=tuple(picture(seed)[0] for seed in range(4)))
HEAD = (
    b"POST /pseudolabel HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n"
    b"Content-Type: multipart/form-data; boundary=b\r\n\r\n"
    b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nabc'
)


def wait_for(server: ServerProcess, words: str) -> None:
    """Until the metrics say something."""
    while words not in httpx.get(f"{server.http}/metrics").text:
        pass


def begin_upload(server: ServerProcess) -> socket.socket:
    """A connection over which the beginning of a form was sent."""
    host, port = server.http.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    connection.sendall(HEAD)
    return connection


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returns or raises."""
    try:
        return call()
    except (VessaError, httpx.HTTPError) as error:
        return error


def segment(server: ServerProcess) -> Any:
    with VessaClient(server.grpc, ONCE) as client:
        return outcome(lambda: client.segment(SegmentationRequest(image=IMAGE)))


def segment_volume(server: ServerProcess) -> Any:
    with VessaClient(server.grpc, ONCE) as client:
        return outcome(lambda: list(client.segment_volume(VOLUME)))


def post(server: ServerProcess) -> Any:
    url, files = f"{server.http}/pseudolabel", {"image": png(IMAGE)}
    return outcome(lambda: httpx.post(url, files=files, timeout=60))


@pytest.mark.parametrize("call", [segment, segment_volume, post])
def test_a_signal_ends_it_within_the_grace_whatever_runs(
    tmp_path: Path, call: Callable[[ServerProcess], Any]
) -> None:
    with server_process(tmp_path, "stays", grace_seconds=1) as server, ThreadPoolExecutor() as pool:
        waiting = pool.submit(call, server)
        wait_for(server, "vessa_queue_depth 1.0" if call is not segment_volume else "depth 4.0")
        uploading = begin_upload(server)
        started = time.monotonic()
        server.signal()
        assert server.wait(20) == 0
        assert time.monotonic() - started < 6
        found = waiting.result(20)
        if isinstance(found, httpx.Response):
            assert found.status_code == 503
            assert found.json()["error"]["code"] == "UNAVAILABLE"
        else:
            assert isinstance(found, UnavailableError)
        uploading.close()
        assert "Traceback" not in server.log
        assert "server.stopped" in server.lines[-1]


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with (
        server_process(tmp_path, "stays", grace_seconds=100) as server,
        ThreadPoolExecutor() as pool,
    ):
        waiting = pool.submit(segment, server)
        wait_for(server, "vessa_queue_depth 1.0")
        server.signal()
        while httpx.get(f"{server.http}/health/ready").status_code == 200:
            pass
        server.signal()
        assert server.wait(5) == -signal.SIGTERM
        assert isinstance(waiting.result(20), UnavailableError)


def test_what_is_accepted_is_answered_after_the_signal(tmp_path: Path) -> None:
    settings = {"grace_seconds": 30}
    with server_process(tmp_path, "waits", **settings) as server, ThreadPoolExecutor() as pool:
        waiting = pool.submit(segment_volume, server)
        wait_for(server, "vessa_queue_depth 4.0")
        server.signal()
        while httpx.get(f"{server.http}/health/ready").status_code == 200:
            pass
        assert isinstance(segment(server), UnavailableError)
        (tmp_path / "bank" / GO_FILE).touch()
        assert [type(result) for result in waiting.result(30)] == [SegmentationResult] * 4
        assert server.wait(30) == 0


def test_a_scheduler_that_dies_ends_the_server_with_an_error(tmp_path: Path) -> None:
    with server_process(tmp_path, "dies", grace_seconds=2) as server:
        with grpc.insecure_channel(server.grpc) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            status = health_pb2.HealthCheckResponse
            assert next(watch).status == status.SERVING
            assert isinstance(segment(server), UnavailableError)
            assert next(watch).status == status.NOT_SERVING
        assert server.wait(20) == 1
        assert '"part": "scheduler"' in server.log
        assert "SECRET" not in server.log
        assert "Traceback" not in server.log


def test_errors_of_the_model_say_nothing_of_what_was_sent(tmp_path: Path) -> None:
    with server_process(tmp_path, "fails") as server, VessaClient(server.grpc, ONCE) as client:
        answers = [
            outcome(lambda: client.segment(SegmentationRequest(image=IMAGE))),
            *client.segment_stream([SegmentationRequest(image=IMAGE)]),
            *client.segment_volume(VOLUME),
        ]
        for error in answers:
            assert isinstance(error, VessaError)
            assert "internal error" in error.message
        for path in ("pseudolabel", "pseudolabel?view=overlay"):
            answer = httpx.post(f"{server.http}/{path}", files={"image": png(IMAGE)})
            assert answer.status_code == 500
            assert answer.json()["error"]["code"] == "INTERNAL"
            assert "SECRET" not in answer.text
        server.signal()
        assert server.wait(20) == 0
        assert '"kind": "ValueError", "at": "support_process.py:' in server.log
        assert "SECRET" not in server.log
        assert "Traceback" not in server.log


def test_uploads_that_are_given_up_cost_nothing(tmp_path: Path) -> None:
    with server_process(tmp_path, grace_seconds=5) as server:
        slowest = 0.0
        for _ in range(200):
            begin_upload(server).close()
            started = time.monotonic()
            assert httpx.get(f"{server.http}/health/live").status_code == 200
            slowest = max(slowest, time.monotonic() - started)
        assert slowest < 1
        wait_for(server, 'vessa_requests_total{code="499",method="POST /pseudolabel"')
        server.signal()
        assert server.wait(10) == 0
        assert [line for line in server.lines if '"error"' in line or "Traceback" in line] == []
