"""Who has gone, or has no time left, holds no thread: the answer is not brought to its size."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from support import engine_of, picture, running
from support_files import png
from vessa_server.cases.frame import restore

RESTORE = "vessa_server.cases.segment.restore"


def test_an_answer_that_is_too_late_is_not_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, begun, late = list[int](), threading.Event(), threading.Event()

    def held(*maps: Any, **options: Any) -> Any:
        asked.append(threading.get_ident())
        begun.set()
        assert late.wait(60)
        return restore(*maps, **options)

    monkeypatch.setattr(RESTORE, held)
    first, second, third = ({"image": png(picture(seed)[0])} for seed in range(3))
    with running(engine_of(tmp_path)) as server:
        url = f"{server.http}/pseudolabel"
        late.set()
        httpx.post(url, files=first, timeout=60).raise_for_status()
        whole = len(asked)
        late.clear()
        begun.clear()
        answer = httpx.post(url, files=second, headers={"X-Request-Timeout": "3"}, timeout=60)
        assert answer.status_code == 504
        assert begun.is_set()
        late.set()
        httpx.post(url, files=third, timeout=60).raise_for_status()
    assert whole > 1
    assert len(asked) == whole + 1 + whole
