"""Pictures of the comparison, from ``benchmarks/results/ssl_TASK.json`` and the runs' folders.

    python benchmarks/ssl_pictures.py acdc
    python benchmarks/ssl_pictures.py acdc --gallery 1 --seed 0 --data DATA --out RUNS

Writes to ``docs/images``: validation Dice over updates (``ssl_TASK_curves.png``), Dice of each test
patient without and with VESSA (``ssl_TASK_patients.png``), and with ``--gallery`` what students
see in slices of test patients (``ssl_TASK_gallery.jpg``): at fixed ranks from the best to the worst
slice of the student with VESSA, so that nobody chose them.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from acdc import ROOT
from ssl_results import MAIN, Budget, Results, Rival, by_patient
from ssl_runs import Comparison
from ssl_scores import VIEWS, predictor
from ssl_tables import RIVAL, rival_of, titled
from ssl_tasks import METHODS, TASK_NAMES, Facts, Task
from ssl_trainer.config import load
from ssl_trainer.data.cases import find
from ssl_trainer.evaluation.metrics import foreground_dice
from vessa_client import AnyArray, UInt8Array, files, pictures
from vessa_client.console import console

IMAGES = ROOT / "docs" / "images"
# Ranks of the gallery, from the best slice to the worst of the last one of the shown students.
RANKS = (1.0, 0.8, 0.6, 0.4, 0.2, 0.05, 0.0)
SHOWN = ("unimatch", "vessa")


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=TASK_NAMES)
    parser.add_argument("--gallery", metavar="SUBSET", help="of the students of this subset")
    parser.add_argument("--seed", type=int, default=0, help="of the gallery's students")
    parser.add_argument("--data", type=Path, help="folder of the data sets, for the gallery")
    parser.add_argument("--out", type=Path, help="folder of the runs, for the gallery")
    arguments = parser.parse_args()
    name = arguments.task
    if arguments.gallery:
        if arguments.data is None or arguments.out is None:
            parser.error("--gallery: needs --data and --out, too")
        task = Task.load(name, arguments.data)
        drawn = gallery(Comparison(task, arguments.out, IMAGES), arguments.gallery, arguments.seed)
        _said(IMAGES / f"ssl_{name}_gallery.jpg", drawn)
        return
    results = Results.load(name)
    for kind, figure in (("curves", curves(results)), ("patients", patients(results))):
        if figure is not None:
            _said(IMAGES / f"ssl_{name}_{kind}.png", figure)


def _said(file: Path, drawn: Figure | UInt8Array) -> None:
    if isinstance(drawn, Figure):
        with mpl.rc_context({"font.size": 9}):
            drawn.savefig(file, dpi=110)
    else:
        files.write_picture(file, drawn)
    console.print(f"{file}", highlight=False)


def curves(results: Results) -> Figure | None:
    """Validation Dice over updates, a panel for each budget: mean and range over seeds."""
    budgets = [budget for budget in results.budgets() if _with_curves(results, budget)]
    if not budgets:
        return None
    figure, panels = _panels(len(budgets))
    for axes, budget in zip(panels, budgets, strict=True):
        for name, runs in _with_curves(results, budget).items():
            _draw(axes, runs, METHODS[name].title, f"C{list(METHODS).index(name)}")
        axes.set(title=f"Validation Dice, annotated: {budget[0]}", xlabel="update", ylim=(0, 1))
        axes.legend(fontsize="x-small", loc="lower right")
        axes.grid(alpha=0.3)
    return figure


def _with_curves(results: Results, budget: Budget) -> dict[str, list[Facts]]:
    """Runs by method, of the methods that have some."""
    found = {
        name: [run for run in results.select(budget, name) if "val/dice" in run["curves"]]
        for name in METHODS
    }
    return {name: runs for name, runs in found.items() if runs}


def _draw(axes: Axes, runs: list[Facts], label: str, colour: str) -> None:
    values = np.array([run["curves"]["val/dice"] for run in runs], dtype=np.float64)
    steps = runs[0]["curves"]["step"]
    axes.plot(steps, values.mean(axis=0), label=f"{label} ({len(runs)})", color=colour)
    axes.fill_between(steps, values.min(axis=0), values.max(axis=0), alpha=0.15, color=colour)


def patients(results: Results) -> Figure | None:
    """Dice of each test patient with VESSA and with its fair rival, a panel for each budget."""
    rivals = {
        budget: rival_of(results, budget, "vessa", RIVAL, "test") for budget in results.budgets()
    }
    shown = [
        (budget, rival)
        for budget, rival in rivals.items()
        if rival is not None and results.gain(budget, "vessa", rival) is not None
    ]
    if not shown:
        return None
    figure, panels = _panels(len(shown))
    for axes, (budget, rival) in zip(panels, shown, strict=True):
        without, with_vessa = _side_by_side(results, budget, rival)
        ordered = sorted(without, key=lambda name: without[name])
        for x, name in enumerate(ordered):
            ends = without[name], with_vessa[name]
            axes.plot([x, x], ends, color="C2" if ends[1] >= ends[0] else "C3", linewidth=3)
        axes.plot([without[n] for n in ordered], "o", color="C1", label=titled(rival))
        axes.plot([with_vessa[n] for n in ordered], "D", color="C0", label=METHODS["vessa"].title)
        labels = [name.removeprefix("patient") for name in ordered]
        axes.set_xticks(range(len(ordered)), labels, fontsize="x-small")
        axes.set(title=f"Dice of each test patient, annotated: {budget[0]}", ylim=(0, 1))
        axes.legend(fontsize="small", loc="lower right")
        axes.grid(alpha=0.3)
    return figure


def _side_by_side(results: Results, budget: Budget, rival: Rival) -> list[dict[str, float]]:
    """Dice of each test patient without and with VESSA, over the seeds that both have."""
    both = [
        by_patient(results.select(budget, method), "test", view)
        for method, view in (rival, ("vessa", MAIN))
    ]
    seeds = both[0].keys() & both[1].keys()
    return [
        {name: float(np.mean([own[seed][name] for seed in seeds])) for name in own[min(seeds)]}
        for own in both
    ]


def gallery(comparison: Comparison, subset: str, seed: int) -> UInt8Array:
    """Slices of test patients: image, each student's labels with their Dice, truth."""
    task = comparison.task
    runs = {name: comparison.folder(task.run(subset, name, seed)) for name in SHOWN}
    configs = {name: load(folder / "config.yaml") for name, folder in runs.items()}
    students = {
        name: predictor(runs[name], config, "last", VIEWS) for name, config in configs.items()
    }
    rows: list[tuple[float, str, AnyArray, dict[str, UInt8Array], UInt8Array]] = []
    for case in find(configs[SHOWN[0]].data).test:
        image = case.read()
        truth = case.read_labels(image, len(task.classes))
        if truth is None:
            continue
        found = {name: student(image) for name, student in students.items()}
        for index, true in enumerate(truth.slices()):
            labels = true.astype(np.uint8)
            if labels.any():
                own = {name: maps[index] for name, maps in found.items()}
                title = f"{case.name}, slice {index}"
                rows.append((_dice(own[SHOWN[-1]], labels), title, image.slice(index), own, labels))
    rows.sort(key=lambda row: row[:2])
    chosen = dict.fromkeys(round(rank * (len(rows) - 1)) for rank in RANKS)
    return pictures.rows([_row(*rows[index][1:]) for index in chosen])


