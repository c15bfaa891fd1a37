"""Cases on disk: images with and without labels, by split and patient.

Layouts (`data.layout`):

- ``plain``: ``train``, ``val``, ``test`` with images (NIfTI or pictures) and label files ``*_gt``
  beside them, or folders of patients with one ``image.*`` and ``label.*`` each;
- ``nnunet`` and ``msd``: ``imagesTr`` and ``labelsTr``; ``imagesVa`` and ``imagesTs`` are for
  validation and testing where they have labels, and left alone where they have none;
- ``ssl4mis``: HDF5 files that ``train.list``, ``val.list``, ``test.list`` name.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from ssl_trainer.config import ConfigError, DataConfig, Layout, TrainConfig
from ssl_trainer.data import frame, hdf5
from vessa_client import files
from vessa_common import layouts, patients
from vessa_common.layouts import DataError, Item, Listing, Part

SplitName = Literal["train", "val", "test"]
_PARTS: dict[SplitName, Part] = {"train": "Tr", "val": "Va", "test": "Ts"}
# Patients that a line about a data set names.
_NAMED = 3


@dataclass(frozen=True)
class Case:
    """An image file, its patient, and its label file where there is one.

    Attributes:
        image: the file.
        labels: of HDF5 the same file.
        patient: whom it is of.
        path: below the folder of its split, without suffix; the file's name where it is empty.
        channel: which volume of a file with several counts; None where there is but one.
        values: label values in the file that are classes 1, 2, ...; without, these values.
        axis: along which a volume is sliced; None for the one along which it was acquired.
        window: intensities that become black and white; None for percentiles of each slice.
    """

    image: Path
    labels: Path | None
    patient: str
    path: str = ""
    channel: int | None = None
    values: tuple[int, ...] = ()
    axis: int | None = None
    window: frame.Window | None = None

    @property
    def name(self) -> str:
        """Tells it from all other cases of its split."""
        return self.path or files.stem(self.image)

    def read(self) -> files.ImageFile:
        """Read the image."""
        if self.image.suffix == hdf5.SUFFIX:
            return hdf5.read(self.image, hdf5.IMAGE, self.axis)
        return files.read(self.image, axis=self.axis, channel=self.channel)

    def read_labels(self, image: files.ImageFile, num_classes: int) -> files.ImageFile | None:
        """Read the labels, sliced like the image.

        Raises:
            FileError: they lie elsewhere than the image, or there are more labels than classes.
        """
        if self.labels is None:
            return None
        if self.labels.suffix == hdf5.SUFFIX:
            labels = hdf5.read(self.labels, hdf5.LABEL, image.axis)
        else:
            labels = files.read(self.labels, axis=image.axis, labels=True)
        image.check_same_space(labels)
        if self.values:
            unknown = set(np.unique(labels.pixels).tolist()) - {0, *self.values}
            if unknown:
                raise files.FileError(
                    f"{self.labels}: label {min(unknown)}, expected 0 and those of dataset.json, "
                    f"{', '.join(map(str, self.values))}"
                )
            indices = np.zeros(256, dtype=np.uint8)
            indices[list(self.values)] = np.arange(1, len(self.values) + 1)
            labels = replace(labels, pixels=indices[labels.pixels])
        highest = int(np.max(labels.pixels))
        if highest > num_classes:
            raise files.FileError(
                f"{self.labels}: label {highest}, expected 0..{num_classes} (data.classes)"
            )
        return labels


@dataclass(frozen=True)
class Split:
    """Cases of a data set. ``labelled`` and ``unlabelled`` share no patient.

    Attributes:
        found: one line that says what was found, and how patients were told apart.
    """

    labelled: tuple[Case, ...]
    unlabelled: tuple[Case, ...]
    val: tuple[Case, ...]
    test: tuple[Case, ...]
    found: str = ""

    def read_as(self, config: DataConfig) -> Split:
        """With the slicing axis and the window of ``config``."""

        def changed(cases: tuple[Case, ...]) -> tuple[Case, ...]:
            return tuple(replace(c, axis=config.axis, window=config.window) for c in cases)

        return replace(
            self,
            labelled=changed(self.labelled),
            unlabelled=changed(self.unlabelled),
            val=changed(self.val),
            test=changed(self.test),
        )


def find(config: DataConfig) -> Split:
    """Find the cases of a data set.

    Raises:
        ConfigError: the folder is missing, a labelled patient is not there or has no label,
            a patient is in more than one split, or it is not clear whose an image is.
    """
    layout = config.layout or _layout(config.root)
    try:
        listings = {name: _listing(config, layout, name) for name in _PARTS}
    except DataError as error:
        raise ConfigError(str(error)) from error
    found = _cases(config, listings)
    train = found["train"]
    if not train:
        raise ConfigError(f"data.root: no images for training in {config.root}, layout {layout}")
    names = list(dict.fromkeys(case.patient for case in train))
    if config.labelled:
        missing = [p for p in config.labelled if p not in names]
        if missing:
            raise ConfigError(
                f"data.labelled: no patient {missing[0]!r} for training in {config.root}; found "
                f"{', '.join(names[:5])}, ... (see data.patient_pattern)"
            )
        chosen = set(config.labelled)
    else:
        chosen = {case.patient for case in train if case.labels is not None}
    labelled = tuple(c for c in train if c.patient in chosen and c.labels is not None)
    if not labelled:
        raise ConfigError(
            f"data.labelled: no label file for training in {config.root}, layout {layout}; "
            "expected NAME_gt beside an image NAME, or labelsTr"
        )
    _check_disjoint(config, found)
    split = Split(
        labelled=labelled,
        unlabelled=tuple(c for c in train if c.patient not in chosen),
        val=found["val"],
        test=found["test"],
        found=_describe(config, layout, listings, names),
    )
    return split.read_as(config)


def common_axis(images: Iterable[Path]) -> int | None:
    """Axis along which most of the volumes were acquired; None where there are pictures only.

    Raises:
        FileError: one of them cannot be read.
    """
    axes = Counter(axis for axis in map(_acquired_axis, images) if axis is not None)
    return max(sorted(axes), key=axes.__getitem__) if axes else None


def _acquired_axis(image: Path) -> int | None:
    of_its_kind = hdf5.acquired_axis if image.suffix == hdf5.SUFFIX else files.acquired_axis
    return of_its_kind(image)


def sliced(config: DataConfig, split: Split) -> DataConfig:
    """With channel and axis: all volumes of a run are read alike, however each was acquired.

    Raises:
        FileError: a labelled volume cannot be read.
    """
    config = replace(config, channel=split.labelled[0].channel)
    if config.axis is not None:
        return config
    return replace(config, axis=common_axis(case.image for case in split.labelled))


def check_unlabelled(split: Split, config: TrainConfig) -> None:
    """Refuse a semi-supervised run without unlabelled images.

    Raises:
        ConfigError: there are none, and the teacher or VESSA would have labelled them.
    """
    if split.unlabelled or not config.learns_unlabelled:
        return
    raise ConfigError(
        "data.labelled: every patient for training is labelled, so there is nothing unlabelled to "
        f"learn from. {split.found}. Name fewer patients; if several were taken for one, set "
        f"data.patient_pattern; to train on labels alone, set {config.method_section}.weight to 0, "
        "and no server"
    )


def _layout(root: Path) -> Layout:
    """What a folder looks like."""
    if (root / "train").is_dir():
        return "plain"
    if hdf5.is_here(root):
        return "ssl4mis"
    if (root / "imagesTr").is_dir():
        return layouts.detect(root)
    raise ConfigError(
        f"data.root: no folder {root / 'train'} or {root / 'imagesTr'}, and no file "
        f"{root / 'train.list'}"
    )


def _listing(config: DataConfig, layout: Layout, split: SplitName) -> Listing:
    root = config.root
    if layout == "ssl4mis":
        return Listing(tuple(hdf5.find(root, split)), {})
    if layout == "plain":
        folder = root / split
        if split != "train" and not folder.is_dir():
            return Listing((), {})
        return layouts.find(layout, folder)
    listing = layouts.find(layout, root, config.channel or 0, _PARTS[split])
    if split == "train":
        return listing
    return replace(listing, items=tuple(i for i in listing.items if i.labels is not None))


def _cases(
    config: DataConfig, listings: dict[SplitName, Listing]
) -> dict[SplitName, tuple[Case, ...]]:
    """The cases of each split, those of a patient one after the other."""
    names = _patients(config, [item for listing in listings.values() for item in listing.items])
    found: dict[SplitName, tuple[Case, ...]] = {}
    for split, listing in listings.items():
        values = _values(config, listing)
        several = listing.channels > 1 and config.channel is None
        channel = 0 if several else config.channel
        by_patient: dict[str, list[Case]] = defaultdict(list)
        taken: dict[str, Path] = {}
        for item in listing.items:
            name = next(names)
            if item.name in taken:
                raise ConfigError(
                    f"data.root: {item.image} and {taken[item.name]} have one name; rename one"
                )
            taken[item.name] = item.image
            by_patient[name].append(Case(item.image, item.labels, name, item.name, channel, values))
        found[split] = tuple(itertools.chain(*by_patient.values()))
    return found


def _patients(config: DataConfig, items: Sequence[Item]) -> Iterator[str]:
    """The patient of each image."""
    if config.patient_pattern is None:
        yield from patients.names([item.name for item in items])
        return
    for item in items:
        file = item.name + item.image.name[len(files.stem(item.image)) :]
        match = re.search(config.patient_pattern, file)
        if match is None or match.group(1) is None:
            raise ConfigError(
                f"data.patient_pattern: {config.patient_pattern!r} finds no patient in {file!r}, "
                "expected a group"
            )
        yield match.group(1)


def _values(config: DataConfig, listing: Listing) -> tuple[int, ...]:
    """Label values of ``dataset.json`` where they are not 1, 2, ..."""
    if listing.names and len(listing.names) != len(config.classes):
        named = ", ".join(f"{value} {name}" for value, name in listing.names.items())
        raise ConfigError(
            f"data.classes: {len(config.classes)} names, expected one for each label of "
            f"{config.root / 'dataset.json'}: {named}"
        )
    values = tuple(listing.names)
    if not all(0 < value < 256 for value in values):
        raise ConfigError(
            f"data.root: {config.root / 'dataset.json'} has label values "
            f"{', '.join(map(str, values))}, expected 1..255"
        )
    return () if values == tuple(range(1, len(values) + 1)) else values


def _describe(
    config: DataConfig, layout: Layout, listings: dict[SplitName, Listing], names: Sequence[str]
) -> str:
    """Patients and files of the training split, and how they were found."""
    train = listings["train"]
    how = "names and folders" if config.patient_pattern is None else "data.patient_pattern"
    named = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
    line = (
        f"Data: patients for training: {len(names)} ({named}), files: {len(train.items)}, told "
        f"apart by {how}; layout {layout}"
    )
    if train.channels > 1:
        line += f", channel {config.channel or 0} of {train.channels} (data.channel)"
    return line


def _check_disjoint(config: DataConfig, found: dict[SplitName, tuple[Case, ...]]) -> None:
    """Refuse a patient who is, or may be, in two splits."""
    for one, other in itertools.combinations(found, 2):
        first, second = ({case.patient for case in found[split]} for split in (one, other))
        if first & second:
            raise ConfigError(
                f"data: patient {min(first & second)!r} of {other} is in {one} too; if these are "
                "two patients, rename a file or set data.patient_pattern"
            )
        if config.patient_pattern is not None:
            continue
        roots = {_root(name): name for name in first}
        for name in sorted(second):
            if _root(name) in roots:
                raise ConfigError(
                    f"data.patient_pattern: {roots[_root(name)]!r} of {one} and {name!r} of "
                    f"{other} may be one patient or two; set a pattern that tells"
                )
    if config.patient_pattern is None:
        _check_folders(found)


def _root(patient: str) -> str:
    """A name without a letter after its number: 012a and 012b may be scans of one patient."""
    return re.sub(r"(?<=\d)[a-zA-Z]$", "", patient)


def _check_folders(found: dict[SplitName, tuple[Case, ...]]) -> None:
    """Refuse cases whose folders may say something else of their patient than their names do.

    A name in two folders may be of two patients; two names in a folder such as p1, in two splits,
    of one.
    """
    by_patient: dict[str, tuple[str | None, Case]] = {}
    by_folder: dict[str, tuple[SplitName, Case]] = {}
    for split, group in found.items():
        for case in group:
            folder = patients.telling_folder(case.path)
            if folder == case.patient:
                continue
            known, first = by_patient.setdefault(case.patient, (folder, case))
            unclear = known != folder
            if folder is not None and re.search(r"\d", folder) and not unclear:
                side, first = by_folder.setdefault(folder, (split, case))
                unclear = side != split
            if unclear:
                raise ConfigError(
                    f"data.patient_pattern: {first.path} and {case.path} may be of one patient or "
                    "of two; set a pattern that tells, such as '^([^/]+)/' for the folder"
                )
