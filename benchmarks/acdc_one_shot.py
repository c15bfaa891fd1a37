"""One-shot Dice of VESSA on ACDC, as shipped and fitted to the bank, next to copying a mask.

    python benchmarks/acdc_one_shot.py --data DATA/acdc --weights WEIGHTS --split val

Templates are all annotated slices of the 1-case (patient099) or 3-case split. Scores are 3D, for
each structure, over the volumes of the split; mean and standard deviation over patients. Writes
``benchmarks/results/acdc_one_shot_<split>_<cases>.json``.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from rich.table import Table

from ssl_trainer.config import DataConfig
from ssl_trainer.data.cases import Case, find
from ssl_trainer.evaluation import volumes
from ssl_trainer.evaluation.metrics import score
from vessa_client import ClassDefinition, SegmentationRequest, UInt8Array
from vessa_client.console import console, progress_bar
from vessa_server.bank import TemplateBank
from vessa_server.cache import NoCache
from vessa_server.engine import VessaEngine
from vessa_server.model import checkpoint
from vessa_server.model.presets import preset
from vessa_server.training import adaptation

ROOT = Path(__file__).resolve().parent.parent
CASES = {1: ("patient099",), 3: ("patient099", "patient038", "patient050")}
CLASSES = (
    ClassDefinition(
        name="right ventricle", description="Cavity of the heart that leans on the muscle ring."
    ),
    ClassDefinition(name="myocardium", description="Muscle ring around the left cavity."),
    ClassDefinition(name="left ventricle", description="Cavity inside the muscle ring."),
)
Segment = Callable[[np.ndarray[tuple[int, ...], np.dtype[np.generic]]], UInt8Array]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of ACDC")
    parser.add_argument("--weights", type=Path, default=checkpoint_folder())
    parser.add_argument("--split", choices=("val", "test"), default="val")
    parser.add_argument("--cases", type=int, choices=sorted(CASES), default=1)
    parser.add_argument("--top-k", type=int, default=2)
    parser.add_argument("--adapt-steps", type=int, default=0, help="also fit to the bank")
    parser.add_argument("--seed", type=int, default=0, help="of the fitting")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    names = tuple(c.name for c in CLASSES)
    split = find(DataConfig(root=arguments.data, classes=names, labelled=CASES[arguments.cases]))
    cases = getattr(split, arguments.split)
    with tempfile.TemporaryDirectory() as folder:
        engine = build_engine(arguments.weights, Path(folder))
        bank = fill(engine, split.labelled)
        methods: dict[str, Segment] = {
            "VESSA one-shot": lambda image: one_shot(engine, image, arguments.top_k),
            "copy of the matched template": lambda image: copy_mask(engine, bank, image),
        }
        if arguments.adapt_steps:
            adapted = adapt(engine, arguments, Path(folder))
            methods["VESSA fitted to the bank"] = lambda image: one_shot(
                adapted, image, arguments.top_k
            )
        results = {name: evaluate(name, segment, cases) for name, segment in methods.items()}
    show(results, f"Dice, {arguments.split}, {arguments.cases} labelled case(s)")
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / f"acdc_one_shot_{arguments.split}_{arguments.cases}.json"
    file.write_text(json.dumps({**circumstances(arguments), "results": results}, indent=2) + "\n")
    console.print(f"Results {file}", highlight=False)


def checkpoint_folder() -> Path:
    """The shipped weights."""
    return ROOT / "services" / "vessa_server" / "weights" / "nano"


def build_engine(weights: Path, folder: Path) -> VessaEngine:
    """An engine with an empty bank."""
    model = checkpoint.load(preset("nano"), weights)
    return VessaEngine(model, checkpoint.digest(weights), TemplateBank(folder), NoCache())


def fill(engine: VessaEngine, labelled: tuple[Case, ...]) -> dict[str, UInt8Array]:
    """Add all annotated slices; returns their label maps by template id."""
    bank = {}
    for case in labelled:
        image = case.read()
        truth = case.read_labels(image, len(CLASSES))
        assert truth is not None
        for index in range(image.depth):
            labels = truth.slice(index).astype(np.uint8)
            if labels.any():
                info, _ = engine.add_template(image.slice(index), labels, CLASSES)
                bank[info.template_id] = labels
    return bank


def adapt(engine: VessaEngine, arguments: argparse.Namespace, folder: Path) -> VessaEngine:
    """An engine with the same bank and weights fitted to it."""
    config = adaptation.adaptation_config(arguments.adapt_steps, arguments.seed)
    out = folder / "adaptation"
    file = adaptation.adapt(arguments.weights, preset("nano"), engine.bank, config, out)
    model = checkpoint.load(preset("nano"), arguments.weights)
    digest = checkpoint.apply_delta(model, file, checkpoint.digest(arguments.weights))
    return VessaEngine(model, digest, engine.bank, NoCache())


def one_shot(
    engine: VessaEngine, image: np.ndarray[tuple[int, ...], np.dtype[np.generic]], top_k: int
) -> UInt8Array:
    """VESSA's label map."""
    return engine.segment(SegmentationRequest(image=image, top_k=top_k)).labels


