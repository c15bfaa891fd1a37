"""The shared cache: Redis, for several replicas of the server."""

from __future__ import annotations

import threading
import time
from urllib.parse import urlsplit

import redis

from vessa_server.cache.feature_cache import FeatureCache

KEY_PREFIX = "vessa:"
TIMEOUT_SECONDS = 2.0
# After a failure Redis is left alone for this long, so that requests do not wait for it.
PAUSE_SECONDS = 5.0
EXPIRE_SECONDS = 30 * 24 * 3600


class RedisCache(FeatureCache):
    """Values in Redis. When Redis is away everything is a miss: slower, never wrong."""

    backend = "redis"

    def __init__(self, url: str) -> None:
        """Connect lazily.

        Raises:
            ValueError: the URL cannot be parsed, or names a database that is no number.
        """
        super().__init__()
        # The client takes database 0 where it cannot read the number.
        database = urlsplit(url).path.strip("/")
        if database and not database.isdecimal() and not url.startswith("unix:"):
            raise ValueError(f"database {database!r} is no number")
        self.url = url
        self._client: redis.Redis = redis.Redis.from_url(
            url, socket_timeout=TIMEOUT_SECONDS, socket_connect_timeout=TIMEOUT_SECONDS
        )
        self._paused_until = 0.0
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def reachable(self) -> bool:
        """Whether Redis answers now; logs what to do where it does not."""
        try:
            return bool(self._client.ping())
        except redis.RedisError as error:
            self._failed("ping", error)
            return False

    def _read(self, key: str) -> bytes | None:
        if self._paused():
            return None
        try:
            value = self._client.get(KEY_PREFIX + key)
        except redis.RedisError as error:
            self._failed("get", error)
            return None
        return value if isinstance(value, bytes) else None

    def _write(self, key: str, data: bytes) -> None:
        if self._paused():
            return
        try:
            self._client.set(KEY_PREFIX + key, data, ex=EXPIRE_SECONDS)
        except redis.RedisError as error:
            self._failed("set", error)

    def _remove(self, key: str) -> None:
        if self._paused():
            return
        try:
            self._client.delete(KEY_PREFIX + key)
        except redis.RedisError as error:
            self._failed("delete", error)

    def _paused(self) -> bool:
        with self._lock:
            return time.monotonic() < self._paused_until

    def _failed(self, action: str, error: redis.RedisError) -> None:
        with self._lock:
            self._paused_until = time.monotonic() + PAUSE_SECONDS
        self._report_failure(
            "cache.redis_unreachable",
            action=action,
            url=without_password(self.url),
            error=str(error),
            effect="features are computed again instead of read; results stay the same",
            fix="start Redis there, correct VESSA_CACHE, or set it to a folder or to none",
        )


def without_password(url: str) -> str:
    """An address that may be shown."""
    _, at, host = url.rpartition("@")
    return f"{url.partition(':')[0]}://{host}" if at else url
