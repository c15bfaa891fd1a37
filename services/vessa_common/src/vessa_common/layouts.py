"""Where images, labels and class names lie in the folder layouts that people use.

- ``plain``: ``NAME.nii.gz`` or ``NAME.png`` with ``NAME_gt.*`` beside it, in any folders; the one
  image of a folder may also have ``label.*`` or ``labels.*``;
- ``nnunet``: ``imagesTr/NAME_0000.*``, ``labelsTr/NAME.*`` and ``dataset.json`` (nnU-Net v1, v2);
- ``msd``: ``imagesTr/NAME.nii.gz``, ``labelsTr/NAME.nii.gz`` and ``dataset.json`` (Medical
  Segmentation Decathlon; several modalities lie on a fourth axis).
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vessa_client import files

Layout = Literal["plain", "nnunet", "msd"]
# Part of a data set in the layouts that name folders by it: training, validation, test.
Part = Literal["Tr", "Va", "Ts"]
LABEL_NAMES = ("label", "labels")


class DataError(ValueError):
    """A data set is not as its configuration says; the message names folder or file."""


@dataclass(frozen=True)
class Item:
    """An image file and its label file, where there is one.

    Attributes:
        name: path from the folder of the images, without suffix and channel.
        image: the file of the channel that is used.
        labels: the label file.
    """

    name: str
    image: Path
    labels: Path | None


@dataclass(frozen=True)
class Listing:
    """What a data set has.

    Attributes:
        items: images in the order of their names.
        names: label values and names, where a file tells them.
        channels: images or modalities of each case.
    """

    items: tuple[Item, ...]
    names: dict[int, str]
    channels: int = 1


def find(layout: Layout, folder: Path, channel: int = 0, part: Part = "Tr") -> Listing:
    """List the images of ``folder``, with and without labels.

    Args:
        layout: one of the layouts above.
        folder: of the data set; for ``plain`` the one that holds the files.
        channel: which image of a case with several (``_0000``, ``_0001``, ...) is used.
        part: of the data set; ``plain`` has none.

    Raises:
        DataError: the folder or an image is missing, or it is not clear whose a label file is.
    """
    if not folder.is_dir():
        raise DataError(f"data: no folder {folder}")
    return _FINDERS[layout](folder, channel, part)


def detect(folder: Path) -> Layout:
    """The layout of a folder: its ``labelsTr`` names images with or without a channel."""
    if not (folder / "imagesTr").is_dir():
        return "plain"
    images = {files.stem(f) for f in _visible(folder / "imagesTr")}
    labels = [files.stem(f) for f in _visible(folder / "labelsTr")]
    if labels:
        return "msd" if any(name in images for name in labels) else "nnunet"
    return "nnunet" if all(re.search(r"_\d{4}$", name) for name in images) else "msd"


def to_predict(images: Sequence[Path], channel: int) -> list[Path]:
    """Images without files of labels (``label.nii.gz``), and of each case one channel.

    Args:
        images: of a folder.
        channel: where there are ``NAME_0000``, ``NAME_0001``, ... of one case.
    """
    found = [file for file in images if files.stem(file).lower() not in LABEL_NAMES]
    cases: dict[Path, list[Path]] = defaultdict(list)
    for file in found:
        cases[file.parent / re.sub(r"_\d{4}$", "", files.stem(file))].append(file)
    wanted = f"_{channel:04d}"
    several = {
        file
        for case in cases.values()
        if any(files.stem(file).endswith(wanted) for file in case) and len(case) > 1
        for file in case
        if re.search(r"_\d{4}$", files.stem(file)) and not files.stem(file).endswith(wanted)
    }
    return [file for file in found if file not in several]


def _plain(folder: Path, channel: int, part: Part) -> Listing:
    by_folder: dict[Path, list[Path]] = defaultdict(list)
    for file in _visible(folder):
        by_folder[file.parent].append(file)
    items = []
    for inside in by_folder.values():
        shared = [f for f in inside if files.stem(f).lower() in LABEL_NAMES]
        images = [f for f in inside if f not in shared]
        if len(shared) > 1 or (shared and len(images) > 1):
            raise DataError(
                f"data: {shared[0]}: not clear whose labels these are; call them NAME_gt as the "
                "image NAME"
            )
        for image in images:
            labels = files.find_label(image) or (shared[0] if shared else None)
            items.append(Item(_name(image, folder), image, labels))
    return Listing(tuple(sorted(items, key=lambda item: item.image)), {})


def _nnunet(folder: Path, channel: int, part: Part) -> Listing:
    return _by_labels(folder, f"_{channel:04d}", part)


def _msd(folder: Path, channel: int, part: Part) -> Listing:
    return _by_labels(folder, "", part)


def _by_labels(folder: Path, ending: str, part: Part) -> Listing:
    """Images ``NAME + ending`` of ``imagesTr`` and label files ``NAME`` of ``labelsTr``."""
    images = folder / f"images{part}"
    found = {_name(f, images): f for f in _visible(images)}
    named = {name.removesuffix(ending): f for name, f in found.items() if name.endswith(ending)}
    labels = {files.stem(f): f for f in _visible(folder / f"labels{part}")}
    for name, file in labels.items():
        if name not in named:
            hint = "; see `channel`" if ending else ""
            raise DataError(f"data: {file} has no image {name}{ending}.* in {images.name}{hint}")
    items = tuple(Item(name, f, labels.get(name)) for name, f in sorted(named.items()))
    about = _described(folder / "dataset.json")
    channels = about.get("channel_names") or about.get("modality") or ()
    return Listing(items, _names(folder / "dataset.json", about), max(1, len(channels)))


def _name(file: Path, folder: Path) -> str:
    return file.relative_to(folder).with_name(files.stem(file)).as_posix()


def _visible(folder: Path) -> list[Path]:
    """Images of a folder; archives made on a Mac hold hidden twins of them."""
    if not folder.is_dir():
        return []
    return [f for f in files.find_images(folder) if not f.name.startswith(".")]


def _described(file: Path) -> dict[str, Any]:
    """What ``dataset.json`` says; nothing where there is none."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise DataError(f"data: {file} cannot be read: {error}") from error
    return content if isinstance(content, dict) else {}


def _names(file: Path, about: dict[str, Any]) -> dict[int, str]:
    """Label values and names; nnU-Net v2 writes them the other way round than MSD and v1."""
    if not file.is_file():
        return {}
    labels = about.get("labels")
    if not isinstance(labels, dict):
        raise DataError(f"data: {file} has no readable 'labels'")
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


_FINDERS: dict[Layout, Callable[[Path, int, Part], Listing]] = {
    "plain": _plain,
    "nnunet": _nnunet,
    "msd": _msd,
}