def _row(
    title: str, image: AnyArray, found: dict[str, UInt8Array], truth: UInt8Array
) -> UInt8Array:
    panels = [(title, pictures.grey(image))]
    for name, labels in found.items():
        caption = f"{METHODS[name].title}: {_dice(labels, truth):.2f}"
        panels.append((caption, pictures.overlay(image, labels)))
    panels.append(("truth", pictures.overlay(image, truth)))
    return pictures.panels([(caption, _square(pixels)) for caption, pixels in panels])


def _square(pixels: UInt8Array) -> UInt8Array:
    """With black beside it, so that columns of all rows are below each other."""
    rows, columns = (max(pixels.shape[:2]) - side for side in pixels.shape[:2])
    half = ((rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2), (0, 0))
    return np.pad(pixels, half)


def _dice(found: UInt8Array, truth: UInt8Array) -> float:
    """Mean over the structures that the slice shows."""
    dice = foreground_dice(torch.from_numpy(found), torch.from_numpy(truth))
    assert dice is not None
    return dice


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    rows, columns = math.ceil(count / 2), min(count, 2)
    figure = Figure(figsize=(5.5 * columns, 3.8 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels[count:]:
        axes.set_visible(False)
    return figure, panels[:count]


if __name__ == "__main__":
    main()
