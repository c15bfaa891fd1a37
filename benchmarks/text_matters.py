"""Does the text decide? Two structures in one template mask, the text says which one is asked.

    python benchmarks/text_matters.py --data DATA

Matching and memory see the union of both structures, the overlay shows both, each in its own
colour. Dice with the right text, with the texts of the two structures swapped, and without the
<SEG> token. Queries are held-out subjects of the data sets that Stage 1 trained on.
Writes ``benchmarks/results/text_matters.json``.
"""

from __future__ import annotations

import argparse
import json
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from ablations import without
from acdc import RESULTS, circumstances
from vessa_client import files
from vessa_client.console import console
from vessa_server.api.settings import SHIPPED_WEIGHTS
from vessa_server.model import checkpoint, preprocess, prompts
from vessa_server.model.preprocess import Canvas
from vessa_server.model.presets import preset
from vessa_server.model.vessa import Conditioned, ImageFeatures, Vessa
from vessa_server.training.config import SourceConfig, load
from vessa_server.training.losses import hard_dice
from vessa_server.training.sources import read
from vessa_server.training.tasks import ClassText, PackedSlice

TASKS = {"chest_xray": (1, 2), "blood_cells": (1, 2), "hippocampus": (1, 2)}
ARMS = ("right text", "swapped text", "no <SEG>")


@dataclass(frozen=True)
class Prepared:
    """An image on the canvas: features, labels, and the tinted view of it as a template."""

    features: ImageFeatures
    labels_1HW: Tensor
    tinted_13HW: Tensor


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--weights", type=Path, default=SHIPPED_WEIGHTS / "nano")
    parser.add_argument("--queries", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    model = checkpoint.load(preset("nano"), arguments.weights)
    results = {}
    for source in load("nano").data.sources:
        name = source.folder.split("/", maxsplit=1)[0]
        if name in TASKS:
            # One axis: queries and templates are then the same view of a volume.
            results[name] = run(model, replace(source, axes=(2,)), arguments)
    table = Table("", *ARMS, title="Dice; both structures in the template's mask")
    for name, found in results.items():
        table.add_row(name, *(f"{found[arm]:.3f}" for arm in ARMS))
    console.print(table)
    facts = circumstances(
        weights=checkpoint.digest(arguments.weights),
        queries=arguments.queries,
        seed=arguments.seed,
    )
    file = RESULTS / "text_matters.json"
    files.write_text(file, json.dumps({**facts, "results": results}, indent=2) + "\n")
    console.print(f"Results {file}", highlight=False)


@torch.inference_mode()
def run(model: Vessa, source: SourceConfig, arguments: argparse.Namespace) -> dict[str, float]:
    """Mean Dice of both structures over the queries."""
    rng = np.random.default_rng(arguments.seed)
    packed, slices = read(source, arguments.data)
    texts = list(packed.texts)
    held_out = [item for item in slices if item.held_out]
    annotated = [item for item in slices if not item.held_out]
    asked = TASKS[source.folder.split("/", maxsplit=1)[0]]
    scores: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for _ in range(arguments.queries):
        one, other = (_prepare(model, _draw(s, asked, rng)) for s in (held_out, annotated))
        shown = torch.isin(other.labels_1HW, torch.tensor(asked)).float()[:, None]
        for value in asked:
            truth = (one.labels_1HW == value).float()[:, None]
            swapped = asked[1] if value == asked[0] else asked[0]
            for arm in ARMS:
                words = _prompt(texts, swapped if arm == "swapped text" else value)
                with without(model, "vlm") if arm == "no <SEG>" else nullcontext():
                    logits = _segment(model, one, other, shown, words)
                size = truth.shape[-2:]
                full = torch.nn.functional.interpolate(logits, size=size, mode="bilinear")
                scores[arm].append(float(hard_dice(full, truth)))
    return {arm: float(np.mean(values)) for arm, values in scores.items()}


def _draw(
    slices: list[PackedSlice], asked: tuple[int, ...], rng: np.random.Generator
) -> PackedSlice:
    """An image that shows all that is asked."""
    showing = [item for item in slices if set(asked) <= set(np.unique(item.labels))]
    return showing[int(rng.integers(len(showing)))]


def _prepare(model: Vessa, item: PackedSlice) -> Prepared:
    height, width = item.labels.shape
    canvas = Canvas(height, width, model.config.image_size)
    unit = canvas.place(preprocess.to_unit_range(item.image))[None]
    labels = canvas.place(torch.from_numpy(item.labels)[None].float(), mode="nearest")
    view = preprocess.vlm_view(unit, model.config.vlm.image_size)
    features = model.encode_image(preprocess.normalise(unit, model.config), view)
    return Prepared(features, labels, preprocess.overlay(unit, labels))


def _prompt(texts: list[ClassText], value: int) -> str:
    text = texts[value - 1]
    return prompts.prompt(text.name, text.description, preprocess.tint_of(value).name)


def _segment(
    model: Vessa, query: Prepared, template: Prepared, shown: Tensor, words: str
) -> Tensor:
    first = torch.zeros(1, dtype=torch.long)
    ids, mask = model.reasoner.tokenize([words])
    view = preprocess.vlm_view(template.tinted_13HW, model.config.vlm.image_size)
    prefix = model.reasoner.prefix(ids, mask, model.reasoner.see(view))
    reasoned = model.reason(prefix, query.features, first)
    known = model.encode_template(template.features, shown)
    matched = model.match(query.features, first, known)
    conditioned = Conditioned(
        top_PDHW=model.remember(query.features, first, known),
        prior_P1HW=matched.prior_P1HW,
        points_PN2=matched.points_PN2,
        labels_PN=matched.labels_PN,
        seg_P1D=reasoned.seg_P1D,
        seg_map_P1HW=reasoned.seg_map_P1HW,
    )
    return model.decode(query.features, first, conditioned, None, None).class_logits()


if __name__ == "__main__":
    main()
