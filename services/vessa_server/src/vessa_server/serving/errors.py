"""How errors leave the server: gRPC status and HTTP status for each kind."""

from __future__ import annotations

import grpc

from vessa_client import (
    AuthenticationError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    UnavailableError,
    VessaError,
)
from vessa_client.wire import METADATA_FIELD, METADATA_RETRY_AFTER

INTERNAL = "INTERNAL"
_HTTP: dict[type[VessaError], int] = {
    InvalidRequestError: 422,
    NotFoundError: 404,
    OverloadedError: 429,
    UnavailableError: 503,
    AuthenticationError: 401,
}


def code_name(error: VessaError) -> str:
    """Name of the gRPC status code."""
    return INTERNAL if type(error) is VessaError else error.code


def grpc_status(error: VessaError) -> grpc.StatusCode:
    """GRPC status code."""
    return grpc.StatusCode[code_name(error)]


def grpc_metadata(error: VessaError) -> tuple[tuple[str, str], ...]:
    """Trailing metadata: field and retry delay, where there are any."""
    pairs = []
    if error.field:
        pairs.append((METADATA_FIELD, error.field))
    if error.retry_after:
        pairs.append((METADATA_RETRY_AFTER, f"{error.retry_after:.3f}"))
    return tuple(pairs)


def http_status(error: VessaError) -> int:
    """HTTP status: 413 for what is too large, 429 where a retry helps."""
    if isinstance(error, OverloadedError) and not error.retry_after:
        return 413
    return _HTTP.get(type(error), 500)
