"""How long images of the sample take in the engine, one after the other and together."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from client_load import milliseconds
from gpu_jobs.jobs import rehearsal
from heart import NAMES
from served import SAMPLE, Images, fill_bank
from support import segment_together
from vessa_client import SegmentationRequest
from vessa_server.bank import Banks
from vessa_server.cache import NoCache
from vessa_server.engine import VessaEngine
from vessa_server.inference.look import AnyLook, Prediction
from vessa_server.runtime.torch_runtime import TorchRuntime

# Images one after the other, and together.
COUNT, TOGETHER = 6, 8
SMALL_COUNT, SMALL_TOGETHER = 2, 2
TEXT = "bright cavity"


class _Engine(VessaEngine):
    """Counts its looks."""

    looks = 0

    def run(self, looks: Sequence[AnyLook], pause: Callable[[], object] = bool) -> list[Prediction]:
        self.looks += len(looks)
        return super().run(looks, pause)


def measure(runtime: TorchRuntime, folder: Path) -> dict[str, Any]:
    """Milliseconds and looks of new images, of students' masks for them, and with a text."""
    count, together = (SMALL_COUNT, SMALL_TOGETHER) if rehearsal() else (COUNT, TOGETHER)
    banks = Banks(folder)
    fill_bank(banks.get(""), SAMPLE)
    images = Images.of(SAMPLE / "val")
    engine = _Engine(runtime, banks, NoCache())
    found: dict[str, Any] = {}

    def ask(index: int, **more: Any) -> SegmentationRequest:
        return SegmentationRequest(image=images.fresh(index), class_names=NAMES, **more)

    def measured(name: str, requests: list[SegmentationRequest]) -> None:
        before = engine.looks
        found[f"{name}_ms"] = milliseconds(lambda i: engine.segment(requests[i]), len(requests))
        found[f"{name}_looks"] = (engine.looks - before) / len(requests)

    numbers = range(1, 1 + count)
    measured("first", [ask(0)])
    measured("cold", [ask(index) for index in numbers])
    measured("nothing_new", [ask(index) for index in numbers])
    masked = [ask(index, student_mask=images.student(index)) for index in numbers]
    for request in masked:  # windows of students may be new
        engine.segment(request)
    measured("student_mask", masked)
    measured("text", [ask(index, text=TEXT) for index in numbers])
    engine.settings = replace(engine.settings, fuse=True)
    others = [ask(1000 + index) for index in range(together)]
    found["together"] = together
    found["cold_per_second"] = _per_second(engine, others)
    others = [
        replace(request, student_mask=images.student(1000 + index))
        for index, request in enumerate(others)
    ]
    segment_together(engine, others)
    found["student_masks_per_second"] = _per_second(engine, others)
    return found


def _per_second(engine: VessaEngine, requests: Sequence[SegmentationRequest]) -> float:
    began = time.perf_counter()
    segment_together(engine, requests)
    return round(len(requests) / (time.perf_counter() - began), 2)
