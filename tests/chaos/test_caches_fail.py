"""What a user notices when a cache fails: nothing but time."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from support import RunningServer, engine_of, free_port, picture, redis_server, running
from vessa_client import SegmentationRequest, SegmentationResult, VessaClient
from vessa_server.cache import open_cache
from vessa_server.cache.disk import DiskCache


def segment(server: RunningServer, seed: int) -> SegmentationResult:
    with VessaClient(server.grpc) as client:
        return client.segment(SegmentationRequest(image=picture(seed)[0]))


@pytest.fixture
def expected(tmp_path: Path) -> list[SegmentationResult]:
    reference = engine_of(tmp_path / "reference")
    return [reference.segment(SegmentationRequest(image=picture(i)[0])) for i in range(3)]


def same(one: SegmentationResult, other: SegmentationResult) -> bool:
    return np.array_equal(one.labels, other.labels) and np.array_equal(
        one.confidence, other.confidence
    )


def test_redis_that_was_never_there(tmp_path: Path, expected: list[SegmentationResult]) -> None:
    cache = open_cache(f"redis://127.0.0.1:{free_port()}/0", 0)
    with running(engine_of(tmp_path / "s", cache=cache)) as server:
        assert same(segment(server, 0), expected[0])
        assert cache.counts["error"] >= 1


def test_redis_that_dies_and_comes_back(
    tmp_path: Path, expected: list[SegmentationResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vessa_server.cache.redis.PAUSE_SECONDS", 0.0)
    port = free_port()
    address = f"redis://127.0.0.1:{port}/0"
    with redis_server(tmp_path, port) as process:
        cache = open_cache(address, 0)
        with running(engine_of(tmp_path / "s", cache=cache)) as server:
            assert same(segment(server, 0), expected[0])
            process.kill()
            process.wait(10)
            server.engine.bank.add(*picture(200), server.engine.bank.snapshot().classes)
            server.engine.bank.delete(
                next(t.template_id for t in server.engine.bank.snapshot().templates if t.name == "")
            )
            assert same(segment(server, 1), expected[1])
    with redis_server(tmp_path, port):
        with running(engine_of(tmp_path / "s", cache=open_cache(address, 0))) as server:
            assert same(segment(server, 2), expected[2])
            assert server.engine.templates.computed > 0
        warm = engine_of(tmp_path / "s", cache=open_cache(address, 0))
        result = warm.segment(SegmentationRequest(image=picture(2)[0]))
        assert result.template_features_cached
        assert same(result, expected[2])


def test_a_disk_cache_whose_folder_vanishes(
    tmp_path: Path, expected: list[SegmentationResult]
) -> None:
    cache = open_cache(str(tmp_path / "cache"), 1 << 30)
    with running(engine_of(tmp_path / "s", cache=cache)) as server:
        assert isinstance(cache, DiskCache)
        shutil.rmtree(cache.folder)
        assert same(segment(server, 0), expected[0])
        assert cache.counts["error"] == 0
        assert any(cache.folder.glob("*/*.vessa"))


def test_a_disk_cache_that_cannot_be_written(
    tmp_path: Path, expected: list[SegmentationResult]
) -> None:
    cache = open_cache(str(tmp_path / "cache"), 1 << 30)
    with running(engine_of(tmp_path / "s", cache=cache)) as server:
        assert isinstance(cache, DiskCache)
        shutil.rmtree(cache.folder)
        cache.folder.write_text("in the way")
        assert same(segment(server, 0), expected[0])
        assert cache.counts["error"] > 0


def test_a_disk_cache_full_of_rubbish(tmp_path: Path, expected: list[SegmentationResult]) -> None:
    first = open_cache(str(tmp_path / "cache"), 1 << 30)
    engine_of(tmp_path / "s", cache=first).segment(SegmentationRequest(image=picture(0)[0]))
    for index, file in enumerate(sorted((tmp_path / "cache").glob("*/*.vessa"))):
        file.write_bytes(file.read_bytes()[: index * 7])
    cache = open_cache(str(tmp_path / "cache"), 1 << 30)
    with running(engine_of(tmp_path / "s", cache=cache)) as server:
        assert same(segment(server, 0), expected[0])
        assert cache.counts["corrupt"] > 0
