"""What the ACDC benchmarks share: cases, bank, scores and circumstances."""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from heart import CLASSES, NAMES
from ssl_trainer.config import DataConfig
from ssl_trainer.data.cases import Case, Split, find
from ssl_trainer.evaluation import evaluate as evaluation
from vessa_client import AnyArray, SegmentationRequest, UInt8Array, files
from vessa_client.console import console, progress_bar
from vessa_server.bank import Banks, TemplateBank
from vessa_server.cache import NoCache
from vessa_server.engine import VessaEngine
from vessa_server.engine_settings import EngineSettings
from vessa_server.model import checkpoint
from vessa_server.model.vessa import Vessa
from vessa_server.runtime.torch_runtime import TorchRuntime

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
LABELLED = {1: ("patient099",), 3: ("patient099", "patient038", "patient050")}
# Label maps of the slices of a volume.
Segment = Callable[[files.ImageFile], list[UInt8Array]]


@dataclass(frozen=True)
class AnnotatedSlice:
    """A slice with its truth, and some slices of its volume."""

    name: str
    image: AnyArray
    labels: UInt8Array
    volume: tuple[AnyArray, ...] = ()


def split(data: Path, cases: int) -> Split:
    """ACDC with ``cases`` labelled patients."""
    return find(DataConfig(root=data, classes=NAMES, labelled=LABELLED[cases]))


def slices(cases: Sequence[Case]) -> list[AnnotatedSlice]:
    """All slices of the cases."""
    found = []
    for case in cases:
        image = case.read()
        truth = case.read_labels(image, len(CLASSES))
        assert truth is not None
        volume = image.sample()
        for index in range(image.depth):
            name, labels = f"{image.stem}/{index}", truth.slice(index).astype(np.uint8)
            found.append(AnnotatedSlice(name, image.slice(index), labels, volume))
    return found


def new_engine(
    model: Vessa, digest: str, bank: TemplateBank, settings: EngineSettings | None = None
) -> VessaEngine:
    """An engine that remembers nothing of another one."""
    return VessaEngine(TorchRuntime(model, digest), Banks(bank.folder), NoCache(), settings)


def fill(bank: TemplateBank, labelled: Sequence[Case]) -> None:
    """Add all annotated slices."""
    for item in slices(labelled):
        if item.labels.any():
            bank.add(item.image, item.labels, CLASSES)


def ask(engine: VessaEngine, volume: files.ImageFile, **options: Any) -> list[UInt8Array]:
    """VESSA's label maps of the slices of a volume; ``options`` are those of a request."""
    sample = volume.sample()
    requests = [SegmentationRequest(image=i, volume=sample, **options) for i in volume.slices()]
    return [engine.segment(request).labels for request in requests]


def each_slice(segment: Callable[[AnyArray], UInt8Array]) -> Segment:
    """A method that sees one slice at a time."""
    return lambda volume: [segment(image) for image in volume.slices()]


def evaluate(name: str, segment: Segment, cases: Sequence[Case]) -> dict[str, object]:
    """3D Dice of each patient (mean of its volumes), and their mean and deviation."""
    start, depths = time.perf_counter(), list[int]()

    def counted(volume: files.ImageFile) -> list[UInt8Array]:
        depths.append(volume.depth)
        return segment(volume)

    with progress_bar() as progress:
        task = progress.add_task(name, total=len(cases), note="")
        advance = partial(progress.advance, task)
        scores = evaluation.evaluate(counted, cases, NAMES, distances=False, advance=advance)
    by_patient: dict[str, list[tuple[float, ...]]] = {}
    for case, found in zip(cases, scores, strict=True):
        by_patient.setdefault(case.patient, []).append(found.dice)
    patients = {p: np.mean(dice, axis=0).tolist() for p, dice in by_patient.items()}
    table = np.array(list(patients.values()))
    return {
        "patients": patients,
        "mean": table.mean(axis=0).tolist(),
        "sd": table.std(axis=0, ddof=1).tolist(),
        "mean_of_structures": float(table.mean()),
        "seconds_per_slice": (time.perf_counter() - start) / sum(depths),
    }


def results_file(name: str, arguments: argparse.Namespace) -> Path:
    """Where the results on a split are."""
    return RESULTS / f"{name}_{arguments.split}_{arguments.cases}.json"


def write_results(name: str, arguments: argparse.Namespace, found: dict[str, object]) -> None:
    """Write what was found on a split, with the circumstances."""
    plain = {k: v for k, v in vars(arguments).items() if isinstance(v, int | str | list)}
    facts = circumstances(
        structures=list(NAMES), weights=checkpoint.digest(arguments.weights), **plain
    )
    file = results_file(name, arguments)
    files.write_text(file, json.dumps({**facts, **found}, indent=2) + "\n")
    console.print(f"Results {file}", highlight=False)


def circumstances(**arguments: object) -> dict[str, object]:
    """Commit, machine, versions and arguments; no commit where there is no git."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": (git("rev-parse", "HEAD") or "").strip(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        "torch": torch.__version__,
        **arguments,
    }


def git(*arguments: str) -> str | None:
    """What git says of the project; None where it fails, or is not there."""
    command = ["git", *arguments]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout
