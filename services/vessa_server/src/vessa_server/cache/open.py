"""Choose a cache by its address."""

from __future__ import annotations

import re
from pathlib import Path

from vessa_server.cache.disk import DiskCache
from vessa_server.cache.feature_cache import FeatureCache, NoCache
from vessa_server.cache.redis import RedisCache, without_password

REDIS_SCHEMES = ("redis://", "rediss://", "unix://")
# What is meant as an address, and would be a folder of that name.
_NO_FOLDER = re.compile(r"|.*://.*|rediss?:.*|[\w.-]+:\d+(/\d*)?", re.DOTALL)


def open_cache(address: str, max_bytes: int) -> FeatureCache:
    """``redis://...``, ``none``, or the path of a folder for the embedded cache.

    Raises:
        ValueError: names the setting, what is wrong with the address, and what was expected.
    """
    if address == "none":
        return NoCache()
    if address.startswith(REDIS_SCHEMES):
        try:
            cache = RedisCache(address)
            cache.reachable()
        except (ValueError, TypeError) as error:  # TypeError: an option that there is not
            raise _refused(address, _without_secrets(address, error)) from None
        return cache
    if _NO_FOLDER.fullmatch(address):
        raise _refused(address, "no address of a cache")
    try:
        return DiskCache(Path(address), max_bytes)
    except OSError as error:
        raise _refused(address, error.strerror or str(error)) from error


def _without_secrets(address: str, error: Exception) -> str:
    # A password with a slash or colon is read as a port or database, which errors quote.
    if "@" in address:
        return "its port, database or options cannot be read; is the password percent-encoded?"
    return str(error)


def _refused(address: str, reason: str) -> ValueError:
    return ValueError(
        f"VESSA_CACHE: {without_password(address)!r}: {reason}; expected redis://host:port/db, "
        "a folder that can be written, or none"
    )
