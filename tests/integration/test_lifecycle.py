"""A server under load, starting and stopping."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from support import RunningServer, engine_of, free_port, gate_of, picture, running
from vessa_client import (
    AsyncVessaClient,
    ClientOptions,
    DeadlineError,
    OverloadedError,
    RetryPolicy,
    SegmentationRequest,
    SegmentationResult,
    UnavailableError,
    VessaClient,
    VessaError,
)
from vessa_server.api.grpc.server import PortInUseError

IMAGE, _ = picture(0)


async def test_a_full_queue_refuses_and_says_when_to_come_back(tmp_path: Path) -> None:
    engine = gate_of(tmp_path)
    # Others' attempts might come when there is room again.
    once = ClientOptions(retry=RetryPolicy(attempts=1))
    with running(engine, max_queue=2, max_batch=1) as server:
        async with AsyncVessaClient(server.grpc, once) as client:
            first = asyncio.create_task(client.segment(SegmentationRequest(image=IMAGE)))
            await asyncio.to_thread(engine.entered.wait, 30)
            many = [
                asyncio.create_task(client.segment(SegmentationRequest(image=picture(i)[0])))
                for i in range(1, 6)
            ]
            done, _ = await asyncio.wait(many, return_when=asyncio.FIRST_EXCEPTION)
            refused = next(iter(done)).exception()
            assert isinstance(refused, OverloadedError)
            assert refused.retry_after > 0
            engine.opened.set()
            outcomes = await asyncio.gather(first, *many, return_exceptions=True)
            assert sum(isinstance(o, SegmentationResult) for o in outcomes) == 2
            assert sum(isinstance(o, OverloadedError) for o in outcomes) == 4


async def test_shutdown_finishes_what_was_accepted_and_refuses_the_rest(tmp_path: Path) -> None:
    engine = gate_of(tmp_path)
    with running(engine, grace_seconds=20) as server:
        once = ClientOptions(retry=RetryPolicy(attempts=1))
        async with AsyncVessaClient(server.grpc, once) as client:
            accepted = asyncio.create_task(client.segment(SegmentationRequest(image=IMAGE)))
            await asyncio.to_thread(engine.entered.wait, 30)
            server.request_stop()
            while await client.healthy():
                await asyncio.sleep(0)
            assert httpx.get(f"{server.http}/health/ready").status_code == 503
            await asyncio.to_thread(_assert_nothing_serves, server)
            with pytest.raises(UnavailableError):
                await client.segment(SegmentationRequest(image=picture(1)[0]))
            engine.opened.set()
            assert isinstance(await accepted, SegmentationResult)
    with VessaClient(server.grpc, once) as late, pytest.raises(UnavailableError):
        late.info()


def _assert_nothing_serves(server: RunningServer) -> None:
    with grpc.insecure_channel(server.grpc) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", "vessa.v1.PseudoLabelService", "inference.GRPCInferenceService"):
            answer = stub.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING


def test_a_timeout_of_the_work_is_not_the_requests_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object) -> None:
        raise TimeoutError("timed out")

    engine = engine_of(tmp_path)
    monkeypatch.setattr(engine, "open", unreachable)
    with (
        running(engine) as server,
        VessaClient(server.grpc) as client,
        pytest.raises(VessaError, match="internal error"),
    ):
        client.segment(SegmentationRequest(image=IMAGE))


async def test_who_has_gone_is_counted_as_that(tmp_path: Path) -> None:
    engine = gate_of(tmp_path)
    with running(engine) as server:
        async with AsyncVessaClient(server.grpc) as client:
            call = asyncio.create_task(client.segment(SegmentationRequest(image=IMAGE)))
            await asyncio.to_thread(engine.entered.wait, 30)
            call.cancel()
            counted = 'vessa_requests_total{code="CANCELLED",method="Segment",transport="grpc"} 1.0'
            while counted not in await asyncio.to_thread(_metrics, server):
                pass
        engine.opened.set()


def _metrics(server: RunningServer) -> str:
    return httpx.get(f"{server.http}/metrics").text


def test_a_port_in_use_is_told_with_the_flag(tmp_path: Path, server: RunningServer) -> None:
    assert server.ports is not None
    engine = engine_of(tmp_path / "other")
    with (
        pytest.raises(PortInUseError, match="--grpc-port"),
        running(engine, grpc_port=server.ports.grpc),
    ):
        pass
    with (
        pytest.raises(PortInUseError, match="--http-port"),
        running(engine, http_port=server.ports.http),
    ):
        pass
    assert httpx.get(f"{server.http}/health/ready").status_code == 200


def test_a_server_that_comes_late_is_waited_for(tmp_path: Path) -> None:
    port = free_port()
    options = ClientOptions(retry=RetryPolicy(attempts=60, initial_seconds=0.1, max_seconds=0.2))
    outcome: list[SegmentationResult] = []
    with VessaClient(f"127.0.0.1:{port}", options) as client:
        request = SegmentationRequest(image=IMAGE)
        waiting = threading.Thread(target=lambda: outcome.append(client.segment(request)))
        waiting.start()
        with running(engine_of(tmp_path), grpc_port=port):
            waiting.join(30)
    assert len(outcome) == 1


def test_a_deadline_is_kept(tmp_path: Path) -> None:
    engine = gate_of(tmp_path)
    with running(engine) as server, VessaClient(server.grpc, ClientOptions(timeout=0.3)) as client:
        with pytest.raises(DeadlineError):
            client.segment(SegmentationRequest(image=IMAGE))
        engine.opened.set()
