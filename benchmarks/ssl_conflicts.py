"""Who is right where the teacher and VESSA disagree?

    python benchmarks/ssl_conflicts.py acdc --data DATA --out CELLS --cases 1 3 7

Students of finished cells of ``ssl_arms.py`` segment unlabelled slices, VESSA is told their
probabilities, and both are compared with the truth. Pixel by pixel: where the student is sure (its
probability reaches the threshold of UniMatch V2) and where not, and where VESSA sees a structure
which the student does not, or background where the student sees one. Slice by slice: by how far
both agree about it and whether VESSA is sure of it, which is what ``assistant.overrule`` goes by.
The labels of unlabelled patients serve to look, never to train. Writes
``benchmarks/results/ssl_conflicts_TASK.json``.

Axes: C classes with background, H W space.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from acdc import RESULTS, circumstances, new_engine
from ssl_cells import TASK_NAMES, Facts, Task
from ssl_trainer.assistant.assistant import pseudo_label
from ssl_trainer.assistant.feedback import prompt
from ssl_trainer.config import TrainConfig, parse
from ssl_trainer.data import batches, cases, frame
from ssl_trainer.data.cases import Slice
from ssl_trainer.evaluation.metrics import foreground_dice
from ssl_trainer.models import predict_probabilities
from ssl_trainer.unimatch import pooling
from ssl_trainer.unimatch.trainer import load_best
from vessa_client import SegmentationRequest, SegmentationResult, files
from vessa_client.console import console, progress_bar
from vessa_server.api.settings import SHIPPED_WEIGHTS
from vessa_server.bank import TemplateBank
from vessa_server.engine import VessaEngine
from vessa_server.model import checkpoint
from vessa_server.model.presets import preset

# Of slices: whether student and VESSA agree about one, and whether VESSA is sure of it.
KINDS = ("alike", "apart, VESSA sure", "apart, VESSA unsure")


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
    """Share of right pixels, and Dice of slices, of both."""
    split = cases.find(config.data)
    sample = config.assistant.volume_slices
    slices = cases.read_slices(
        split.unlabelled, len(config.data.classes), labelled=True, sample=sample
    )
    chosen = np.random.default_rng(0).permutation(len(slices))[:count]
    pixels: Counter[str] = Counter()
    whole: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    with progress_bar() as progress:
        bar = progress.add_task("unlabelled slices", total=len(chosen), note="")
        for index in chosen:
            item = slices[int(index)]
            native_CHW, answer = _both(engine, student, config, item)
            pixels.update(_pixels(native_CHW, answer, config, item))
            kind, dice = _whole(native_CHW, answer, item)
            if dice is not None:
                whole[kind].append(dice)
            progress.advance(bar)
    by_pixel = {
        kind: {
            "pixels": pixels[kind],
            "student_right": pixels[f"{kind}, student"] / max(1, pixels[kind]),
            "vessa_right": pixels[f"{kind}, vessa"] / max(1, pixels[kind]),
        }
        for kind in ("sure", "unsure", "added", "taken away")
    }
    by_slice = {kind: _means(scores) for kind, scores in whole.items()}
    return {**by_pixel, "slices": by_slice}


def _means(scores: list[tuple[float, float]]) -> Facts:
    student, vessa = np.mean(scores, axis=0).tolist() if scores else (None, None)
    return {"slices": len(scores), "student_dice": student, "vessa_dice": vessa}


def _both(
    engine: VessaEngine, student: nn.Module, config: TrainConfig, item: Slice
) -> tuple[Tensor, SegmentationResult]:
    """The student's probabilities in the native slice, (C, H, W), and VESSA's answer to them."""
    view = batches.canonical(item, config.data.size)[None]
    probabilities = predict_probabilities(student, view)[0]
    request = SegmentationRequest(
        image=item.image,
        volume=item.volume,
        class_names=config.data.classes,
        student_mask=prompt(probabilities, item.image.shape),
    )
    return frame.restore(probabilities, item.image.shape), engine.segment(request)


def _pixels(
    native_CHW: Tensor, answer: SegmentationResult, config: TrainConfig, item: Slice
) -> Counter[str]:
    """Who is right in the pixels of which both say something else."""
    confidence, labels = native_CHW.max(dim=0)
    student_HW, sure_HW = labels.numpy(), confidence.numpy() >= config.unimatch.confidence_threshold
    kinds = {
        "sure": sure_HW,
        "unsure": ~sure_HW,
        "added": answer.labels > 0,
        "taken away": answer.labels == 0,
    }
    pixels: Counter[str] = Counter()
    for kind, where in kinds.items():
        apart = where & (student_HW != answer.labels)
        pixels[kind] += int(apart.sum())
        pixels[f"{kind}, student"] += int((apart & (student_HW == item.labels)).sum())
        pixels[f"{kind}, vessa"] += int((apart & (answer.labels == item.labels)).sum())
    return pixels


def _whole(
    native_CHW: Tensor, answer: SegmentationResult, item: Slice
) -> tuple[str, tuple[float, float] | None]:
    """Of which kind a slice is, and the Dice of student and VESSA; None without structures."""
    student_HW, vessa_HW, truth_HW = (
        torch.as_tensor(labels).long()
        for labels in (native_CHW.argmax(0), answer.labels, item.labels)
    )
    agreed = pooling.agreement(student_HW[None], vessa_HW[None], len(native_CHW) - 1)
    kind = "alike"
    if float(agreed) < sum(pooling.AGREEMENT_RANGE) / 2:
        iou = pseudo_label(answer).predicted_iou
        kind = "apart, VESSA sure" if iou >= sum(pooling.SURE_RANGE) / 2 else "apart, VESSA unsure"
    scores = foreground_dice(student_HW, truth_HW), foreground_dice(vessa_HW, truth_HW)
    return kind, None if scores[0] is None or scores[1] is None else (scores[0], scores[1])


if __name__ == "__main__":
    main()