def copy_mask(
    engine: VessaEngine,
    bank: dict[str, UInt8Array],
    image: np.ndarray[tuple[int, ...], np.dtype[np.generic]],
) -> UInt8Array:
    """Label map of the best template of the most classes, scaled to the image's size."""
    result = engine.segment(SegmentationRequest(image=image, top_k=1))
    used = [t.template_id for t in result.templates]
    labels = torch.from_numpy(bank[max(used, key=used.count)])[None, None].float()
    scaled = torch.nn.functional.interpolate(labels, size=image.shape[:2], mode="nearest")
    out: UInt8Array = scaled[0, 0].to(torch.uint8).numpy()
    return out


def evaluate(name: str, segment: Segment, cases: tuple[Case, ...]) -> dict[str, object]:
    """Dice of each patient (mean of its volumes) and their mean and deviation."""
    by_patient: dict[str, list[tuple[float, ...]]] = {}
    start, slices = time.perf_counter(), 0
    with progress_bar() as progress:
        task = progress.add_task(name, total=len(cases), note="")
        for case in cases:
            image = case.read()
            truth = case.read_labels(image, len(CLASSES))
            assert truth is not None
            predicted = volumes.stack([segment(s) for s in image.slices()], image)
            expected = volumes.stack([s.astype(np.uint8) for s in truth.slices()], image)
            found = score(image.stem, predicted, expected, len(CLASSES), (1, 1, 1), distances=False)
            by_patient.setdefault(case.patient, []).append(found.dice)
            slices += image.depth
            progress.advance(task)
    patients = {p: np.mean(dice, axis=0).tolist() for p, dice in by_patient.items()}
    table = np.array(list(patients.values()))
    return {
        "patients": patients,
        "mean": table.mean(axis=0).tolist(),
        "sd": table.std(axis=0).tolist(),
        "mean_of_structures": float(table.mean()),
        "seconds_per_slice": (time.perf_counter() - start) / slices,
    }


def show(results: dict[str, dict[str, object]], title: str) -> None:
    """Print the table."""
    table = Table("", *(c.name for c in CLASSES), "mean", title=title)
    for name, found in results.items():
        means, deviations = found["mean"], found["sd"]
        assert isinstance(means, list)
        assert isinstance(deviations, list)
        cells = [f"{m:.3f} ± {d:.3f}" for m, d in zip(means, deviations, strict=True)]
        table.add_row(name, *cells, f"{found['mean_of_structures']:.3f}")
    console.print(table)


def circumstances(arguments: argparse.Namespace) -> dict[str, object]:
    """Commit, machine, versions, weights and arguments."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip(),
        "weights": checkpoint.digest(arguments.weights),
        "cases": arguments.cases,
        "split": arguments.split,
        "top_k": arguments.top_k,
        "adapt_steps": arguments.adapt_steps,
        "seed": arguments.seed,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "structures": [c.name for c in CLASSES],
    }


if __name__ == "__main__":
    main()
