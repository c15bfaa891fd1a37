"""Curves of the arms of ``ssl_arms.py``: validation Dice, and the quality of the pseudo-labels.

    python benchmarks/ssl_pictures.py acdc --cases 1

Reads ``benchmarks/results/ssl_TASK.json`` and writes ``docs/images/ssl_TASK_CASES.png``.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from acdc import RESULTS, ROOT
from vessa_client.console import console

# As the figure names them; the ablations of an arm are left to the table.
ARMS = {
    "supervised": "labelled slices only",
    "unimatch": "UniMatch V2",
    "one-way": "UniMatch V2 + VESSA, one-way",
    "mutual": "UniMatch V2 + VESSA, mutual",
}


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task")
    parser.add_argument("--cases", type=int, default=1)
    arguments = parser.parse_args()
    cells = json.loads((RESULTS / f"ssl_{arguments.task}.json").read_text())["cells"]
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for arm, label in ARMS.items():
        runs = [c for c in cells if c["arm"] == arm and c["cases"] == arguments.cases]
        if runs:
            _draw(left, runs, "val/dice", f"{label} ({len(runs)} seeds)")
    # Where all slices are asked from the first epoch on, the quality is that of all of them.
    watched = [c for c in cells if c["arm"] == "at-once" and c["cases"] == arguments.cases]
    if watched:
        _draw(right, watched, "quality/teacher", "labels of the teacher")
        _draw(right, watched, "quality/vessa", "labels of VESSA, given the teacher's")
    left.set(title=f"Validation Dice, {arguments.cases} labelled", xlabel="update", ylim=(0, 0.9))
    right.set(title="Dice of pseudo-labels on unlabelled slices (mutual, seed 0)", xlabel="update")
    right.set(ylim=(0, 0.9))
    for axes in (left, right):
        axes.legend(fontsize="small", loc="lower right")
        axes.grid(alpha=0.3)
    file = ROOT / "docs" / "images" / f"ssl_{arguments.task}_{arguments.cases}.png"
    figure.savefig(file, dpi=110)
    console.print(f"{file}", highlight=False)


def _draw(axes: Axes, runs: list[dict[str, Any]], name: str, label: str) -> None:
    """Mean over seeds, and their range."""
    values = np.array([run["curves"][name] for run in runs], dtype=np.float64)
    steps = runs[0]["curves"]["step"]
    (line,) = axes.plot(steps, values.mean(axis=0), label=label)
    axes.fill_between(
        steps, values.min(axis=0), values.max(axis=0), alpha=0.2, color=line.get_color()
    )


if __name__ == "__main__":
    main()
