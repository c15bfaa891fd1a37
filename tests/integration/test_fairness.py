"""Who is served when, by a real server: counted in looks, not in seconds."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from support import CLASSES, RunningServer, engine_of, picture, running
from vessa_client import (
    ClientOptions,
    DeadlineError,
    OverloadedError,
    RetryPolicy,
    SegmentationRequest,
    SegmentationResult,
    UInt8Array,
    VessaClient,
    wire,
)
from vessa_server.engine import VessaEngine
from vessa_server.inference.look import AnyLook, Look, Prediction

WAIT = 30
ONCE = ClientOptions(retry=RetryPolicy(attempts=1))


class _Watched(VessaEngine):
    """Keeps of which image each look was, and waits with one of them until it may go on."""

    seen: list[str]
    waits_at: int
    reached: threading.Event
    goes_on: threading.Event

    def run(self, looks: Sequence[AnyLook], pause: Callable[[], object] = bool) -> list[Prediction]:
        if len(self.seen) == self.waits_at:
            self.reached.set()
            assert self.goes_on.wait(WAIT)
        self.seen += [look.scan.sha256 if isinstance(look, Look) else "template" for look in looks]
        return super().run(looks, pause)

    def looks_of(self, digest: str) -> list[int]:
        """When looks at an image were run."""
        return [index for index, other in enumerate(self.seen) if other == digest]


@pytest.fixture
def watched(tmp_path: Path) -> _Watched:
    engine = engine_of(tmp_path)
    engine.__class__ = _Watched
    assert isinstance(engine, _Watched)
    engine.seen, engine.waits_at = [], 0
    engine.reached, engine.goes_on = threading.Event(), threading.Event()
    return engine


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as threads:
        yield threads


def _until(server: RunningServer, requests: int) -> None:
    """Wait until so many requests wait or run."""
    deadline = time.monotonic() + WAIT
    while (
        f"\nvessa_queue_depth {float(requests)}\n" not in httpx.get(f"{server.http}/metrics").text
    ):
        assert time.monotonic() < deadline, f"{requests} requests did not come, or stayed"


def _request(seed: int) -> SegmentationRequest:
    return SegmentationRequest(image=picture(seed)[0], request_id=str(seed))


def _digest(seed: int) -> str:
    return wire.image_digest(picture(seed)[0])


def _png(image: UInt8Array) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="PNG")
    return stream.getvalue()


def _post(server: RunningServer, seed: int, address: str = "", **headers: str) -> httpx.Response:
    """Ask over REST, from one of this machine's addresses."""
    transport = httpx.HTTPTransport(local_address=address or None)
    with httpx.Client(transport=transport, timeout=WAIT) as web:
        files = {"image": _png(picture(seed)[0])}
        return web.post(f"{server.http}/pseudolabel", files=files, headers=headers)


def test_who_waits_for_one_picture_is_next_while_forty_are_streamed(
    watched: _Watched, pool: ThreadPoolExecutor
) -> None:
    watched.waits_at = 9
    with (
        running(watched) as server,
        VessaClient(server.grpc) as bulk,
        VessaClient(server.grpc) as person,
    ):
        stream = pool.submit(lambda: list(bulk.segment_stream(map(_request, range(40)), window=16)))
        assert watched.reached.wait(WAIT)
        _until(server, 16)
        urgent = pool.submit(person.segment, _request(99))
        _until(server, 17)
        watched.goes_on.set()
        assert urgent.result(WAIT).labels.shape == picture(99)[0].shape
        own = watched.looks_of(_digest(99))
        answers = stream.result(WAIT)
    # After the one that was under way its looks were run without any other between them.
    assert own == list(range(10, 10 + len(own)))
    assert len(watched.seen) > 40
    assert {a.request_id for a in answers if isinstance(a, SegmentationResult)} == set(
        map(str, range(40))
    )


def test_who_sends_many_pictures_does_not_hold_up_another(
    watched: _Watched, pool: ThreadPoolExecutor
) -> None:
    watched.waits_at = 2
    with running(watched) as server:
        many = [pool.submit(_post, server, seed, "127.0.0.2") for seed in range(12)]
        assert watched.reached.wait(WAIT)
        _until(server, 12)
        one = pool.submit(_post, server, 99, "127.0.0.3")
        _until(server, 13)
        watched.goes_on.set()
        assert one.result(WAIT).status_code == 200
        assert all(answer.result(WAIT).status_code == 200 for answer in many)
    own = watched.looks_of(wire.image_digest(_png(picture(99)[0])))
    assert own[0] <= 4
    assert own[-1] < len(watched.seen) / 2


def test_templates_that_are_encoded_for_later_neither_fill_the_queue_nor_come_first(
    watched: _Watched, pool: ThreadPoolExecutor
) -> None:
    with running(watched, max_queue=2) as server, VessaClient(server.grpc, ONCE) as client:
        for seed in range(200, 204):
            image, labels = picture(seed)
            client.add_template(image, labels, CLASSES)
        assert watched.reached.wait(WAIT)
        waiting = [pool.submit(client.segment, _request(seed)) for seed in range(2)]
        _until(server, 4)
        with pytest.raises(OverloadedError):
            client.segment(_request(2))
        watched.goes_on.set()
        for answer in waiting:
            answer.result(WAIT)
        _until(server, 0)
    first = min(watched.looks_of(_digest(0)) + watched.looks_of(_digest(1)))
    last = max(watched.looks_of(_digest(0)) + watched.looks_of(_digest(1)))
    assert (first, watched.seen[first:last].count("template")) == (1, 0)


