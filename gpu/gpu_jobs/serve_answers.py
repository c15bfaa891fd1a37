"""Answers of the shipped weights on the device, compared with those of the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

import golden_answers
from gpu_jobs.errors import FAILED_CHECK, JobError
from gpu_jobs.jobs import rehearsal
from gpu_jobs.parts import WIDTH, Parts
from vessa_client import SegmentationRequest, UInt8Array

Labels = dict[str, UInt8Array]
# Share of the pixels that must have the CPU's label, in fp32.
LEAST_EQUAL = 0.999
# Of a rehearsal: every so many of the requests, of all kinds.
EVERY = 3
NEEDED, CPU_NEEDED = 20.0, 60.0
# As the server computes, where convolutions in fp32 are TF32; then exactly, and in bf16.
VARIANTS = {
    "fp32": (torch.float32, True),
    "fp32 no TF32": (torch.float32, False),
    "bf16": (torch.bfloat16, True),
}


def run(smoke: Parts) -> None:
    """The CPU's, then each variant of the device's."""
    context, expected = smoke.context, Labels()

    def on_cpu() -> dict[str, Any]:
        expected.update(segmented(context.run / "cpu", torch.device("cpu"), torch.float32))
        return {"requests": len(expected), "golden": _golden(expected)}

    smoke.part("CPU answers", CPU_NEEDED, on_cpu)
    for name, (dtype, tf32) in VARIANTS.items() if expected else ():

        def on_device(
            name: str = name, dtype: torch.dtype = dtype, tf32: bool = tf32
        ) -> dict[str, Any]:
            with _convolutions_in_tf32(tf32):
                found = segmented(context.run / name, context.device, dtype)
            return agreement(found, expected, LEAST_EQUAL if dtype == torch.float32 else 0.0)

        smoke.part(name, NEEDED, on_device)


def segmented(folder: Path, device: torch.device, dtype: torch.dtype) -> Labels:
    """Labels of the golden requests: alone, in volumes, with students' masks and texts."""
    engine = golden_answers.engine(folder, device, dtype)
    return {request.request_id: engine.segment(request).labels for request in _requests()}


def agreement(found: Labels, expected: Labels, least: float) -> dict[str, Any]:
    """Shares of pixels with equal labels by kind of request, and where fewest are equal.

    ``structures`` counts only pixels that either of both takes for a structure.

    Raises:
        JobError: in a kind fewer than ``least`` are equal.
    """
    by_kind: dict[str, list[str]] = {}
    for name in expected:
        by_kind.setdefault(_kind(name), []).append(name)
    shares = {}
    for kind, names in by_kind.items():
        one, other = (np.concatenate([a[n].ravel() for n in names]) for a in (found, expected))
        either = (one > 0) | (other > 0)
        shares[kind] = {
            "requests": len(names),
            "equal": round(float((one == other).mean()), 6),
            "structures": round(float((one == other)[either].mean()), 6) if either.any() else 1.0,
        }
    least_of = min(expected, key=lambda name: (found[name] == expected[name]).mean())
    lowest = round(float((found[least_of] == expected[least_of]).mean()), 6)
    result = {"kinds": shares, "lowest": {"request": least_of, "equal": lowest}}
    below = {kind: share["equal"] for kind, share in shares.items() if share["equal"] < least}
    if below:
        raise JobError(f"equal pixels {below}, expected {least}", FAILED_CHECK, result)
    return result


def table(found: dict[str, Any]) -> list[str]:
    """Rows of the last table."""
    lines = ["equal pixels (those of structures), against the CPU"]
    for name in VARIANTS:
        kinds = found.get(name, {}).get("kinds", {})
        shares = [f"{k} {s['equal']:.4%} ({s['structures']:.2%})" for k, s in kinds.items()]
        lines.append(f"{name:<{WIDTH}}{', '.join(shares)}")
    return lines


def _requests() -> Iterator[SegmentationRequest]:
    for index, request in enumerate(golden_answers.requests()):
        if not rehearsal() or index % EVERY == 0:
            yield request


def _kind(request_id: str) -> str:
    parts = request_id.split("/")
    if "volume" in parts:
        return "volume"
    if "text" in parts:
        return "text"
    return "student masks" if {"map", "probabilities"} & set(parts) else "cold"


def _golden(found: Labels) -> float:
    """Share of pixels equal to the answers in the repository, made on another CPU."""
    with np.load(golden_answers.FILE) as golden:
        equal = [(labels == golden[name]).mean() for name, labels in found.items()]
    return round(float(np.mean(equal)), 6)


@contextmanager
def _convolutions_in_tf32(allowed: bool) -> Iterator[None]:
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
