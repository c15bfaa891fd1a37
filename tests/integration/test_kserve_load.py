"""The Open Inference Protocol under load: many at once, timeouts, and clients that go away."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest
from tritonclient.utils import InferenceServerException

from support import Gate, RunningServer, engine_of, gate_of, picture, running
from support_kserve import ONE_IMAGE, assert_same, connected, connected_async
from vessa_client import SegmentationRequest

IMAGE = ONE_IMAGE["image"]


@pytest.mark.parametrize("kind", ["grpc", "http"])
async def test_sixteen_at_once_get_their_own_answers(
    server: RunningServer, tmp_path: Path, kind: str
) -> None:
    reference = engine_of(tmp_path / "reference")
    images = [picture(seed)[0] for seed in range(16)]
    sync = connected(kind, server)
    async with connected_async(kind, server) as client:
        answers = await asyncio.gather(
            *(client.infer("vessa", [sync.tensor("image", image)]) for image in images)
        )
    sync.client.close()
    for image, answer in zip(images, answers, strict=True):
        assert_same(answer, reference.segment(SegmentationRequest(image=image)))


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return gate_of(tmp_path)


@pytest.mark.parametrize("kind", ["grpc", "http"])
def test_no_answer_comes_after_the_timeout(gate: Gate, kind: str) -> None:
    with running(gate) as server:
        protocol = connected(kind, server)
        with pytest.raises(InferenceServerException, match="deadline") as caught:
            protocol.infer(ONE_IMAGE, timeout=200_000)
        assert caught.value.status() == protocol.code("DEADLINE_EXCEEDED", 504)
        if kind == "grpc":
            with pytest.raises(InferenceServerException, match=r"(?i)deadline"):
                protocol.infer(ONE_IMAGE, client_timeout=0.2)
        gate.opened.set()
        patient = protocol.infer(ONE_IMAGE, timeout=30_000_000)
        assert patient.as_numpy("labels").shape == IMAGE.shape
        protocol.client.close()


@pytest.mark.parametrize(("kind", "code"), [("grpc", "CANCELLED"), ("http", "499")])
async def test_who_has_gone_leaves_the_queue(gate: Gate, kind: str, code: str) -> None:
    with running(gate, max_queue=2) as server:
        sync = connected(kind, server)
        inputs = [[sync.tensor("image", picture(seed)[0])] for seed in range(3)]
        sync.client.close()
        async with connected_async(kind, server) as client, httpx.AsyncClient() as web:

            async def measured(line: str) -> None:
                while line not in (await web.get(f"{server.http}/metrics")).text:
                    await asyncio.sleep(0)

            first = asyncio.create_task(client.infer("vessa", inputs[0]))
            await asyncio.to_thread(gate.entered.wait, 30)
            second = asyncio.create_task(client.infer("vessa", inputs[1]))
            await measured("vessa_queue_depth 2.0")
            with pytest.raises(InferenceServerException, match="queue: full"):
                await client.infer("vessa", inputs[2])
            second.cancel()
            method = "ModelInfer" if kind == "grpc" else "POST /v2/models/{model}/infer"
            await measured(f'code="{code}",method="{method}",transport="kserve"}} 1.0')
            await measured("vessa_queue_depth 1.0")
            third = asyncio.create_task(client.infer("vessa", inputs[2]))
            await measured("vessa_queue_depth 2.0")
            gate.opened.set()
            for answer in await asyncio.gather(first, third):
                assert answer.as_numpy("labels").shape == IMAGE.shape
