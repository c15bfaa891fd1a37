"""One suite for the three caches; Redis is a real one."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
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


def total_size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def leftovers(folder: Path) -> list[str]:
    return [file.name for file in folder.rglob("*") if file.is_file() and file.suffix != ".vessa"]


def test_a_folder_that_vanished_is_made_again(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache", 1 << 20)
    cache.put(KEY, TENSORS)
    shutil.rmtree(cache.folder)
    assert cache.get(KEY) is None
    cache.put(KEY, TENSORS)
    assert cache.get(KEY) is not None
    assert cache.counts["error"] == 0


def test_a_value_over_the_limit_is_not_kept(tmp_path: Path) -> None:
    size = len(encode(TENSORS))
    cache = DiskCache(tmp_path, max_bytes=size)
    cache.put(KEY, TENSORS)
    cache.put(cache_key("k", ("large",)), {"a": torch.zeros(1000)})
    assert cache.get(KEY) is not None
    assert total_size(tmp_path) == size
    nothing = DiskCache(tmp_path / "nothing", max_bytes=0)
    nothing.put(KEY, TENSORS)
    assert nothing.get(KEY) is None


def _put(folder: Path, max_bytes: int, names: list[str]) -> None:
    cache = DiskCache(folder, max_bytes)
    for name in names:
        cache.put(cache_key("k", (name,)), TENSORS)


def test_processes_that_share_a_folder_keep_its_limit_together(tmp_path: Path) -> None:
    size = len(encode(TENSORS))
    max_bytes = 40 * size
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_put, args=(tmp_path, max_bytes, [f"{p} {i}" for i in range(200)]))
        for p in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    # What the other wrote since the last look at the folder may be over the limit.
    assert 20 * size < total_size(tmp_path) <= 1.2 * max_bytes
    cache = DiskCache(tmp_path, max_bytes)
    cache.put(KEY, TENSORS)
    assert total_size(tmp_path) <= max_bytes
    assert cache.get(KEY) is not None


def test_what_others_write_and_remove_does_not_spoil_the_accounts(tmp_path: Path) -> None:
    size = len(encode(TENSORS))
    keys = [cache_key("k", (str(i),)) for i in range(20)]
    one, other = DiskCache(tmp_path, 10 * size), DiskCache(tmp_path, 10 * size)
    for key in keys[:10]:
        one.put(key, TENSORS)
        assert other.get(key) is not None
    for key in keys[:10]:
        other._remove(key)
    for key in keys[10:]:
        one.put(key, TENSORS)
    assert all(one.get(key) is not None for key in keys[10:])
    assert total_size(tmp_path) == 10 * size


def test_leftovers_of_a_crash_are_removed_and_files_of_others_are_not(tmp_path: Path) -> None:
    shard = tmp_path / KEY[:2]
    (tmp_path / "tmp").mkdir()
    shard.mkdir()
    old = [shard / "tmpabc", tmp_path / "tmpabc", tmp_path / "tmp" / "tmpabc", shard / "notes"]
    for file in (*old, shard / "tmpnew"):
        file.write_bytes(b"x")
    for file in old:
        os.utime(file, (0, 0))
    DiskCache(tmp_path, 1 << 20)
    assert [file.exists() for file in old] == [False, True, True, True]
    assert (shard / "tmpnew").exists()


LIMITED = """
import resource, sys
from pathlib import Path
import torch
from vessa_server.cache import cache_key
from vessa_server.cache.disk import DiskCache

cache = DiskCache(Path(sys.argv[1]), 1 << 30)
cache.put("00", {"a": torch.zeros(10)})
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for i in range(200):
    key = cache_key("k", (str(i),))
    cache.put(key, {"a": torch.zeros(1000)})
    assert cache.get(key) is None
