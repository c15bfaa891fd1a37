"""One suite for the three caches; Redis is a real one."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import torch

from support import free_port, redis_server
from vessa_server.cache import FeatureCache, NoCache, cache_key, open_cache
from vessa_server.cache.disk import DiskCache
from vessa_server.cache.feature_cache import decode, encode
from vessa_server.cache.redis import KEY_PREFIX, RedisCache

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2], dtype=torch.int64)}
KEY = cache_key("template", ("x", "y"))


@pytest.fixture(params=["redis", "disk", "none"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FeatureCache]:
    if request.param == "redis":
        url = request.getfixturevalue("redis_url")
        redis.Redis.from_url(url).flushall()
        opened = open_cache(url, 0)
    else:
        address = "none" if request.param == "none" else str(tmp_path / "cache")
        opened = open_cache(address, 1 << 30)
    yield opened
    opened.close()


def _overwrite(cache: FeatureCache, key: str, data: bytes) -> None:
    if isinstance(cache, RedisCache):
        redis.Redis.from_url(cache.url).set(KEY_PREFIX + key, data)
    elif isinstance(cache, DiskCache):
        cache._file(key).write_bytes(data)


def test_values_come_back_bit_for_bit_or_are_a_miss(cache: FeatureCache) -> None:
    assert cache.get(KEY) is None
    cache.put(KEY, TENSORS)
    found = cache.get(KEY)
    if isinstance(cache, NoCache):
        assert found is None
        assert cache.counts["miss"] == 2
        return
    assert found is not None
    assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)
    assert all(found[name].dtype == TENSORS[name].dtype for name in TENSORS)
    assert cache.counts == {"miss": 1, "hit": 1}


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[:10],
        lambda data: b"",
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: pickle.dumps({"a": 1}),
    ],
    ids=["truncated", "header", "empty", "flipped", "pickle"],
)
def test_damaged_values_are_a_counted_miss_and_can_be_replaced(
    cache: FeatureCache, damage: object
) -> None:
    assert callable(damage)
    cache.put(KEY, TENSORS)
    if isinstance(cache, NoCache):
        return
    _overwrite(cache, KEY, damage(encode(TENSORS)))
    assert cache.get(KEY) is None
    assert cache.counts["corrupt"] == 1
    cache.put(KEY, TENSORS)
    assert cache.get(KEY) is not None


def test_another_key_is_another_value(cache: FeatureCache) -> None:
    cache.put(KEY, TENSORS)
    assert cache.get(cache_key("template", ("x", "z"))) is None
    assert cache_key("a", ("bc",)) != cache_key("ab", ("c",))
    assert cache_key("a", ("b", "c")) != cache_key("a", ("bc",))


def test_every_flipped_byte_is_noticed() -> None:
    data = encode({"a": torch.ones(2)})
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        assert decode(bytes(damaged)) is None


def test_the_disk_cache_forgets_the_least_recently_used(tmp_path: Path) -> None:
    size = len(encode(TENSORS))
    cache = DiskCache(tmp_path, max_bytes=2 * size + 10)
    keys = [cache_key("k", (str(i),)) for i in range(3)]
    cache.put(keys[0], TENSORS)
    cache.put(keys[1], TENSORS)
    assert cache.get(keys[0]) is not None
    cache.put(keys[2], TENSORS)
    assert [cache.get(k) is not None for k in keys] == [True, False, True]
    reopened = DiskCache(tmp_path, max_bytes=2 * size + 10)
    assert [reopened.get(k) is not None for k in keys] == [True, False, True]


def test_redis_away_is_a_miss_and_redis_back_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vessa_server.cache.redis.PAUSE_SECONDS", 0.0)
    port = free_port()
    cache = RedisCache(f"redis://:secret@127.0.0.1:{port}/0")
    assert not cache.reachable()
    cache.put(KEY, TENSORS)
    assert cache.get(KEY) is None
    assert cache.counts["error"] == 3
    cache = RedisCache(f"redis://127.0.0.1:{port}/0")
    with redis_server(tmp_path, port):
        assert cache.reachable()
        cache.put(KEY, TENSORS)
        assert cache.get(KEY) is not None
    assert cache.get(KEY) is None
    cache.close()


def test_redis_unreachable_is_told_once_with_the_fix(
    capsys: pytest.CaptureFixture[str],
) -> None:
    cache = RedisCache(f"redis://:secret@127.0.0.1:{free_port()}/0")
    for _ in range(5):
        assert cache.get(KEY) is None
    told = capsys.readouterr().out
    assert told.count("redis_unreachable") == 1
    assert "VESSA_CACHE" in told
    assert "secret" not in told


def test_an_unknown_address_is_refused() -> None:
    with pytest.raises(ValueError, match="redis://host:port/db"):
        open_cache("memcached://x", 1)
