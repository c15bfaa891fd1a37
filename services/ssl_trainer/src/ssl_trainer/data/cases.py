"""Cases on disk: images with and without labels, by split and patient.

ACDC and any folder of the same shape: ``train``, ``val``, ``test`` with images (NIfTI or
pictures) and label files ``*_gt`` beside them.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
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
    """An image file, its patient, and its label file where there is one.

    Attributes:
        image, labels: the files.
        patient: whose they are.
        axis: along which a volume is sliced; None for the one along which it was acquired.
        window: intensities that become black and white; None for percentiles of each slice.
    """

    image: Path
    labels: Path | None
    patient: str
    axis: int | None = None
    window: frame.Window | None = None

    def read(self) -> files.ImageFile:
        """Read the image."""
        return files.read(self.image, axis=self.axis)

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

    def read_as(self, config: DataConfig) -> Split:
        """With the slicing axis and the window of ``config``."""

        def changed(cases: tuple[Case, ...]) -> tuple[Case, ...]:
            return tuple(replace(c, axis=config.axis, window=config.window) for c in cases)

        return Split(*map(changed, (self.labelled, self.unlabelled, self.val, self.test)))


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
    return split.read_as(config)


def common_axis(images: Iterable[Path]) -> int | None:
    """Axis along which most of the volumes were acquired; None where there are pictures only.

    Raises:
        FileError: one of them cannot be read.
    """
    axes = Counter(axis for axis in map(files.acquired_axis, images) if axis is not None)
    return max(sorted(axes), key=axes.__getitem__) if axes else None


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
        windowed: whether ``image`` and ``volume`` have been through the window of the run.
    """

    key: str
    image: AnyArray
    labels: npt.NDArray[np.uint8] | None
    series: str
    volume: tuple[AnyArray, ...] = ()
    windowed: bool = False
    _reduced: dict[int, Tensor] = field(default_factory=dict, repr=False)

    @cached_property
    def limits(self) -> frame.Window:
        """What is black and white. Percentiles are slow to find, and needed at every draw."""
        return frame.BYTES if self.windowed else frame.window(self.image)

    def unit(self, size: int) -> Tensor:
        """The image in [0, 1], (1, H, W), reduced where it is much larger than the canvas."""
        if not frame.is_large(self.image.shape, size):
            return frame.to_unit_range(self.image, self.limits)
        if size not in self._reduced:
            unit = frame.to_unit_range(self.image, self.limits)
            self._reduced[size] = frame.reduced(unit, size).half()
        return self._reduced[size].float()


def read_slices(
    cases: tuple[Case, ...], num_classes: int, *, labelled: bool, sample: int = 0
) -> list[Slice]:
    """All slices of the cases, in memory, each with at most ``sample`` slices of its series.

    They have been through the window of their case, where it has one.
    """
    slices = []
    for _, group in itertools.groupby(cases, key=lambda case: case.patient):
        own = [(case, case.read()) for case in group]
        volumes: dict[str, tuple[AnyArray, ...]] = {}
        for case, image in own:
            labels = case.read_labels(image, num_classes) if labelled else None
            frames = [other for _, other in own if other is image or other.same_geometry(image)]
            series = frames[0].stem
            if series not in volumes:
                shown = files.sample(frames, sample)
                volumes[series] = tuple(frame.windowed(s, case.window) for s in shown)
            for index in range(image.depth):
                slices.append(
                    Slice(
                        key=f"{image.stem}/{index}",
                        image=frame.windowed(image.slice(index), case.window),
                        labels=None if labels is None else labels.slice(index).astype(np.uint8),
                        series=series,
                        volume=volumes[series],
                        windowed=case.window is not None,
                    )
                )
    return slices