def test_a_stream_that_fills_the_queue_leaves_room_for_who_waits_for_one_picture(
    watched: _Watched, pool: ThreadPoolExecutor
) -> None:
    with (
        running(watched, max_queue=3) as server,
        VessaClient(server.grpc, ClientOptions(retry=RetryPolicy(attempts=1000))) as bulk,
        VessaClient(server.grpc, ONCE) as person,
    ):
        stream = pool.submit(lambda: list(bulk.segment_stream(map(_request, range(6)), window=6)))
        _until(server, 3)
        urgent = pool.submit(person.segment, _request(99))
        _until(server, 4)
        watched.goes_on.set()
        assert urgent.result(WAIT).request_id == "99"
        assert all(isinstance(a, SegmentationResult) for a in stream.result(WAIT))


def _late_by_grpc(server: RunningServer) -> None:
    hasty = ClientOptions(timeout=0.4)
    with VessaClient(server.grpc, hasty) as client, pytest.raises(DeadlineError):
        client.segment(_request(1))


def _late_in_stream(server: RunningServer) -> None:
    with VessaClient(server.grpc, ONCE) as client:
        try:
            (answer,) = client.segment_stream([_request(1)], timeout=0.4)
        except DeadlineError:  # where the client's clock is before the server's word
            return
        assert isinstance(answer, DeadlineError)


def _late_by_rest(server: RunningServer) -> None:
    answer = _post(server, 1, **{"X-Request-Timeout": "0.4"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "DEADLINE_EXCEEDED")


@pytest.mark.parametrize("ask", [_late_by_grpc, _late_in_stream, _late_by_rest])
def test_a_request_out_of_time_frees_its_place_and_is_never_run(
    watched: _Watched, pool: ThreadPoolExecutor, ask: Callable[[RunningServer], None]
) -> None:
    with running(watched, max_queue=2) as server:
        first = pool.submit(_post, server, 0)
        assert watched.reached.wait(WAIT)
        ask(server)
        _until(server, 1)
        third = pool.submit(_post, server, 3)
        _until(server, 2)
        watched.goes_on.set()
        assert first.result(WAIT).status_code == third.result(WAIT).status_code == 200
    late = {_digest(1), wire.image_digest(_png(picture(1)[0]))}
    assert not late.intersection(watched.seen)


@pytest.mark.parametrize("timeout", ["0", "-1", "nan", "soon"])
def test_a_timeout_that_is_none_is_refused(server: RunningServer, timeout: str) -> None:
    answer = _post(server, 0, **{"X-Request-Timeout": timeout})
    assert answer.status_code == 422
    assert "timeout" in answer.json()["error"]["field"]


@pytest.mark.parametrize("timeout", ["30", "inf", "1e300"])
def test_a_long_timeout_is_as_good_as_none(server: RunningServer, timeout: str) -> None:
    assert _post(server, 0, **{"X-Request-Timeout": timeout}).status_code == 200


def _by_form(image: bytes) -> tuple[str, bytes]:
    form = httpx.Request("POST", "http://x", files={"image": image})
    return form.headers["content-type"], form.read()


def _by_json(image: bytes) -> tuple[str, bytes]:
    return "application/json", json.dumps({"image": base64.b64encode(image).decode()}).encode()


@pytest.mark.parametrize("body", [_by_form, _by_json])
@pytest.mark.parametrize("waits", [False, True])
def test_a_rest_client_that_closes_its_socket_frees_its_place(
    watched: _Watched,
    pool: ThreadPoolExecutor,
    body: Callable[[bytes], tuple[str, bytes]],
    waits: bool,
) -> None:
    """Whether its look is run already, or it waits behind another."""
    with running(watched, max_queue=1 + waits) as server:
        first: list[Future[Any]] = [pool.submit(_post, server, 0)] if waits else []
        if waits:
            assert watched.reached.wait(WAIT)
        kind, data = body(_png(picture(1)[0]))
        assert server.ports is not None
        with socket.create_connection(("127.0.0.1", server.ports.http)) as connection:
            head = f"Host: x\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\n\r\n"
            connection.sendall(f"POST /pseudolabel HTTP/1.1\r\n{head}".encode() + data)
            _until(server, 1 + waits)
            assert _post(server, 2).status_code == 429
            assert watched.reached.wait(WAIT)
        _until(server, int(waits))
        second = pool.submit(_post, server, 3)
        _until(server, 1 + waits)
        watched.goes_on.set()
        assert all(answer.result(WAIT).status_code == 200 for answer in (*first, second))
    looks = watched.looks_of(wire.image_digest(_png(picture(1)[0])))
    assert looks == ([] if waits else [0])


def test_a_stream_that_is_left_frees_its_places(watched: _Watched) -> None:
    watched.waits_at = 6
    with running(watched) as server, VessaClient(server.grpc) as client:
        answers = client.segment_stream(map(_request, range(20)), window=8)
        assert isinstance(next(answers), SegmentationResult)
        assert watched.reached.wait(WAIT)
        answers.close()  # type: ignore[attr-defined]
        _until(server, 0)
        watched.goes_on.set()
        client.segment(_request(99))
    assert len(watched.seen) <= 7 + len(watched.looks_of(_digest(99)))
