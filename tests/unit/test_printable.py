"""Messages that leave the server: one short line, whatever they repeat."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vessa_client import InvalidRequestError
from vessa_server.api import errors
from vessa_server.bank import BankError, BankFullError


@given(st.text(), st.integers(10, 60))
def test_any_text_becomes_one_short_line(text: str, most: int) -> None:
    shown = errors.printable(text, most)
    assert len(shown.encode()) <= most
    assert shown.isprintable()
    if text.isprintable() and len(text.encode()) <= most:
        assert shown == text


@given(st.text(max_size=300))
def test_metadata_is_what_grpc_carries(field: str) -> None:
    error = errors.public(InvalidRequestError("wrong", field=field))
    for name, value in errors.grpc_metadata(error):
        assert name == name.lower()
        assert value.isascii()
        assert value.isprintable()
        assert len(value) <= errors.MAX_FIELD


@pytest.mark.parametrize(
    ("error", "code", "status", "words"),
    [
        (ValueError("SECRET"), "INTERNAL", 500, "internal error"),
        (BankError("bank: index is damaged"), "INTERNAL", 500, "index is damaged"),
        (BankFullError("bank: the disk is full"), "RESOURCE_EXHAUSTED", 507, "disk is full"),
        (errors.ForeignOriginError("origin: x"), "PERMISSION_DENIED", 403, "origin"),
    ],
)
def test_errors_that_are_not_ours_say_what_they_may(
    error: Exception, code: str, status: int, words: str
) -> None:
    found = errors.public(error)
    assert errors.code_name(found) == errors.grpc_status(found).name == code
    assert errors.http_status(found) == status
    assert words in found.message
    assert "SECRET" not in found.message
