"""One thread of a server computes with helpers, so that they need not be woken at every layer."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from support import engine_of, picture, running
from vessa_client import SegmentationRequest, VessaClient
from vessa_client._types import Priority
from vessa_server.cases import segment, students
from vessa_server.engine import VessaEngine
from vessa_server.inference import scan
from vessa_server.inference.look import AnyLook, Prediction
from vessa_server.policy import answers
from vessa_server.runtime import threads


class _Watched(VessaEngine):
    """Notes how many threads compute its looks."""

    threads: set[int]

    def run(self, looks: Sequence[AnyLook], pause: Callable[[], object] = bool) -> list[Prediction]:
        self.threads.add(torch.get_num_threads())
        return super().run(looks, pause)


@pytest.mark.parametrize("count", [1, 3])
def test_looks_are_computed_with_the_threads_asked_for_and_all_else_with_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    engine = engine_of(tmp_path)
    engine.__class__ = _Watched
    assert isinstance(engine, _Watched)
    engine.threads, elsewhere = set(), set()
    finish = segment._masks

    def watched(*args: Any, **kwargs: Any) -> segment.Masks:
        elsewhere.add(torch.get_num_threads())
        return finish(*args, **kwargs)

    monkeypatch.setattr(segment, "_masks", watched)
    with running(engine, threads=count) as server, VessaClient(server.grpc) as client:
        client.segment(SegmentationRequest(image=picture(0)[0]))
    assert engine.threads == {count}
    assert elsewhere == {1}


def test_work_apart_has_its_own_number_of_threads_and_leaves_that_of_others() -> None:
    before = torch.get_num_threads()
    assert threads.compute_apart(3, torch.get_num_threads) == 3
    assert threads.compute_apart(0, torch.get_num_threads) == threads.DEFAULT
    assert torch.get_num_threads() == before
    with pytest.raises(ValueError, match="as it was raised"):
        threads.compute_apart(1, lambda: _fail("as it was raised"))


@pytest.mark.parametrize("module", ["vessa_server.cli", "ssl_trainer.cli"])
def test_spinning_is_set_before_torch_is_there(module: str) -> None:
    code = f"import sys, {module}; assert 'torch' not in sys.modules, sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def _fail(text: str) -> None:
    raise ValueError(text)


@pytest.mark.parametrize(
    ("priority", "scaled_in"), [("interactive", "payloads"), ("bulk", "scheduler")]
)
def test_where_the_work_on_a_large_image_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, priority: Priority, scaled_in: str
) -> None:
    """Beside the device's thread; but bulk images wait for their turn with all of it."""
    where: dict[str, set[str]] = {}

    def watch(module: Any, name: str) -> None:
        real = getattr(module, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            where.setdefault(name, set()).add(threading.current_thread().name.rstrip("_0123456789"))
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, watched)

    watch(scan, "unit_range")
    watch(students, "on_frame")
    watch(answers, "decide")
    image, labels = picture(0, (600, 520))
    request = SegmentationRequest(image=image, student_mask=labels, priority=priority)
    with running(engine_of(tmp_path)) as server, VessaClient(server.grpc) as client:
        client.segment(request)
    assert where == {"unit_range": {scaled_in}, "on_frame": {scaled_in}, "decide": {"payloads"}}


def test_what_was_prepared_counts_as_held(tmp_path: Path) -> None:
    case = engine_of(tmp_path).open(SegmentationRequest(image=picture(0)[0]))
    before = case.nbytes
    case.prepare()
    assert case.nbytes == before * 5, "the image is scaled to floats of four bytes"
