"""Curves of the arms of ``ssl_arms.py``: validation Dice, and the quality of the pseudo-labels.

    python benchmarks/ssl_pictures.py acdc
    python benchmarks/ssl_pictures.py acdc --by-patient
    python benchmarks/ssl_pictures.py acdc acdc_patient038 acdc_patient050

One task: a panel for each number of labelled cases, ``docs/images/ssl_TASK.png``; by patient, what
VESSA changes for each of them, ``docs/images/ssl_TASK_by_patient.png``. Several tasks, which
differ in who is annotated: a panel for each, ``docs/images/ssl_patients.png``. Reads
``benchmarks/results/ssl_TASK.json``.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from acdc import ROOT
from ssl_cells import TASK_NAMES, Facts, read_task
from ssl_tables import patient, usual
from vessa_client.console import console

# As the figure names them; the ablations of an arm are left to the table.
ARMS = {
    "supervised": "labelled slices only",
    "unimatch": "UniMatch V2",
    "mutual": "UniMatch V2 + VESSA, mutual",
    "mutual-alone": "the same, each slice alone, labels not pooled",
    "mutual-sixteen": "the same, sixteen slices of a volume",
    "mutual-sixteen-unpooled": "sixteen slices, labels not pooled",
}


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", choices=TASK_NAMES, nargs="+", metavar="task")
    parser.add_argument("--by-patient", action="store_true", help="Dice of each patient, one task")
    arguments = parser.parse_args()
    tasks = arguments.tasks
    if arguments.by_patient and len(tasks) > 1:
        parser.error("--by-patient: one task at a time")
    if arguments.by_patient:
        file, figure = f"ssl_{tasks[0]}_by_patient.png", by_patient(_cells(tasks[0]))
    elif len(tasks) == 1:
        file, figure = f"ssl_{tasks[0]}.png", numbers_of_cases(_cells(tasks[0]))
    else:
        file, figure = "ssl_patients.png", annotated_patients(tasks)
    path = ROOT / "docs" / "images" / file
    figure.savefig(path, dpi=110)
    console.print(f"{path}", highlight=False)


def numbers_of_cases(cells: list[Facts]) -> Figure:
    """A panel for each number of labelled cases, and one for the pseudo-labels with fewest."""
    counts = sorted({c["cases"] for c in cells if "val/dice" in c["curves"]})
    figure, panels = _panels(len(counts) + 1)
    for axes, count in zip(panels, counts, strict=False):
        _arms(axes, [c for c in cells if c["cases"] == count])
        axes.set_title(f"Validation Dice, {count} labelled")
    watched = [c for c in cells if c["arm"] == "mutual" and c["cases"] == min(counts)]
    if watched:
        _draw(panels[-1], watched, "quality/teacher", "labels of the teacher", "C2")
        _draw(panels[-1], watched, "quality/vessa", "labels of VESSA, given the teacher's", "C4")
    panels[-1].set_title(f"Dice of pseudo-labels, {min(counts)} labelled, mutual")
    return _finished(figure, panels)


def annotated_patients(tasks: list[str]) -> Figure:
    """A panel for each task, with one labelled case: which one differs."""
    figure, panels = _panels(len(tasks))
    for axes, task in zip(panels, tasks, strict=True):
        _arms(axes, [c for c in _cells(task) if c["cases"] == 1])
        axes.set_title(f"Validation Dice, {read_task(task)['labelled'][1][0]} labelled")
    return _finished(figure, panels)


def by_patient(cells: list[Facts]) -> Figure:
    """A row for each number of labelled cases: Dice without and with VESSA of each patient."""
    counts = sorted({c["cases"] for c in cells if c["arm"] == "mutual"})
    figure = Figure(figsize=(10, 2.6 * len(counts)), layout="constrained")
    for axes, count in zip(
        figure.subplots(len(counts), 1, squeeze=False).flat, counts, strict=True
    ):
        without, with_vessa = (
            _patients([c for c in cells if c["cases"] == count and c["arm"] == arm])
            for arm in ("unimatch", "mutual")
        )
        ordered = sorted(without, key=lambda name: (name[0] != "test", name[1]))
        for x, name in enumerate(ordered):
            before, after = without[name], with_vessa[name]
            better = after >= before
            axes.plot([x, x], [before, after], color="C2" if better else "C3", linewidth=3)
        axes.plot([without[n] for n in ordered], "o", color="C1", label=ARMS["unimatch"])
        axes.plot([with_vessa[n] for n in ordered], "D", color="C0", label=ARMS["mutual"])
        axes.axvline(sum(name[0] == "test" for name in ordered) - 0.5, color="grey")
        labels = [f"{number}\n{split}" for split, number in ordered]
        axes.set_xticks(range(len(ordered)), labels, fontsize="x-small")
        axes.set(title=f"Dice of each patient, {count} labelled", ylim=(0.2, 1))
        axes.legend(fontsize="small", loc="lower left")
        axes.grid(alpha=0.3)
    return figure


def _patients(cells: list[Facts]) -> dict[tuple[str, str], float]:
    """Mean Dice of each patient of a split over structures, frames and seeds."""
    dice: dict[tuple[str, str], list[float]] = {}
    for cell in cells:
        for split in ("test", "val"):
            for case in cell[split]:
                dice.setdefault((split, patient(case)), []).extend(case["dice"])
    return {key: float(np.mean(values)) for key, values in dice.items()}


def _cells(task: str) -> list[Facts]:
    """Trainings of the usual length of the arms that are drawn."""
    return [c for c in usual(task) if c["arm"] in ARMS]


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    rows = math.ceil(count / 2)
    figure = Figure(figsize=(10, 3.8 * rows), layout="constrained")
    panels = list(figure.subplots(rows, 2, squeeze=False).flat)
    for axes in panels[count:]:
        axes.set_visible(False)
    return figure, panels[:count]


def _finished(figure: Figure, panels: list[Axes]) -> Figure:
    for axes in panels:
        axes.set(xlabel="update", ylim=(0, 0.9))
        axes.legend(fontsize="small", loc="lower right")
        axes.grid(alpha=0.3)
    return figure


def _arms(axes: Axes, cells: list[Facts]) -> None:
    """Validation Dice of each arm."""
    for index, (arm, label) in enumerate(ARMS.items()):
        runs = [c for c in cells if c["arm"] == arm and "val/dice" in c["curves"]]
        if runs:
            _draw(axes, runs, "val/dice", f"{label}; seeds: {len(runs)}", f"C{index}")


def _draw(axes: Axes, runs: list[Facts], name: str, label: str, colour: str) -> None:
    """Mean over seeds, and their range."""
    values = np.array([run["curves"][name] for run in runs], dtype=np.float64)
    steps = runs[0]["curves"]["step"]
    axes.plot(steps, values.mean(axis=0), label=label, color=colour)
    axes.fill_between(steps, values.min(axis=0), values.max(axis=0), alpha=0.2, color=colour)


if __name__ == "__main__":
    main()
