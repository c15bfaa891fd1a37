"""Who is right where the teacher and VESSA disagree?

    python benchmarks/ssl_conflicts.py acdc --data DATA --out CELLS --cases 1 3 7

Students of finished cells of ``ssl_arms.py`` segment unlabelled slices, VESSA is told their
probabilities, and both are compared with the truth, pixel by pixel: where the student is sure
(its probability reaches the threshold of UniMatch V2) and where not. The labels of unlabelled
patients serve to look, never to train. Writes ``benchmarks/results/ssl_conflicts_TASK.json``.

Axes: C classes with background, H W space.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from torch import nn

from acdc import RESULTS, circumstances, new_engine
from ssl_cells import TASK_NAMES, Facts, Task
from ssl_trainer.assistant.feedback import prompt
from ssl_trainer.config import TrainConfig, parse
from ssl_trainer.data import batches, cases, frame
from ssl_trainer.data.cases import Slice
from ssl_trainer.models import predict_probabilities
from ssl_trainer.unimatch.trainer import load_best
from vessa_client import SegmentationRequest, files
from vessa_client.console import console, progress_bar
from vessa_server.bank import TemplateBank
from vessa_server.engine import VessaEngine
from vessa_server.model import checkpoint
from vessa_server.model.presets import preset
from vessa_server.serving.settings import SHIPPED_WEIGHTS


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=TASK_NAMES)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder of the cells")
    parser.add_argument("--cases", type=int, nargs="+", required=True)
    parser.add_argument("--arm", default="unimatch", help="whose students")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slices", type=int, default=90)
    arguments = parser.parse_args()
    task = Task.load(arguments.task, arguments.data)
    weights = SHIPPED_WEIGHTS / "nano"
    model, digest = checkpoint.load(preset("nano"), weights), checkpoint.digest(weights)
    found = {}
    for count in arguments.cases:
        cell = task.cell(arguments.arm, count, arguments.seed)
        with tempfile.TemporaryDirectory() as scratch:
            bank = TemplateBank(Path(scratch))
            for image, labels, name in task.templates(count):
                bank.add(image, labels, task.classes, name=name)
            engine = new_engine(model, digest, bank)
            config = parse(cell.config)
            student = load_best(task.cells(arguments.out) / cell.name, config).student
            found[str(count)] = compare(engine, student, config, arguments.slices)
        console.print(f"{cell.name}: {found[str(count)]}", highlight=False)
    plain = {k: v for k, v in vars(arguments).items() if isinstance(v, int | str | list)}
    facts = circumstances(weights=digest, **plain)
    file = RESULTS / f"ssl_conflicts_{task.name}.json"
    files.write_text(file, json.dumps({**facts, "results": found}, indent=2) + "\n")
    console.print(f"Results {file}", highlight=False)


def compare(engine: VessaEngine, student: nn.Module, config: TrainConfig, count: int) -> Facts:
    """Share of right pixels of both, where they disagree, for sure and unsure students."""
    split = cases.find(config.data)
    sample = config.assistant.volume_slices
    slices = cases.read_slices(
        split.unlabelled, len(config.data.classes), labelled=True, sample=sample
    )
    chosen = np.random.default_rng(0).permutation(len(slices))[:count]
    pixels: Counter[str] = Counter()
    with progress_bar() as progress:
        bar = progress.add_task("unlabelled slices", total=len(chosen), note="")
        for index in chosen:
            pixels.update(_disagreements(engine, student, config, slices[int(index)]))
            progress.advance(bar)
    return {
        kind: {
            "pixels": pixels[kind],
            "student_right": pixels[f"{kind}, student"] / max(1, pixels[kind]),
            "vessa_right": pixels[f"{kind}, vessa"] / max(1, pixels[kind]),
        }
        for kind in ("sure", "unsure")
    }


def _disagreements(
    engine: VessaEngine, student: nn.Module, config: TrainConfig, item: Slice
) -> Counter[str]:
    assert item.labels is not None
    view = batches.canonical(item, config.data.size)[None]
    probabilities = predict_probabilities(student, view)[0]
    native_CHW = frame.restore(probabilities, item.image.shape)
    told = prompt(probabilities, item.image.shape)
    request = SegmentationRequest(
        image=item.image,
        volume=item.volume,
        class_names=config.data.classes,
        student_mask=told,
    )
    vessa_HW = engine.segment(request).labels
    confidence, labels = native_CHW.max(dim=0)
    student_HW, sure_HW = labels.numpy(), confidence.numpy() >= config.unimatch.confidence_threshold
    pixels: Counter[str] = Counter()
    for kind, where in (("sure", sure_HW), ("unsure", ~sure_HW)):
        apart = where & (student_HW != vessa_HW)
        pixels[kind] += int(apart.sum())
        pixels[f"{kind}, student"] += int((apart & (student_HW == item.labels)).sum())
        pixels[f"{kind}, vessa"] += int((apart & (vessa_HW == item.labels)).sum())
    return pixels


if __name__ == "__main__":
    main()
