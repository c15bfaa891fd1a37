"""What every export starts from: images, each with its label file if it has one, and classes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vessa_client import annotated, files, records, results
from vessa_client._types import ClassDefinition
from vessa_client.annotated import LabelScheme

Pairs = Sequence[tuple[Path, Path | None]]


@dataclass(frozen=True)
class Case:
    """An image, its label file, and a name that no other case has and every file system takes."""

    name: str
    image: Path
    labels: Path | None


@dataclass(frozen=True)
class Cases:
    """Those of a data set.

    Attributes:
        scheme: classes, and their values in the label files.
        labelled: with a label file.
        others: without.
        unsure: how many of the others have a pseudo-label that is not sure enough.
    """

    scheme: LabelScheme
    labelled: tuple[Case, ...]
    others: tuple[Case, ...]
    unsure: int = 0


def find(
    images: Path,
    labels: Path | None,
    suffix: str,
    scheme: LabelScheme | None,
    least_iou: float | None,
) -> Cases:
    """Cases of a folder of annotated images, or of one that ``vessa label`` labelled.

    Args:
        images: an image, or a folder of them.
        labels: a label file or a folder of them; beside the images by default.
        suffix: what names of label files have after the image's.
        scheme: classes; a folder of pseudo-labels knows them itself.
        least_iou: pseudo-labels with a structure of a lower predicted IoU count as none, unless
            they were edited since.

    Raises:
        FileError: there are no labels, or nothing names them; says which option does.
    """
    unsure = 0
    if labels is not None and (labels / records.FILE).is_file():
        known = records.Records.read(labels)
        scheme = _scheme(known, scheme)
        pairs, unsure = _pseudo_labels(images, known, least_iou)
    elif least_iou is not None:
        raise files.FileError(
            f"--least-iou: no {records.FILE} in {labels or images}; give as LABELS the folder that "
            "vessa label wrote"
        )
    else:
        pairs = annotated.find(images, labels, suffix)
    if scheme is None:
        raise files.FileError(
            "--class: missing; name the labels: -c NAME for 1, -c NAME for 2, or --label-names FILE"
        )
    _check_own_labels(pairs)
    names = _names([image for image, _ in pairs], images)
    found = [Case(name, *pair) for name, pair in zip(names, pairs, strict=True)]
    labelled = tuple(case for case in found if case.labels is not None)
    others = tuple(case for case in found if case.labels is None)
    return Cases(scheme, labelled, others, unsure)


def read(
    case: Case, *, axis: int | None = None, frame: int | None = None
) -> tuple[files.ImageFile, files.ImageFile | None]:
    """The image of a case and its label file.

    Raises:
        FileError: one cannot be read, they lie in different places, or the image has values that
            are no numbers.
    """
    annotation = None
    if case.labels is None:
        source = files.read(case.image, axis=axis, channel=frame)
    else:
        source, annotation = annotated.read_pair(case.image, case.labels, axis=axis, frame=frame)
    if source.pixels.dtype.kind == "f" and not np.isfinite(source.pixels).all():
        raise files.FileError(f"{case.image}: has NaN or infinite values, expected numbers")
    return source, annotation


def _pseudo_labels(
    folder: Path, known: records.Records, least_iou: float | None
) -> tuple[Pairs, int]:
    """Images of a folder with their pseudo-labels, and how many of these are not sure enough."""
    pairs: list[tuple[Path, Path | None]] = []
    unsure: list[float] = []
    for image in results.inputs(folder, known.folder):
        target = results.label_map(image, folder, known.folder)
        record = known.entries.get(results.name_below(image, folder))
        found = target if target.is_file() else None
        if found and least_iou is not None and not _edited(found, record):
            confidence = record.confidence if record else 0.0
            if confidence < least_iou:
                unsure.append(confidence)
                found = None
        pairs.append((image, found))
    if not any(found for _, found in pairs):
        if unsure:
            raise files.FileError(
                f"--least-iou: {least_iou} leaves none of {len(unsure)} pseudo-labels, the surest "
                f"has {max(unsure):.3f}"
            )
        raise files.FileError(
            f"{known.folder}: no pseudo-label of any of {len(pairs)} images in {folder}; give the "
            "folder that was labelled"
        )
    return pairs, len(unsure)


def _edited(file: Path, record: records.Record | None) -> bool:
    return record is not None and records.digest(file) != record.digest


def _scheme(known: records.Records, asked: LabelScheme | None) -> LabelScheme:
    """Classes of a folder of pseudo-labels: all, or those that are asked for."""
    names: dict[int, str] = {}
    for image, record in known.entries.items():
        for structure in record.structures:
            value, name = int(structure["label"]), str(structure["class"])
            if names.setdefault(value, name) != name:
                raise files.FileError(
                    f"{known.folder / records.FILE}: label {value} is {names[value]!r}, of {image} "
                    f"{name!r}; label the folder anew with --overwrite"
                )
    if asked is None:
        values = tuple(sorted(names))
        classes = tuple(ClassDefinition(name=names[value]) for value in values)
        return LabelScheme(classes, values)
    if any(names.get(v) != n for v, n in zip(asked.values, asked.names, strict=True)):
        raise files.FileError(
            f"--class: {_listed(dict(zip(asked.values, asked.names, strict=True)))}, but the "
            f"pseudo-labels of {known.folder} are {_listed(names)}; leave --class out"
        )
    return asked


def _check_own_labels(pairs: Pairs) -> None:
    """No label file is taken for those of two images.

    Raises:
        FileError: one is.
    """
    owners: dict[Path, Path] = {}
    for image, labels in pairs:
        if labels is not None and owners.setdefault(labels, image) != image:
            raise files.FileError(
                f"{labels}: is the label file of both {owners[labels]} and {image}; lay label "
                "files beside their images"
            )


def _names(images: Sequence[Path], folder: Path) -> list[str]:
    """Of cases: where each lies below the folder, in letters, digits, ``_`` and ``-``."""
    taken: Counter[str] = Counter()
    names = []
    for image in images:
        place = files.place_below(image, folder) if folder.is_dir() else Path()
        parts = (*place.parts, files.own_stem(image))
        plain = re.sub(r"[^\w-]+", "_", "_".join(parts)).strip("_-") or "case"
        name, number = plain, 1
        while taken[name.casefold()]:
            number += 1
            name = f"{plain}_{number}"
        taken[name.casefold()] += 1
        names.append(name)
    return names


def _listed(names: Mapping[int, str]) -> str:
    return ", ".join(f"{value}={name}" for value, name in sorted(names.items()))
