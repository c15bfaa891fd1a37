"""Bytes that requests hold together."""

from __future__ import annotations

import pytest

from vessa_client import OverloadedError, UnavailableError
from vessa_server.api.room import Room, Share


def test_one_alone_is_let_in_and_others_wait() -> None:
    room = Room(100, "volume")
    with Share(room) as first:
        first.take(90)
        first.take(60)
        with Share(room) as second, pytest.raises(OverloadedError) as caught:
            second.take(1)
        assert caught.value.retry_after > 0
        assert room.held == 150
    assert room.held == 0
    with Share(room) as third, Share(room) as fourth:
        third.take(60)
        fourth.take(40)
        with pytest.raises(OverloadedError):
            third.take(1)
    assert room.held == 0


def test_a_thread_that_works_for_nobody_holds_nothing() -> None:
    room = Room(100, "volume")
    with Share(room) as gone:
        gone.take(10)
    with pytest.raises(UnavailableError):
        gone.take(10)
    assert room.held == 0
