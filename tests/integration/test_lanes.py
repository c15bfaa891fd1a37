"""One server over several devices; two runtimes on a CPU are as good as two GPUs for that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
import numpy as np
import pytest
from pydantic import ValidationError

from support import engine_of, picture, running
from vessa_client import (
    AsyncVessaClient,
    OverloadedError,
    SegmentationRequest,
    VessaClient,
    VolumeRequest,
)
from vessa_server.api.run import build_engines
from vessa_server.api.settings import ServerSettings
from vessa_server.engine import VessaEngine
from vessa_server.engine_settings import EngineSettings
from vessa_server.inference.look import AnyLook, Look, Prediction, TemplateLook
from vessa_server.policy import RULES, PolicyConfig

IMAGES = [picture(seed)[0] for seed in range(12)]


class _Counted(VessaEngine):
    """Notes what it looks at."""

    seen: list[str]

    def run(self, looks: Sequence[AnyLook], pause: Callable[[], object] = bool) -> list[Prediction]:
        self.seen += [
            "template" if isinstance(look, TemplateLook) else look.scan.sha256 for look in looks
        ]
        assert all(isinstance(look, TemplateLook | Look) for look in looks)
        return super().run(looks, pause)


def _engines(folder: Path) -> list[_Counted]:
    """Of two devices over one bank."""
    first = engine_of(folder)
    second = VessaEngine(engine_of(folder / "other").runtime, first.banks, first.cache)
    found = []
    for engine in (first, second):
        engine.__class__ = _Counted
        assert isinstance(engine, _Counted)
        engine.seen = []
        found.append(engine)
    return found


def test_images_are_shared_out_and_each_is_known_where_it_was(tmp_path: Path) -> None:
    engines = _engines(tmp_path)
    alone = engine_of(tmp_path / "alone")
    requests = [SegmentationRequest(image=image) for image in IMAGES]
    with running(*engines) as server, VessaClient(server.grpc) as client:
        first = [client.segment(request) for request in requests]
        looked = [len(engine.seen) for engine in engines]
        again = [client.segment(request) for request in requests]
        masked = [
            client.segment(SegmentationRequest(image=image, student_mask=result.labels))
            for image, result in zip(IMAGES, first, strict=True)
        ]
        assert client.info().device == "cpu, cpu"
    assert all(looked), "both devices worked"
    assert not set(engines[0].seen) & set(engines[1].seen), "each image has one device"
    for request, one, two in zip(requests, first, again, strict=True):
        assert np.array_equal(one.labels, alone.segment(request).labels)
        assert np.array_equal(one.labels, two.labels)
    # A kept answer costs no look, and a student's mask needs no image encoded.
    assert all(result.image_features_cached for result in (*again, *masked))


def test_a_volume_stays_on_one_device(tmp_path: Path) -> None:
    engines = _engines(tmp_path)
    with running(*engines) as server, VessaClient(server.grpc) as client:
        answers = list(client.segment_volume(VolumeRequest(slices=tuple(IMAGES))))
    assert len(answers) == len(IMAGES)
    assert sorted(bool(engine.seen) for engine in engines) == [False, True]


async def test_new_templates_are_encoded_on_every_device(tmp_path: Path) -> None:
    engines = _engines(tmp_path)
    with running(*engines, encode_bank=True) as server:
        async with AsyncVessaClient(server.grpc) as client, asyncio.timeout(30):
            while min(engine.seen.count("template") for engine in engines) < 6:
                await client.healthy()


async def test_the_bound_of_the_queue_is_that_of_all_devices_together(tmp_path: Path) -> None:
    engines = _engines(tmp_path)
    with running(*engines, max_queue=2) as server:
        async with AsyncVessaClient(server.grpc) as client:
            tasks = [client.segment(SegmentationRequest(image=image)) for image in IMAGES]
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(
                isinstance(o, OverloadedError) for o in outcomes if isinstance(o, BaseException)
            )
            metrics = (await asyncio.to_thread(httpx.get, f"{server.http}/metrics")).text
    assert 'vessa_device_bytes{device="cpu",dtype="float32",runtime="torch"}' in metrics


def test_devices_are_read_from_one_setting(tmp_path: Path) -> None:
    settings = ServerSettings(device="cpu, cpu", bank=tmp_path, cache="none")
    engines = build_engines(settings)
    assert [engine.info.device for engine in engines] == ["cpu", "cpu"]
    assert engines[0].banks is engines[1].banks
    with pytest.raises(ValueError, match="cuda:99"):
        build_engines(ServerSettings(device="cpu,cuda:99", bank=tmp_path, cache="none"))
    with pytest.raises(ValidationError, match="devices are the tritonserver's"):
        ServerSettings(device="cpu,cpu", runtime="triton://localhost:8001")


def test_the_server_says_which_rules_apply(tmp_path: Path) -> None:
    policy = PolicyConfig().without(["turns", "votes"])
    engine = engine_of(tmp_path, settings=EngineSettings(policy=policy))
    with running(engine) as server, VessaClient(server.grpc) as client:
        rules = client.info().policy_rules
    assert set(RULES) - set(rules) == {"turns", "votes"}
