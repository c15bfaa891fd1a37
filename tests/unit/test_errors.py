"""How errors leave the server."""

from __future__ import annotations

import pytest

from vessa_client import DeadlineError, OverloadedError, UnavailableError, VessaError
from vessa_server.api import errors
from vessa_server.runtime.protocol import RuntimeUnavailableError


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (RuntimeUnavailableError("no room", retry_after=1.0), 503, "UNAVAILABLE"),
        (UnavailableError("stopping"), 503, "UNAVAILABLE"),
        (OverloadedError("too large"), 413, "RESOURCE_EXHAUSTED"),
        (OverloadedError("full", retry_after=1.0), 429, "RESOURCE_EXHAUSTED"),
        (DeadlineError("late"), 504, "DEADLINE_EXCEEDED"),
        (VessaError("internal"), 500, "INTERNAL"),
    ],
)
def test_every_kind_has_its_status_in_both_transports(
    error: VessaError, status: int, code: str
) -> None:
    assert errors.http_status(error) == status
    assert errors.grpc_status(error).name == code
