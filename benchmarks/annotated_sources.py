"""The sources beside ACDC: their annotated images and classes, templates, and scores.

Axes: H W space, Z slices.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from vessa_client import AnyArray, UInt8Array, files
from vessa_server.training import config
from vessa_server.training.config import SourceConfig

# Sources without `meta.json`: names of the label values 1, 2, ...
OLDER = {
    "hippocampus": ("anterior hippocampus", "posterior hippocampus"),
    "left_atrium": ("left atrium",),
    "chest_xray": ("right lung", "left lung", "heart"),
    "blood_cells": ("nucleus", "cytoplasm"),
    "drive": ("retinal vessels",),
    "isbi_em": ("cell membrane",),
}
# Every label but 0 is the one class.
BINARY = ("drive", "isbi_em")
# Slicing axis of volumes.
AXIS = 2
# Draws of templates until all classes are shown.
DRAWS = 1000
# Dice of each class; None where neither truth nor answer has it.
Scores = list[float | None]


@dataclass(frozen=True)
class Item:
    """A picture, which is one slice, or a volume; its labels are 1, 2, ... for the classes."""

    image: files.ImageFile
    labels_ZHW: UInt8Array

    def shown(self) -> frozenset[int]:
        """Labels of the classes that are in it."""
        return frozenset(int(value) for value in np.unique(self.labels_ZHW) if value)

    def annotated(self, every: int = 1) -> list[int]:
        """Indices of each ``every``-th slice that shows a class."""
        shown: list[int] = np.flatnonzero(self.labels_ZHW.any(axis=(1, 2))).tolist()
        return shown[::every]


@dataclass(frozen=True)
class Source:
    """A data set: its label values, and the classes that they stand for."""

    folder: Path
    values: tuple[int, ...]
    names: tuple[str, ...]

    @staticmethod
    def of(folder: Path) -> Source:
        """From ``meta.json``, or from :data:`OLDER`."""
        note = folder / "meta.json"
        if note.is_file():
            classes = json.loads(note.read_text())["classes"]
            return Source(folder, tuple(int(value) for value in classes), tuple(classes.values()))
        names = OLDER.get(folder.name, ())
        if not names:
            known = ", ".join(OLDER)
            raise files.FileError(f"{folder}: expected `meta.json` in it, or one of {known}")
        return Source(folder, tuple(range(1, 1 + len(names))), names)

    def items(self, part: str) -> list[Item]:
        """The images of ``train`` or ``test``."""
        return [self._item(path) for path in files.find_images(self.folder / part)]

    def subject(self, item: Item) -> str:
        """Whose image it is, by its name."""
        found = _trained_on()[self.folder.name].subject_of(item.image.stem)
        assert found is not None
        return found

    def _item(self, path: Path) -> Item:
        label_file = files.find_label(path)
        if label_file is None:
            raise files.FileError(f"{path}: no label file beside it")
        image, labels = files.read(path, axis=AXIS), files.read(label_file, axis=AXIS, labels=True)
        return Item(image, self.indices(np.stack(list(labels.slices()))))

    def indices(self, values: AnyArray) -> UInt8Array:
        """Label values to 1, 2, ... in the order of the classes; others are background."""
        if self.folder.name in BINARY:
            return np.asarray(values > np.zeros((), values.dtype), dtype=np.uint8)
        labels = np.zeros(values.shape, dtype=np.uint8)
        for index, value in enumerate(self.values, start=1):
            labels[values == value] = index
        return labels


@cache
def _trained_on() -> dict[str, SourceConfig]:
    """Each source as the recipe has it."""
    return {source.folder.split("/")[0]: source for source in config.load("nano").data.sources}


def renumber(labels: UInt8Array, own: Sequence[str], names: Sequence[str]) -> UInt8Array:
    """Labels 1, 2, ... of the classes ``own``, which may be fewer, to those of ``names``."""
    table = np.array([0, *(1 + names.index(name) for name in own)], dtype=np.uint8)
    found: UInt8Array = table[labels]
    return found


def choose(shown: Sequence[frozenset[int]], count: int, seed: int) -> list[int]:
    """Indices of ``count`` images at random, drawn until they show all classes that any shows.

    Where no draw does, those of the draw that shows most classes.
    """
    rng = np.random.default_rng(seed)
    wanted = frozenset[int]().union(*shown)
    draws: list[list[int]] = []
    covered: list[int] = []
    while len(draws) < DRAWS and len(wanted) not in covered:
        draws.append([int(i) for i in rng.choice(len(shown), size=count, replace=False)])
        covered.append(len(frozenset[int]().union(*(shown[index] for index in draws[-1]))))
    return draws[int(np.argmax(covered))]


def dice(predicted: UInt8Array, truth: UInt8Array, classes: int) -> Scores:
    """Dice of each class; None for one that neither has, 0 for one that only one of them has."""
    scores: Scores = []
    for label in range(1, classes + 1):
        p, t = predicted == label, truth == label
        both = int(p.sum()) + int(t.sum())
        scores.append(round(2 * int((p & t).sum()) / both, 4) if both else None)
    return scores


def mean_of_classes(scores: Scores) -> float | None:
    """Over the classes that the truth or the answer has."""
    counted = [value for value in scores if value is not None]
    return float(np.mean(counted)) if counted else None
