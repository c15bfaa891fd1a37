"""How errors leave the server: gRPC status and HTTP status for each kind."""

from __future__ import annotations

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
from vessa_server.failures import described

log = structlog.get_logger(__name__)
INTERNAL = "INTERNAL"
# Most bytes of a message and of a field: gRPC carries them in headers, three bytes for each that
# is not ASCII.
MAX_MESSAGE, MAX_FIELD = 1000, 100


class ForeignOriginError(VessaError):
    """A page of another site asks for a change on behalf of a browser's user."""

    code = "PERMISSION_DENIED"


class DiskFullError(OverloadedError):
    """The disk of the bank is full; only its owner can do something about it."""


# The first kind that an error is of counts.
_HTTP: dict[type[VessaError], int] = {
    DiskFullError: 507,
    InvalidRequestError: 422,
    NotFoundError: 404,
    OverloadedError: 429,
    UnavailableError: 503,
    AuthenticationError: 401,
    ForeignOriginError: 403,
    DeadlineError: 504,
}


def public(error: Exception) -> VessaError:
    """What of an error leaves the process: of one that is not ours, nothing but that it was.

    Its kind and place go to the log, and nothing else.
    """
    if isinstance(error, VessaError):
        found = error
    elif isinstance(error, BankFullError):
        found = DiskFullError(str(error))
    elif isinstance(error, BankError):
        log.error("bank.failed", error=printable(str(error), MAX_MESSAGE))
        found = VessaError(str(error))
    else:
        log.error("request.failed", **described(error))
        found = VessaError("internal error; the server's log names its kind")
    found.message = printable(found.message, MAX_MESSAGE)
    found.field = printable(found.field, MAX_FIELD)
    return found


def printable(text: str, most: int) -> str:
    """``text`` on one line that no terminal obeys, cut to ``most`` bytes."""
    shown = "".join(c if c.isprintable() else "?" for c in text[: most + 1])
    data = shown.encode()
    return shown if len(data) <= most else data[: most - 3].decode(errors="ignore") + "..."


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
        pairs.append((METADATA_FIELD, error.field.encode("ascii", "replace").decode()))
    if error.retry_after:
        pairs.append((METADATA_RETRY_AFTER, f"{error.retry_after:.3f}"))
    return tuple(pairs)


def http_status(error: VessaError) -> int:
    """HTTP status: 413 for what is too large, 429 where a retry helps."""
    if type(error) is OverloadedError and not error.retry_after:
        return 413
    return next((status for kind, status in _HTTP.items() if isinstance(error, kind)), 500)
