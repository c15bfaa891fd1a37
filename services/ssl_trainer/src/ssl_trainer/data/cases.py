"""Cases on disk: images with and without labels, by split and patient.

ACDC and any folder of the same shape: ``train``, ``val``, ``test`` with images (NIfTI or
pictures) and label files ``*_gt`` beside them.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ssl_trainer.config import ConfigError, DataConfig
from ssl_trainer.data import frame
from vessa_client import AnyArray, files


@dataclass(frozen=True)
class Case:
    """An image file, its patient, and its label file where there is one."""

    image: Path
    labels: Path | None
    patient: str

    def read(self) -> files.ImageFile:
        """Read the image."""
        return files.read(self.image)

    def read_labels(self, image: files.ImageFile, num_classes: int) -> files.ImageFile | None:
        """Read the labels, sliced like the image.

        Raises:
            FileError: they lie elsewhere than the image, or there are more labels than classes.
        """
        if self.labels is None:
            return None
        labels = files.read(self.labels, axis=image.axis, labels=True)
        image.check_same_space(labels)
        highest = int(np.max(labels.pixels))
        if highest > num_classes:
            raise files.FileError(
                f"{self.labels}: label {highest}, expected 0..{num_classes} (data.classes)"
            )
        return labels


@dataclass(frozen=True)
class Split:
    """Cases of a data set. ``labelled`` and ``unlabelled`` share no patient."""

    labelled: tuple[Case, ...]
    unlabelled: tuple[Case, ...]
    val: tuple[Case, ...]
    test: tuple[Case, ...]


def find(config: DataConfig) -> Split:
    """Find the cases of a data set.

    Raises:
        ConfigError: the folder is missing, a labelled patient is not there or has no label,
            or a patient is in more than one split.
    """
    if not (config.root / "train").is_dir():
        raise ConfigError(f"data.root: no folder {config.root / 'train'}")
    train = _cases(config, "train")
    patients = {case.patient for case in train}
    if config.labelled:
        missing = [p for p in config.labelled if p not in patients]
        if missing:
            raise ConfigError(
                f"data.labelled: no patient {missing[0]!r} in {config.root / 'train'}; "
                f"found {', '.join(sorted(patients)[:5])}, ..."
            )
        chosen = set(config.labelled)
    else:
        chosen = {case.patient for case in train if case.labels is not None}
    labelled = tuple(c for c in train if c.patient in chosen and c.labels is not None)
    if not labelled:
        raise ConfigError(
            f"data.labelled: no label file NAME_gt beside an image in {config.root / 'train'}"
        )
    split = Split(
        labelled=labelled,
        unlabelled=tuple(c for c in train if c.patient not in chosen),
        val=_cases(config, "val"),
        test=_cases(config, "test"),
    )
    _check_disjoint(patients, split)
    return split


def _cases(config: DataConfig, split: str) -> tuple[Case, ...]:
    folder = config.root / split
    if not folder.is_dir():
        return ()
    pattern = re.compile(config.patient_pattern)
    cases = []
    for image in files.find_images(folder):
        match = pattern.search(image.name)
        if match is None or not match.groups():
            raise ConfigError(
                f"data.patient_pattern: {config.patient_pattern!r} finds no patient in "
                f"{image.name!r}, expected a group"
            )
        cases.append(Case(image, files.find_label(image), match.group(1)))
    return tuple(cases)


def _check_disjoint(train: set[str], split: Split) -> None:
    groups = {"val": {c.patient for c in split.val}, "test": {c.patient for c in split.test}}
    for name, patients in groups.items():
        others = train.union(*(g for other, g in groups.items() if other != name))
        shared = patients & others
        if shared:
            raise ConfigError(f"data: patient {min(shared)!r} of {name} is in another split too")


@dataclass(frozen=True)
class Slice:
    """A slice in its native frame.

    Attributes:
        key: image file and number.
        image: the slice.
        labels: of an unlabelled slice None, or to watch pseudo-labels with, never to train.
        series: what it is a slice of: the picture, or the first of a patient's volumes with the
            same geometry, which count as one.
        volume: some slices of the series.
    """

    key: str
    image: AnyArray
    labels: npt.NDArray[np.uint8] | None
    series: str
    volume: tuple[AnyArray, ...] = ()

    @cached_property
    def window(self) -> tuple[float, float]:
        """Percentiles of the image: slow to find, and needed whenever the slice is drawn."""
        return frame.window(self.image)

    def unit(self) -> Tensor:
        """The image in [0, 1], (1, H, W)."""
        return frame.to_unit_range(self.image, self.window)


def read_slices(
    cases: tuple[Case, ...], num_classes: int, *, labelled: bool, sample: int = 0
) -> list[Slice]:
    """All slices of the cases, in memory, each with at most ``sample`` slices of its series."""
    slices = []
    for _, group in itertools.groupby(cases, key=lambda case: case.patient):
        own = [(case, case.read()) for case in group]
        volumes: dict[str, tuple[AnyArray, ...]] = {}
        for case, image in own:
            labels = case.read_labels(image, num_classes) if labelled else None
            frames = [other for _, other in own if other is image or other.same_geometry(image)]
            series = frames[0].stem
            if series not in volumes:
                volumes[series] = files.sample(frames, sample)
            for index in range(image.depth):
                label = None if labels is None else labels.slice(index).astype(np.uint8)
                key = f"{image.stem}/{index}"
                slices.append(Slice(key, image.slice(index), label, series, volumes[series]))
    return slices
