"""What do points of a user mend? Dice after each of five points, and with a box of each structure.

    python benchmarks/points.py --data DATA

Of each source three annotated images are templates, and images of its ``test`` are segmented, of
volumes the slice with the largest structures. Then a user points: each time at the middle of the
largest part that is wrong, at what it truly is. Dice is the mean over the structures that an image
shows. *Discs* paint only around the point, in the best of four sizes for each source; *without
VESSA* points are all that is known. The weights of the walk were chosen on the sources that are
marked. Boxes are those of the true structures.

Writes ``benchmarks/results/points.json``.

Axes: C classes, H W space.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.table import Table
from scipy import ndimage

from acdc import RESULTS, circumstances, new_engine
from annotated_sources import Source, choose, dice
from vessa_client import (
    AnyArray,
    Box,
    ClassDefinition,
    Point,
    SegmentationRequest,
    UInt8Array,
    files,
)
from vessa_client.console import console
from vessa_server.api.settings import SHIPPED_WEIGHTS
from vessa_server.bank import TemplateBank
from vessa_server.cases.points import SURE, Marks
from vessa_server.engine import VessaEngine
from vessa_server.model import checkpoint
from vessa_server.model.intensity import unit_range
from vessa_server.model.presets import preset
from vessa_server.policy import answers

FILE = RESULTS / "points.json"
CHOSEN_ON = ("us_breast_lesion", "ct_kidney_tumour", "mri_brain_tumour", "chest_xray")
# Those of thin lines and many small parts have no structure to point at.
OTHERS = (
    "left_atrium",
    "hippocampus",
    "ct_liver",
    "ct_abdomen_organs",
    "ct_brain_haemorrhage",
    "mri_pancreas",
    "mri_gi_tract",
    "us_carotid",
    "us_fetal_head",
    "photo_foot_ulcer",
    "histo_glomeruli",
    "cyto_pap_nucleus",
)
TEMPLATES, POINTS = 3, 5
# Radii of discs, in parts of the image's longer side.
RADII = (4 / 192, 8 / 192, 12 / 192, 20 / 192)
ROWS = POINTED, DISCS, ALONE, BOXED = "points", "discs", "points without VESSA", "boxes"

Answer = Callable[[Sequence[Point]], UInt8Array]


@dataclass(frozen=True)
class Query:
    """An image, its truth, and who segments it."""

    image: AnyArray
    truth_HW: UInt8Array
    names: tuple[str, ...]
    engine: VessaEngine

    def labels(self, points: Sequence[Point] = (), boxes: Sequence[Box] = ()) -> UInt8Array:
        """VESSA's."""
        request = SegmentationRequest(image=self.image, class_names=self.names)
        return self.engine.segment(
            replace(request, points=tuple(points), boxes=tuple(boxes))
        ).labels

    def alone(self, points: Sequence[Point]) -> UInt8Array:
        """Of the points and nothing else."""
        empty = np.full(self.truth_HW.shape, -SURE, dtype=np.float32)
        marks = Marks.of(points, (), self.names, self.truth_HW.shape)
        if marks is None:
            return np.zeros_like(self.truth_HW)
        followed = marks.follow(
            lambda: iter([empty] * len(self.names)), unit_range(self.image).numpy()
        )
        return answers.decide(followed).labels_HW

    def discs(self, radius: float) -> Answer:
        """VESSA's answer, painted around the points."""
        first = self.labels()
        rows, columns = np.ogrid[: first.shape[0], : first.shape[1]]
        reach = (radius * max(first.shape)) ** 2

        def painted(points: Sequence[Point]) -> UInt8Array:
            found = first.copy()
            for point in points:
                near = (rows - point.row) ** 2 + (columns - point.column) ** 2 <= reach
                found[near] = 1 + self.names.index(point.class_name) if point.class_name else 0
            return found

        return painted

    def dice(self, labels_HW: UInt8Array) -> float:
        """Mean over the classes that the image shows."""
        scores = dice(labels_HW, self.truth_HW, len(self.names))
        shown = [score for label, score in enumerate(scores, 1) if (self.truth_HW == label).any()]
        return float(np.mean([score or 0.0 for score in shown]))

    def session(self, answer: Answer) -> list[float]:
        """Dice after 0, 1, 2, ... points; each depends on what the ones before made."""
        points: list[Point] = []
        scores = [self.dice(labels := answer(points))]
        for _ in range(POINTS):
            point = self.next(labels)
            if point is not None:
                points.append(point)
                labels = answer(points)
            scores.append(self.dice(labels))
        return scores

    def next(self, labels_HW: UInt8Array) -> Point | None:
        """The middle of the largest part of one true class that has one other label."""
        largest, place = 0, None
        for true in np.unique(self.truth_HW):
            wrong = (self.truth_HW == true) & (labels_HW != true)
            parts, count = ndimage.label(wrong)
            if count and (sizes := np.bincount(parts.ravel())[1:]).max() > largest:
                largest = int(sizes.max())
                depth = ndimage.distance_transform_edt(np.pad(parts == 1 + int(sizes.argmax()), 1))[
                    1:-1, 1:-1
                ]
                row, column = np.unravel_index(int(depth.argmax()), depth.shape)
                name = self.names[true - 1] if true else ""
                place = Point(row=int(row), column=int(column), class_name=name)
        return place

    def boxes(self) -> list[Box]:
        """Of the true structures."""
        found = []
        for label, name in enumerate(self.names, start=1):
            rows, columns = np.nonzero(self.truth_HW == label)
            if len(rows):
                top, left = int(rows.min()), int(columns.min())
                height, width = int(rows.max()) + 1 - top, int(columns.max()) + 1 - left
                found.append(Box(top=top, left=left, height=height, width=width, class_name=name))
        return found


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--weights", type=Path, default=SHIPPED_WEIGHTS / "nano")
    parser.add_argument("--sources", nargs="+", default=[*CHOSEN_ON, *OTHERS])
    parser.add_argument("--images", type=int, default=8, help="of a source at most")
    parser.add_argument("--seed", type=int, default=0, help="of the templates")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = checkpoint.load(preset("nano"), arguments.weights)
    digest = checkpoint.digest(arguments.weights)
    found: dict[str, dict[str, list[float]]] = {}
    for name in arguments.sources:
        source = Source.of(arguments.data / name)
        with tempfile.TemporaryDirectory() as scratch:
            bank = TemplateBank(Path(scratch))
            names = fill(bank, source, arguments.seed)
            engine = new_engine(model, digest, bank)
            found[name] = measured(queries(source, names, engine, arguments.images))
        for row, scores in found[name].items():
            console.print(name, row, *(f"{score:.3f}" for score in scores), highlight=False)
    facts = circumstances(weights=digest, seed=arguments.seed, images=arguments.images)
    rows = {"chosen_on": CHOSEN_ON, "sources": found}
    files.write_text(FILE, json.dumps({**facts, **rows}, indent=1) + "\n")
    show(found)


