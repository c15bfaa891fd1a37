"""Pictures of Stage 1 for the documentation: curves of the run, and predictions good and bad.

    python benchmarks/stage1_pictures.py curves benchmarks/results/stage1_nano.jsonl
    python benchmarks/stage1_pictures.py gallery --data DATA/acdc

The gallery takes validation slices with all three structures at fixed ranks of the slices' Dice,
the best, the worst and those between, so that nobody chose them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

import acdc
from student_masks import slice_dice
from vessa_client import SegmentationRequest, files, pictures
from vessa_client.console import console
from vessa_server.bank import TemplateBank
from vessa_server.model import checkpoint
from vessa_server.model.presets import preset
from vessa_server.serving.settings import SHIPPED_WEIGHTS

IMAGES = acdc.ROOT / "docs" / "images"
RANKS = (1.0, 0.85, 0.7, 0.5, 0.3, 0.15, 0.0)
WINDOW = 10


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    lines = commands.add_parser("curves")
    lines.add_argument("log", type=Path)
    rows = commands.add_parser("gallery")
    rows.add_argument("--data", type=Path, required=True, help="folder of ACDC")
    rows.add_argument("--weights", type=Path, default=SHIPPED_WEIGHTS / "nano")
    rows.add_argument("--adaptation", type=Path, help="file that `vessa-server adapt` wrote")
    rows.add_argument("--top-k", type=int, default=7)
    arguments = parser.parse_args()
    mpl.use("Agg")
    if arguments.command == "curves":
        curves(arguments.log)
    else:
        gallery(arguments)


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


def gallery(arguments: argparse.Namespace) -> None:
    """Rows: image, best template, prediction, truth; the file's name says the Dice."""
    split = acdc.split(arguments.data, 1)
    model = checkpoint.load(preset("nano"), arguments.weights)
    digest = checkpoint.digest(arguments.weights)
    if arguments.adaptation:
        digest = checkpoint.apply_delta(model, arguments.adaptation, digest)
    with tempfile.TemporaryDirectory() as scratch:
        bank = TemplateBank(Path(scratch))
        acdc.fill(bank, split.labelled)
        engine = acdc.new_engine(model, digest, bank)
        templates = {t.template_id: bank.load(t) for t in bank.snapshot().templates}
        scored = []
        for item in acdc.slices(split.val):
            if len(np.unique(item.labels)) < len(acdc.CLASSES) + 1:
                continue
            request = SegmentationRequest(image=item.image, top_k=arguments.top_k)
            result = engine.segment(request)
            scored.append((slice_dice(result.labels, item.labels), item, result))
    scored.sort(key=lambda entry: entry[0])
    rows = []
    for rank in RANKS:
        dice, item, result = scored[round(rank * (len(scored) - 1))]
        template = templates[result.templates[0].template_id]
        rows.append(
            pictures.panels(
                [
                    (item.name, pictures.overlay(item.image, np.zeros_like(item.labels))),
                    ("template", pictures.overlay(template.image, template.labels)),
                    (f"VESSA, Dice {dice:.2f}", pictures.overlay(item.image, result.labels)),
                    ("truth", pictures.overlay(item.image, item.labels)),
                ]
            )
        )
    name = "gallery_adapted.png" if arguments.adaptation else "gallery.png"
    files.write_picture(IMAGES / name, pictures.rows(rows))
    console.print(f"Picture {IMAGES / name}", highlight=False)


if __name__ == "__main__":
    main()
