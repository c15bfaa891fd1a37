"""Where images, labels and class names lie in the folder layouts that people use.

- ``plain``: ``NAME.nii.gz`` or ``NAME.png`` with ``NAME_gt.*`` beside it;
- ``nnunet``: ``imagesTr/NAME_0000.*``, ``labelsTr/NAME.*`` and ``dataset.json`` (nnU-Net v1, v2);
- ``msd``: ``imagesTr/NAME.nii.gz``, ``labelsTr/NAME.nii.gz`` and ``dataset.json`` (Medical
  Segmentation Decathlon; several modalities lie on a fourth axis).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vessa_client import files

Layout = Literal["plain", "nnunet", "msd"]


class DataError(ValueError):
    """A data set is not as its configuration says; the message names folder or file."""


@dataclass(frozen=True)
class Subject:
    """Image and label file of one subject."""

    name: str
    image: Path
    labels: Path


@dataclass(frozen=True)
class Listing:
    """Subjects in the order of their names; label values and names where a file tells them."""

    subjects: tuple[Subject, ...]
    names: dict[int, str]


def find(layout: Layout, folder: Path, channel: int = 0) -> Listing:
    """List the annotated subjects of ``folder``.

    Args:
        layout: one of the layouts above.
        folder: of the data set; for ``plain`` the one that holds the files.
        channel: which image of a subject with several (``_0000``, ``_0001``, ...) is used.

    Raises:
        DataError: there are none, or an image is missing.
    """
    if not folder.is_dir():
        raise DataError(f"data: no folder {folder}")
    listing = _FINDERS[layout](folder, channel)
    if not listing.subjects:
        raise DataError(f"data: no labelled images of layout {layout!r} in {folder}")
    return listing


def _plain(folder: Path, channel: int) -> Listing:
    pairs = ((image, files.find_label(image)) for image in files.find_images(folder))
    return Listing(
        tuple(Subject(files.stem(image), image, labels) for image, labels in pairs if labels), {}
    )


def _nnunet(folder: Path, channel: int) -> Listing:
    return _by_labels(folder, f"_{channel:04d}")


def _msd(folder: Path, channel: int) -> Listing:
    return _by_labels(folder, "")


def _by_labels(folder: Path, ending: str) -> Listing:
    """Label files of ``labelsTr`` and the images ``NAME + ending`` of ``imagesTr``."""
    images = {files.stem(f): f for f in _visible(folder / "imagesTr")}
    subjects = []
    for labels in _visible(folder / "labelsTr"):
        name = files.stem(labels)
        if name + ending not in images:
            raise DataError(f"data: {labels} has no image {name}{ending}.* in imagesTr")
        subjects.append(Subject(name, images[name + ending], labels))
    return Listing(tuple(subjects), _names(folder / "dataset.json"))


def _visible(folder: Path) -> list[Path]:
    """Images of a folder; archives made on a Mac hold hidden twins of them."""
    if not folder.is_dir():
        return []
    return [f for f in files.find_images(folder) if not f.name.startswith(".")]


def _names(file: Path) -> dict[int, str]:
    """Label values and names; nnU-Net v2 writes them the other way round than MSD and v1."""
    if not file.is_file():
        return {}
    try:
        labels: dict[str, Any] = json.loads(file.read_text())["labels"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"data: {file} has no readable 'labels'") from error
    names = {}
    for key, value in labels.items():
        if str(key).isdigit():
            names[int(key)] = str(value)
        elif isinstance(value, int):
            names[value] = str(key)
        else:
            raise DataError(
                f"data: {file}: label {key!r} is {value!r}, expected one value (no regions)"
            )
    names.pop(0, None)
    return dict(sorted(names.items()))


_FINDERS: dict[Layout, Callable[[Path, int], Listing]] = {
    "plain": _plain,
    "nnunet": _nnunet,
    "msd": _msd,
}