def fill(bank: TemplateBank, source: Source, seed: int) -> tuple[str, ...]:
    """Add the annotated slices of some images of ``train``; returns the classes they show."""
    train = [item for item in source.items("train") if item.shown()]
    classes = [ClassDefinition(name=name) for name in source.names]
    chosen = [train[index] for index in choose([i.shown() for i in train], TEMPLATES, seed)]
    for item in chosen:
        for z in item.annotated():
            bank.add(item.image.slice(z), item.labels_ZHW[z], classes)
    shown = frozenset[int]().union(*(item.shown() for item in chosen))
    return tuple(name for label, name in enumerate(source.names, start=1) if label in shown)


def queries(source: Source, names: tuple[str, ...], engine: VessaEngine, count: int) -> list[Query]:
    """Of ``test``: each image, or the slice of a volume where structures are largest."""
    values = np.zeros(256, dtype=np.uint8)
    values[[1 + source.names.index(name) for name in names]] = np.arange(1, 1 + len(names))
    items = [item for item in source.items("test") if values[item.labels_ZHW].any()]
    found = []
    for item in (items[index] for index in files.spread(len(items), count)):
        truth_ZHW = values[item.labels_ZHW]
        z = int((truth_ZHW > 0).sum(axis=(1, 2)).argmax())
        found.append(Query(item.image.slice(z), truth_ZHW[z], names, engine))
    return found


def measured(asked: Sequence[Query]) -> dict[str, list[float]]:
    """Mean Dice of each method after 0, 1, 2, ... points; of boxes without and with them."""
    discs = [mean([q.session(q.discs(radius)) for q in asked]) for radius in RADII]
    return {
        POINTED: mean([query.session(query.labels) for query in asked]),
        DISCS: max(discs, key=lambda scores: scores[-1]),
        ALONE: mean([query.session(query.alone) for query in asked]),
        BOXED: mean([[q.dice(q.labels()), q.dice(q.labels(boxes=q.boxes()))] for q in asked]),
    }


def mean(sessions: Sequence[Sequence[float]]) -> list[float]:
    """Over images."""
    means: list[float] = np.mean(sessions, axis=0).round(4).tolist()
    return means


def show(found: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """As a table, with the mean over the sources on which nothing was chosen."""
    table = Table(
        "source", "VESSA", *(f"{row}, {POINTS}" for row in (POINTED, DISCS, ALONE)), BOXED
    )
    others = [rows for name, rows in found.items() if name not in CHOSEN_ON]
    named = [(name + " *" * (name in CHOSEN_ON), [rows]) for name, rows in found.items()]
    for name, several in [*named, ("mean without *", others)]:
        if several:
            last = [np.mean([rows[row][-1] for rows in several]) for row in ROWS]
            first = np.mean([rows[POINTED][0] for rows in several])
            table.add_row(name, *(f"{value:.3f}" for value in (first, *last)))
    console.print(table)


if __name__ == "__main__":
    main()
