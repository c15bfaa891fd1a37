"""What the rules of the policy are measured on: images to score and templates, none for testing.

Axes: H W space, Z slices.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import acdc
import heart
from annotated_sources import Item, Source, choose
from one_shot_sources import EVERY, TEMPLATES
from policy_tables import ACDC
from ssl_trainer.config import DataConfig
from ssl_trainer.data.cases import Case, find
from vessa_client import AnyArray, ClassDefinition, SegmentationRequest, UInt8Array, files

# Most slices of a volume that are scored, and templates of a bank of many pictures.
SLICES, MANY = 12, 16

Template = tuple[AnyArray, UInt8Array]


@dataclass(frozen=True)
class Query:
    """An image to score: a picture, which is one slice, or some slices of a volume.

    Attributes:
        name: of its file.
        subject: whose it is.
        slices: at most :data:`SLICES`.
        labels_ZHW: their truth, 1, 2, ... for the classes that are asked.
        volume: the slices that a request names as its volume.
    """

    name: str
    subject: str
    slices: tuple[AnyArray, ...]
    labels_ZHW: UInt8Array
    volume: tuple[AnyArray, ...]

    def turned(self) -> Query:
        """The same, turned by a quarter."""
        return replace(
            self,
            slices=tuple(_turned(slice_) for slice_ in self.slices),
            labels_ZHW=np.stack([_turned(labels) for labels in self.labels_ZHW]),
            volume=tuple(_turned(slice_) for slice_ in self.volume),
        )

    def request(self, z: int, names: tuple[str, ...]) -> SegmentationRequest:
        """To segment a slice into the classes of these names."""
        return SegmentationRequest(image=self.slices[z], volume=self.volume, class_names=names)


def _turned(pixels: AnyArray) -> AnyArray:
    return np.ascontiguousarray(np.rot90(pixels))


@dataclass(frozen=True)
class Task:
    """A source with the templates of one seed.

    Attributes:
        source: its name.
        seed: of the templates.
        classes: of the source.
        templates: images and their labels, 1, 2, ... for the classes.
        more: further ones, of pictures: with them there are more than a request uses.
        asked: names of the classes that the templates show.
        queries: images to score, one of each subject first.
    """

    source: str
    seed: int
    classes: tuple[ClassDefinition, ...]
    templates: tuple[Template, ...]
    more: tuple[Template, ...]
    asked: tuple[str, ...]
    queries: tuple[Query, ...]


def tasks(folders: Mapping[str, Path], seeds: Sequence[int], images: int) -> list[Task]:
    """All sources with the templates of all seeds; those without another subject are left out."""
    found = []
    for name, folder in folders.items():
        for seed in seeds:
            draw = acdc_task if name == ACDC else source_task
            found.append(draw(folder, seed, images))
    return [task for task in found if task.queries]


def acdc_task(folder: Path, seed: int, images: int) -> Task:
    """Validation patients; the seeds have the patients of the 3-case split as templates in turn."""
    labelled = acdc.LABELLED[3]
    patient = labelled[seed % len(labelled)]
    split = find(DataConfig(root=folder, classes=heart.NAMES, labelled=(patient,)))

    def items(cases: Sequence[Case]) -> list[tuple[str, Item]]:
        found = []
        for case in cases:
            image = case.read()
            truth = case.read_labels(image, len(heart.CLASSES))
            assert truth is not None
            labels = np.stack([labels.astype(np.uint8) for labels in truth.slices()])
            found.append((case.patient, Item(image, labels)))
        return found

    templates = [item for _, item in items(split.labelled)]
    return new_task(ACDC, seed, heart.CLASSES, (templates, []), items(split.val), images)


def source_task(folder: Path, seed: int, images: int) -> Task:
    """Annotated images of ``train``: three are templates; those of other subjects are scored."""
    source = Source.of(folder)
    train = [(source.subject(item), item) for item in source.items("train") if item.shown()]
    drawn = [train[i] for i in choose([item.shown() for _, item in train], TEMPLATES, seed)]
    more = further_templates(train, drawn, seed)
    seen = {subject for subject, _ in (*drawn, *more)}
    others = [(subject, item) for subject, item in train if subject not in seen]
    classes = tuple(ClassDefinition(name=name, description="") for name in source.names)
    templates = ([item for _, item in drawn], [item for _, item in more])
    return new_task(folder.name, seed, classes, templates, others, images)


def further_templates(
    train: Sequence[tuple[str, Item]], drawn: Sequence[tuple[str, Item]], seed: int
) -> list[tuple[str, Item]]:
    """Other pictures of the templates' subjects, then those of more, up to a third of all."""
    if drawn[0][1].image.axis is not None:
        return []
    own = {subject for subject, _ in drawn}
    strangers = sorted({subject for subject, _ in train} - own)
    strangers.sort(key=lambda subject: zlib.crc32(f"{seed} {subject}".encode()))
    subjects = [*sorted(own), *strangers][: max(len(own), (len(own) + len(strangers)) // 3)]
    names = {item.image.stem for _, item in drawn}
    others = [pair for pair in train if pair[1].image.stem not in names]
    found = [pair for subject in subjects for pair in others if pair[0] == subject]
    return found[: MANY - len(drawn)]


def new_task(
    source: str,
    seed: int,
    classes: tuple[ClassDefinition, ...],
    templates: tuple[Sequence[Item], Sequence[Item]],
    others: Sequence[tuple[str, Item]],
    images: int,
) -> Task:
    """A task of at most ``images`` queries that show a class that the templates show."""
    every = EVERY.get(source, 1)
    slices, more = (
        tuple((i.image.slice(z), i.labels_ZHW[z]) for i in items for z in i.annotated(every))
        for items in templates
    )
    shown = sorted({int(value) for _, labels in slices for value in np.unique(labels) if value})
    number = np.zeros(1 + len(classes), dtype=np.uint8)
    number[shown] = np.arange(1, 1 + len(shown))
    queries: list[Query] = []
    for subject, item in one_of_each_first(others):
        if len(queries) == images:
            break
        chosen = files.spread(item.image.depth, SLICES)
        labels_ZHW = number[item.labels_ZHW[chosen]]
        if labels_ZHW.any():
            pixels = tuple(item.image.slice(z) for z in chosen)
            query = Query(item.image.stem, subject, pixels, labels_ZHW, item.image.sample())
            queries.append(query)
    asked = tuple(classes[value - 1].name for value in shown)
    return Task(source, seed, classes, slices, more, asked, tuple(queries))


def one_of_each_first(others: Sequence[tuple[str, Item]]) -> list[tuple[str, Item]]:
    """Subjects and images in a random order: one of each subject, then the second ones.

    The order of two images does not depend on what else is there, so that seeds share images.
    """
    shuffled = sorted(others, key=lambda pair: zlib.crc32(pair[1].image.stem.encode()))
    count = Counter[str]()
    ranked = []
    for subject, item in shuffled:
        ranked.append((count[subject], subject, item))
        count[subject] += 1
    return [(subject, item) for _, subject, item in sorted(ranked, key=lambda entry: entry[0])]
