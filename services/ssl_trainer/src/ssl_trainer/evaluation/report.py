"""What a training leaves for people: curves, a gallery, and a report that shows both.

Axes: H W space.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure

from ssl_trainer.config import AssistantConfig, DataConfig, TrainConfig
from ssl_trainer.data import frame
from ssl_trainer.data.cases import Case, Split
from ssl_trainer.evaluation.evaluate import Predict, header, mean_sd
from ssl_trainer.evaluation.metrics import METRICS, CaseScores, foreground_dice
from ssl_trainer.evaluation.predictor import PREDICTION, Predictor
from ssl_trainer.regions.run import PICTURE_FILE
from vessa_client import AnyArray, UInt8Array, files, pictures
from vessa_common.training_log import answered, read_log

CURVES, PSEUDO_LABELS = "curves.png", "pseudo_labels.png"
GALLERY, REPORT = "gallery.png", "report.md"
# Ranks of the gallery, from the best slice to the worst.
RANKS = (1.0, 0.75, 0.5, 0.25, 0.1, 0.0)
# Stretches without all answers that are named.
NAMED_GAPS = 5
LossCurve = tuple[str, str]
LOSSES: tuple[LossCurve, ...] = (
    ("loss/supervised", "labelled"),
    ("loss/consistency", "teacher"),
    ("loss/assistant", "VESSA"),
)
PSEUDO: tuple[LossCurve, ...] = (
    ("quality/teacher", "Dice of the teacher's labels"),
    ("quality/vessa", "Dice of VESSA's labels"),
    ("assistant/agreement", "pixels on which teacher and VESSA agree"),
    ("teacher/confident", "pixels of which the teacher is sure"),
    ("assistant/weight", "weight of VESSA"),
)


@dataclass(frozen=True)
class _Row:
    """A slice of the gallery."""

    title: str
    image: AnyArray
    predicted: UInt8Array
    truth: UInt8Array | None
    dice: float


def write(
    run: Path,
    config: TrainConfig,
    split: Split,
    predictor: Predictor,
    scores: Sequence[CaseScores],
) -> Path:
    """Write pictures and ``report.md`` into ``run``; returns the report.

    Args:
        run: folder with ``log.jsonl``.
        config: of the run.
        split: its cases; the gallery shows those for validation, else unlabelled ones.
        predictor: with the best student.
        scores: of the validation cases; may be empty.
    """
    log = read_log(run / "log.jsonl")
    _plot_curves(log, config, run / CURVES)
    shown = [("Curves", CURVES)]
    if (run / PICTURE_FILE).is_file():
        shown.insert(
            0, ("Regions of interest: of the student (green), of VESSA (red)", PICTURE_FILE)
        )
    if _plot(log, PSEUDO, run / PSEUDO_LABELS, "pseudo-labels"):
        shown.append(("Pseudo-labels over time", PSEUDO_LABELS))
    # Labels of unlabelled cases are not read, even where there are some.
    cases = split.val or [replace(case, labels=None) for case in split.unlabelled[:3]]
    files.write_picture(run / GALLERY, _gallery(cases, config, predictor))
    shown.append(("Slices, from the best to the worst" if split.val else "Slices", GALLERY))
    file = run / REPORT
    files.write_text(file, _markdown(run, config, split, predictor, scores, log, shown))
    return file


def _series(log: list[dict[str, float]], name: str) -> tuple[list[float], list[float]]:
    found = [(entry["step"], entry[name]) for entry in log if name in entry]
    return [step for step, _ in found], [value for _, value in found]


def _smooth(values: list[float]) -> list[float]:
    """Mean over a twentieth of the run: single batches jump."""
    width = max(1, len(values) // 20)
    return [float(np.mean(values[max(0, i - width + 1) : i + 1])) for i in range(len(values))]


def _plot_curves(log: list[dict[str, float]], config: TrainConfig, file: Path) -> None:
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, label in LOSSES:
        steps, values = _series(log, name)
        if steps:
            left.plot(steps, _smooth(values), label=label)
    left.set(title="Loss", xlabel="update", yscale="log")
    for structure in config.data.classes:
        steps, values = _series(log, f"val/dice/{structure}")
        if steps:
            right.plot(steps, values, marker="o", markersize=3, label=structure)
    right.set(title="Dice of the teacher on validation cases", xlabel="update", ylim=(0, 1))
    for axes in (left, right):
        if axes.lines:
            axes.legend()
    _save(figure, file)


def _plot(log: list[dict[str, float]], curves: Sequence[LossCurve], file: Path, title: str) -> bool:
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, label in curves:
        steps, values = _series(log, name)
        if steps:
            axes.plot(steps, _smooth(values), label=label)
    if not axes.lines:
        return False
    axes.set(title=title.capitalize(), xlabel="update", ylim=(0, 1.02))
    axes.legend(fontsize="small")
    _save(figure, file)
    return True


def _save(figure: Figure, file: Path) -> None:
    with mpl.rc_context({"font.size": 9}):
        figure.savefig(file, dpi=110)


def _shown(case: Case, config: TrainConfig, predict: Predict) -> Iterator[_Row]:
    """Slices of a case in which there is something, or should be."""
    image = case.read()
    truth = case.read_labels(image, len(config.data.classes))
    for index, labels in enumerate(predict(image)):
        expected = None if truth is None else truth.slice(index).astype(np.uint8)
        if (labels if expected is None else expected).any():
            seen = frame.windowed(image.slice(index), config.data.window)
            yield _Row(
                f"{case.name}, slice {index}", seen, labels, expected, _dice(labels, expected)
            )


def _dice(predicted: UInt8Array, truth: UInt8Array | None) -> float:
    """NaN where the truth is not known."""
    if truth is None:
        return float("nan")
    found = foreground_dice(torch.from_numpy(predicted), torch.from_numpy(truth))
    return float("nan") if found is None else found


def _gallery(cases: Sequence[Case], config: TrainConfig, predict: Predict) -> UInt8Array:
    """Slices at fixed ranks, so that bad ones are seen as well.

    The few cases that are shown are predicted once more: pixels of all would fill the memory.
    """
    ranked = sorted(
        ((row.dice, case, row.title) for case in cases for row in _shown(case, config, predict)),
        key=lambda entry: entry[0],
    )
    if not ranked:
        return pictures.panels([("nothing was found", np.zeros((64, 160, 3), np.uint8))])
    ranks = dict.fromkeys(round(rank * (len(ranked) - 1)) for rank in RANKS)
    wanted = {ranked[rank][2]: ranked[rank][1] for rank in ranks}
    rows = {
        row.title: _pictured(row)
        for case in {case.name: case for case in wanted.values()}.values()
        for row in _shown(case, config, predict)
        if row.title in wanted
    }
    names = pictures.legend(config.data.classes)
    return pictures.rows([names, *(rows[title] for title in wanted)])


def _pictured(row: _Row) -> UInt8Array:
    panels = [
        (row.title, pictures.grey(row.image)),
    ]
    dice = "" if row.truth is None else f", Dice {row.dice:.2f}"
    panels.append((f"student{dice}", pictures.overlay(row.image, row.predicted)))
    if row.truth is not None:
        panels.append(("truth", pictures.overlay(row.image, row.truth)))
    return pictures.panels(panels)


def _prediction(config: TrainConfig, predictor: Predictor) -> list[str]:
    """How the student is asked, and what is done to its label maps."""
    lines = []
    if len(predictor.turns) > 1:
        lines.append(
            f"Each slice is shown {len(predictor.turns)} times, turned by up to "
            f"{max(predictor.turns):g} degrees to either side, and the answers are added up."
        )
    if predictor.quarters == "average":
        lines.append(
            "Every view is shown turned by each of four quarters, and mirrored, as in training."
        )
    names = [config.data.classes[value - 1] for value in predictor.largest_component]
    if names:
        lines.append(
            f"Only the largest component of a volume is kept of: {', '.join(names)}. "
            f"That was better on these cases (`{PREDICTION}`)."
        )
    return lines


def _intensities(data: DataConfig) -> str:
    if data.window is None:
        return f"percentiles {frame.LOW_PERCENTILE:g} and {frame.HIGH_PERCENTILE:g} of each slice"
    return f"window {data.window[0]:g} to {data.window[1]:g}"


def _assistance(config: AssistantConfig, log: Sequence[dict[str, float]]) -> str:
    """Where VESSA was, and how much of what it was asked it answered."""
    if config.server is None:
        return "not used"
    found = answered(log)
    at = f"at {config.server}, {'bank ' + config.bank if config.bank else 'the default bank'}"
    if not found.requested:
        return f"{at}, no answers were asked for"
    # Rounded down: 100 % is all of them.
    share = math.floor(1000 * found.share) / 10
    text = f"{at}, answered {share:g} % of {found.requested:,} requests"
    if not found.gaps:
        return text
    gaps = [f"{first}-{last}" for first, last in found.gaps[:NAMED_GAPS]]
    more = len(found.gaps) - len(gaps)
    return f"{text}, not all in updates {', '.join(gaps)}{f' and {more} more' if more else ''}"


def _markdown(
    run: Path,
    config: TrainConfig,
    split: Split,
    predictor: Predictor,
    scores: Sequence[CaseScores],
    log: Sequence[dict[str, float]],
    shown: Sequence[tuple[str, str]],
) -> str:
    patients = [
        f"{len({case.patient for case in cases})} {name}"
        for name, cases in (
            ("labelled", split.labelled),
            ("unlabelled", split.unlabelled),
            ("for validation", split.val),
        )
    ]
    labelled_tests = any(case.labels is not None for case in split.test)
    lines = [
        f"# Training {run.name}",
        "",
        f"- Patients: {', '.join(patients)}",
        f"- {split.found}",
        f"- Student: {config.student.kind}, {config.data.size} × {config.data.size} pixels",
        f"- Method: {config.method}",
        f"- Intensities: {_intensities(config.data)}",
        f"- Updates: {config.steps}, seed {config.seed}",
        f"- VESSA: {_assistance(config.assistant, log)}",
        "- All settings: `config.yaml`; weights: `best.safetensors`; curves: `tensorboard/`",
        "",
    ]
    if scores:
        lines += [
            "## Validation, best student",
            "",
            "The student was chosen on these cases, so their scores are a little too kind.",
            *_prediction(config, predictor),
            "Distances are in mm where the files know the size of a voxel, else in pixels.",
            "",
            f"| {' | '.join(header('', scores))} |",
            "|---|---|---|---|",
        ]
        for index, name in enumerate(config.data.classes):
            cells = [mean_sd([getattr(s, m)[index] for s in scores], n) for m, n in METRICS.items()]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    for title, name in shown:
        lines += [f"## {title}", "", f"![{title}]({name})", ""]
    lines += [
        "## Next",
        "",
        "```",
        f"ssl-trainer predict {run} FOLDER --out FOLDER",
        *([f"ssl-trainer evaluate {run} --split test"] if labelled_tests else []),
        f"ssl-trainer export {run} --out student.onnx",
        "```",
        "",
    ]
    return "\n".join(lines)
