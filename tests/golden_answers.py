"""Answers of the shipped weights on the shipped sample, as they were before the server was rebuilt.

``python tests/golden_answers.py`` writes them anew; do that only where answers are meant to change.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from support import ROOT, SAMPLE
from vessa_client import AnyArray, ClassDefinition, SegmentationRequest, UInt8Array, files
from vessa_server.bank import Banks
from vessa_server.cache import NoCache
from vessa_server.engine import VessaEngine
from vessa_server.model import checkpoint
from vessa_server.model.presets import preset
from vessa_server.runtime.torch_runtime import TorchRuntime

FILE = ROOT / "tests" / "golden" / "nano.npz"
WEIGHTS = ROOT / "services" / "vessa_server" / "weights" / "nano"
CLASSES = (
    ClassDefinition(
        name="right ventricle", description="Cavity of the heart that leans on the muscle ring."
    ),
    ClassDefinition(name="myocardium", description="Muscle ring around the left cavity."),
    ClassDefinition(name="left ventricle", description="Cavity inside the muscle ring."),
)


def engine(
    folder: Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> VessaEngine:
    """Shipped weights, and a bank of one patient's two volumes."""
    banks = Banks(folder)
    for frame in ("01", "02"):
        image = files.read(SAMPLE / "train" / f"patient099_frame{frame}.nii.gz")
        truth = files.read(SAMPLE / "train" / f"patient099_frame{frame}_gt.nii.gz", labels=True)
        for z in range(image.depth):
            labels = truth.slice(z).astype(np.uint8)
            if labels.any():
                banks.get("").add(image.slice(z), labels, CLASSES, name=f"{frame}/{z}")
    model = checkpoint.load(preset("nano"), WEIGHTS, device=device, dtype=dtype)
    return VessaEngine(TorchRuntime(model, "0" * 64), banks, NoCache())


def requests() -> Iterator[SegmentationRequest]:
    """Images alone and in volumes, students' masks, texts, colours and other shapes."""
    for patient in ("patient028", "patient078", "patient087"):
        image = files.read(SAMPLE / "val" / f"{patient}_frame01.nii.gz")
        truth = files.read(SAMPLE / "val" / f"{patient}_frame01_gt.nii.gz", labels=True)
        volume, z = image.sample(), image.depth // 2
        for index in range(0, image.depth, 3):
            name = f"{patient}/{index}"
            yield SegmentationRequest(image=image.slice(index), request_id=f"{name}/alone")
            yield SegmentationRequest(
                image=image.slice(index), volume=volume, request_id=f"{name}/volume"
            )
        for kind, labels in _masks(truth.slice(z).astype(np.uint8)).items():
            yield SegmentationRequest(
                image=image.slice(z), student_mask=labels, request_id=f"{patient}/map/{kind}"
            )
            yield SegmentationRequest(
                image=image.slice(z),
                volume=volume,
                student_mask=_probabilities(labels),
                request_id=f"{patient}/probabilities/{kind}",
            )
        yield SegmentationRequest(
            image=image.slice(4), text="bright cavity", request_id=f"{patient}/text"
        )
        yield SegmentationRequest(
            image=image.slice(4),
            class_names=("left ventricle",),
            top_k=2,
            request_id=f"{patient}/one class",
        )
    grey = image.slice(4).astype(np.float64)
    grey = (255 * (grey - grey.min()) / (grey.max() - grey.min())).astype(np.uint8)
    colours: AnyArray = np.stack([grey, grey[::-1], grey], axis=2)
    yield SegmentationRequest(image=colours, request_id="colours")
    yield SegmentationRequest(image=grey[60:160], request_id="wide")


def _masks(labels: UInt8Array) -> dict[str, UInt8Array]:
    return {
        "truth": labels,
        "moved": np.roll(labels, (9, -7), (0, 1)),
        "far": np.roll(labels, (70, -60), (0, 1)),
        "empty": np.zeros_like(labels),
    }


def _probabilities(labels: UInt8Array) -> AnyArray:
    maps = np.stack([labels == value for value in (1, 2, 3)]).astype(np.float32)
    return (maps * 0.8 + 0.05).astype(np.float32)


def main() -> None:
    """Write the file."""
    with tempfile.TemporaryDirectory() as scratch:
        found = engine(Path(scratch))
        answers = {request.request_id: found.segment(request).labels for request in requests()}
    np.savez_compressed(FILE, **answers)  # type: ignore[arg-type]
    print(f"{len(answers)} answers in {FILE}", file=sys.stderr)


if __name__ == "__main__":
    main()
