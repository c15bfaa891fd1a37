"""How errors leave the server: gRPC status and HTTP status for each kind."""

from __future__ import annotations

import traceback
from pathlib import Path

import grpc
import structlog

from vessa_client import (
    AuthenticationError,
    DeadlineError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    UnavailableError,
    VessaError,
)
from vessa_client.wire import METADATA_FIELD, METADATA_RETRY_AFTER
from vessa_server.bank import BankError, BankFullError

log = structlog.get_logger(__name__)
INTERNAL = "INTERNAL"
_HTTP: dict[type[VessaError], int] = {
    InvalidRequestError: 422,
    NotFoundError: 404,
    OverloadedError: 429,
    UnavailableError: 503,
    AuthenticationError: 401,
    DeadlineError: 504,
}
# Most characters of a message: gRPC carries it in a header.
MAX_MESSAGE = 1000


def public(error: Exception) -> VessaError:
    """What of an error leaves the process: of one that is not ours, nothing but that it was.

    Its kind goes to the log, and nothing else: messages and frames may hold pixels and names.
    """
    if isinstance(error, VessaError):
        if len(error.message) > MAX_MESSAGE:
            error.message = error.message[:MAX_MESSAGE] + "..."
        return error
    if isinstance(error, BankFullError):
        return OverloadedError(str(error))
    if isinstance(error, BankError):
        log.error("bank.failed", error=str(error))
        return VessaError(str(error))
    log.error("request.failed", kind=type(error).__name__, at=_where(error))
    return VessaError("internal error; the server's log names its kind")


def _where(error: Exception) -> str:
    """File and line of the innermost frame."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


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
        pairs.append((METADATA_FIELD, error.field[:100]))
    if error.retry_after:
        pairs.append((METADATA_RETRY_AFTER, f"{error.retry_after:.3f}"))
    return tuple(pairs)


def http_status(error: VessaError) -> int:
    """HTTP status: 413 for what is too large, 429 where a retry helps."""
    if isinstance(error, OverloadedError) and not error.retry_after:
        return 413
    return _HTTP.get(type(error), 500)
