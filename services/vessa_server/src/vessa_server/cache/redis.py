"""The shared cache: Redis, for several replicas of the server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import redis

from vessa_server.cache.feature_cache import FeatureCache

KEY_PREFIX = "vessa:"
TIMEOUT_SECONDS = 2.0
# After a failure Redis is left alone for this long, and twice as long after the next, so that
# requests do not wait for it: looking up a name that is gone may take seconds.
PAUSE_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 60.0
EXPIRE_SECONDS = 30 * 24 * 3600
# As people are told of it.
HERE, AWAY = "redis", "redis, which is away"


class RedisCache(FeatureCache):
    """Values in Redis. When Redis is away everything is a miss: slower, never wrong."""

    backend = HERE

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
        self._pause = PAUSE_SECONDS
        self._paused_until = 0.0
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def reachable(self) -> bool:
        """Whether Redis answers now; logs what to do where it does not."""
        return bool(self._asked("ping", self._client.ping))

    def _read(self, key: str) -> bytes | None:
        value = self._tried("get", lambda: self._client.get(KEY_PREFIX + key))
        return value if isinstance(value, bytes) else None

    def _write(self, key: str, data: bytes) -> None:
        self._tried("set", lambda: self._client.set(KEY_PREFIX + key, data, ex=EXPIRE_SECONDS))

    def _remove(self, key: str) -> None:
        self._tried("delete", lambda: self._client.delete(KEY_PREFIX + key))

    def _tried(self, action: str, command: Callable[[], object]) -> object:
        """The answer, or None: to who asks in a pause, too."""
        with self._lock:
            if time.monotonic() < self._paused_until:
                return None
        return self._asked(action, command)

    def _asked(self, action: str, command: Callable[[], object]) -> object:
        try:
            value = command()
        except redis.RedisError as error:
            self._failed(action, error)
            return None
        with self._lock:
            self._pause, self.backend = PAUSE_SECONDS, HERE
        return value

    def _failed(self, action: str, error: redis.RedisError) -> None:
        now = time.monotonic()
        with self._lock:
            self.backend = AWAY
            if now >= self._paused_until:  # what was under way together fails once
                self._paused_until = now + self._pause
                self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
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
