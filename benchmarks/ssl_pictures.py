"""Curves of the arms of ``ssl_arms.py``: validation Dice, and the quality of the pseudo-labels.

    python benchmarks/ssl_pictures.py acdc

Reads ``benchmarks/results/ssl_TASK.json`` and writes ``docs/images/ssl_TASK.png``.
"""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from acdc import RESULTS, ROOT
from ssl_cells import TASK_NAMES
from vessa_client.console import console

# As the figure names them; the ablations of an arm are left to the table.
ARMS = {
    "supervised": "labelled slices only",
    "unimatch": "UniMatch V2",
    "mutual": "UniMatch V2 + VESSA, mutual",
}


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=TASK_NAMES)
    arguments = parser.parse_args()
    cells = json.loads((RESULTS / f"ssl_{arguments.task}.json").read_text())["cells"]
    # Trainings of the usual length, which have the same axis.
    cells = [c for c in cells if c["arm"] in ARMS and "steps" not in c["settings"]]
    compared = [c for c in cells if "val/dice" in c["curves"]]
    counts = sorted({c["cases"] for c in compared})
    rows = math.ceil((len(counts) + 1) / 2)
    figure = Figure(figsize=(10, 3.8 * rows), layout="constrained")
    panels = list(figure.subplots(rows, 2, squeeze=False).flat)[: len(counts) + 1]
    for axes, count in zip(panels, counts, strict=False):
        for index, (arm, label) in enumerate(ARMS.items()):
            runs = [c for c in compared if c["arm"] == arm and c["cases"] == count]
            if runs:
                _draw(axes, runs, "val/dice", f"{label}; seeds: {len(runs)}", f"C{index}")
        axes.set_title(f"Validation Dice, {count} labelled")
    watched = [c for c in cells if c["arm"] == "mutual" and c["cases"] == min(counts)]
    if watched:
        _draw(panels[-1], watched, "quality/teacher", "labels of the teacher", "C2")
        _draw(panels[-1], watched, "quality/vessa", "labels of VESSA, given the teacher's", "C4")
    panels[-1].set_title(f"Dice of pseudo-labels, {min(counts)} labelled, mutual")
    for axes in panels:
        axes.set(xlabel="update", ylim=(0, 0.9))
        axes.legend(fontsize="small", loc="lower right")
        axes.grid(alpha=0.3)
    file = ROOT / "docs" / "images" / f"ssl_{arguments.task}.png"
    figure.savefig(file, dpi=110)
    console.print(f"{file}", highlight=False)


def _draw(axes: Axes, runs: list[dict[str, Any]], name: str, label: str, colour: str) -> None:
    """Mean over seeds, and their range."""
    values = np.array([run["curves"][name] for run in runs], dtype=np.float64)
    steps = runs[0]["curves"]["step"]
    axes.plot(steps, values.mean(axis=0), label=label, color=colour)
    axes.fill_between(steps, values.min(axis=0), values.max(axis=0), alpha=0.2, color=colour)


if __name__ == "__main__":
    main()
