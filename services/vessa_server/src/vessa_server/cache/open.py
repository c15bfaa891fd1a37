"""Choose a cache by its address."""

from __future__ import annotations

from pathlib import Path

from vessa_server.cache.disk import DiskCache
from vessa_server.cache.feature_cache import FeatureCache, NoCache
from vessa_server.cache.redis import RedisCache

REDIS_SCHEMES = ("redis://", "rediss://", "unix://")


def open_cache(address: str, max_bytes: int) -> FeatureCache:
    """``redis://...``, ``none``, or the path of a folder for the embedded cache.

    Raises:
        ValueError: a URL of another scheme.
    """
    if address == "none":
        return NoCache()
    if address.startswith(REDIS_SCHEMES):
        cache = RedisCache(address)
        cache.reachable()
        return cache
    if "://" in address:
        raise ValueError(f"cache: {address!r}, expected redis://host:port/db, a folder, or none")
    return DiskCache(Path(address), max_bytes)
