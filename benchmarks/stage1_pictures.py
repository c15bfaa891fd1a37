"""Curves of a Stage 1 run for the documentation.

python benchmarks/stage1_pictures.py benchmarks/results/stage1_nano.jsonl
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

import acdc
from vessa_client.console import console

IMAGES = acdc.ROOT / "docs" / "images"
WINDOW = 10


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log", type=Path, help="log.jsonl of the run")
    mpl.use("Agg")
    curves(parser.parse_args().log)


def curves(log: Path) -> None:
    """Training and held-out Dice, and the parts of the loss."""
    steps = [json.loads(line) for line in log.read_text().splitlines()]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name, label in (
        ("dice/one_shot", "one-shot"),
        ("dice/refined", "with a student mask"),
        ("dice/student", "the student mask itself"),
        ("dice/prior", "matching prior alone"),
    ):
        _line(left, steps, name, label)
    left.set(xlabel="update", ylabel="Dice of the episodes", ylim=(0, 1))
    for name in ("one_shot/mask", "refined/mask", "prior", "language"):
        _line(right, steps, f"loss/{name}", name)
    right.set(xlabel="update", ylabel="loss (weighted)", yscale="log")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    IMAGES.mkdir(exist_ok=True)
    figure.savefig(IMAGES / "stage1_curves.png", dpi=110)
    console.print(f"Picture {IMAGES / 'stage1_curves.png'}", highlight=False)


def _line(axes: Axes, steps: list[dict[str, float]], name: str, label: str) -> None:
    found = [(s["step"], s[name]) for s in steps if name in s]
    at, values = (np.array(v) for v in zip(*found, strict=True))
    smooth = np.convolve(values, np.ones(WINDOW) / WINDOW, mode="valid")
    (drawn,) = axes.plot(at[WINDOW - 1 :], smooth, label=label)
    held_out = [(s["step"], s[f"val/{name}"]) for s in steps if f"val/{name}" in s]
    if held_out:
        axes.plot(*zip(*held_out, strict=True), ".", color=drawn.get_color(), markersize=5)


if __name__ == "__main__":
    main()