assert cache.get("00") is not None
print(cache.counts["error"], "errors")
"""


def test_a_full_disk_is_no_error_and_leaves_no_files(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "200 errors" in result.stdout
    assert result.stdout.count("disk_failed") == 1
    assert "VESSA_CACHE" in result.stdout
    assert leftovers(tmp_path) == []


@pytest.fixture
def read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that holds TENSORS under KEY, for a user who may not write to it."""
    DiskCache(tmp_path / "cache", 1 << 20).put(KEY, TENSORS)
    monkeypatch.chdir(tmp_path)  # the folders above are closed to other users
    paths = [tmp_path, *tmp_path.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield Path("cache")
    finally:
        if root:
            os.seteuid(0)
        for path in paths:
            path.chmod(0o755)


def test_a_read_only_cache_is_read(read_only: Path) -> None:
    cache = DiskCache(read_only, 1 << 20)
    assert cache.get(KEY) is not None
    assert cache.counts == {"hit": 1}
    cache.put(KEY, {"a": torch.zeros(1)})
    (damaged,) = read_only.glob("*/*.vessa")
    assert cache.get(KEY) is not None
    assert cache.counts["error"] == 1
    cache._remove(KEY)
    assert damaged.exists()
    assert cache.counts["error"] == 2
    with pytest.raises(ValueError, match="VESSA_CACHE: 'other': Permission denied"):
        open_cache("other", 1)


MEMORY = """
import sys
from pathlib import Path
import torch
from vessa_server.cache import cache_key
from vessa_server.cache.disk import DiskCache

def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20

cache = DiskCache(Path(sys.argv[1]), 16 * 2**20)
tensors = {"a": torch.zeros(1000), "b": torch.zeros(100)}
for i in range(20_000):
    key = cache_key("k", (str(i),))
    cache.put(key, tensors)
    assert cache.get(key) is not None
    if i == 5000:
        start = resident()
print(resident() - start)
"""


def test_memory_does_not_grow_with_what_was_cached(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 8
    assert total_size(tmp_path) <= 16 * 2**20


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
    assert cache.backend == "redis, which is away"
    cache = RedisCache(f"redis://127.0.0.1:{port}/0")
    with redis_server(tmp_path, port):
        assert cache.reachable()
        assert cache.backend == "redis"
        cache.put(KEY, TENSORS)
        assert cache.get(KEY) is not None
    assert cache.get(KEY) is None
    cache.close()


def test_redis_that_stays_away_is_asked_less_and_less(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("vessa_server.cache.redis.time.monotonic", lambda: now)
    cache = RedisCache(f"redis://127.0.0.1:{free_port()}/0")
    asked: list[int] = []
    for second in range(300):
        now = 1000.0 + second
        cache.get(KEY)
        if cache.counts["error"] > len(asked):
            asked.append(second)
    assert asked == [0, 5, 15, 35, 75, 135, 195, 255]


def test_commands_that_were_under_way_together_make_one_pause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr("vessa_server.cache.redis.time.monotonic", lambda: now)
    cache = RedisCache(f"redis://127.0.0.1:{free_port()}/0")
    real, under_way = cache._client.get, 8

    def get(key: str) -> object:
        nonlocal under_way
        if under_way > 1:
            under_way -= 1
            cache.get(KEY)
        return real(key)

    monkeypatch.setattr(cache._client, "get", get)
    cache.get(KEY)
    assert cache.counts["error"] == 8
    for second, errors in ((1004.9, 8), (1005.0, 9), (1014.9, 9), (1015.0, 10)):
        now = second
        cache.get(KEY)
        assert cache.counts["error"] == errors


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


@pytest.mark.parametrize(
    "address",
    [
        "memcached://x",
        "",
        "localhost:6379",
        "redis.hospital.example:6379/0",
        "redis:/localhost:6379/0",
        "redis://localhost:port/0",
        "redis://localhost:70000/0",
        "redis://localhost:6379/templates",
        "redis://localhost:6379/0?socket_timeout=abc",
        "redis://localhost:6379/0?no_such_option=1",
        "/dev/null",
        "/dev/null/cache",
        "/proc/vessa-cache",
    ],
)
def test_a_wrong_address_names_the_setting_and_what_is_expected(address: str) -> None:
    with pytest.raises(
        ValueError, match=r"VESSA_CACHE: .*redis://host:port/db, a folder"
    ) as caught:
        open_cache(address, 1)
    assert address in str(caught.value)


@pytest.mark.parametrize(
    "address",
    ["redis://:sec/ret@localhost:6379/0", "redis://:secret@h:1x/0", "redis:secret@h:1"],
)
def test_a_password_in_a_wrong_address_is_not_shown(address: str) -> None:
    with pytest.raises(ValueError, match="VESSA_CACHE") as caught:
        open_cache(address, 1)
    assert "sec" not in str(caught.value)
    assert "ret" not in str(caught.value)
