"""Annotated images of users: what label values mean, and which label file an image has.

Axes: H W space.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vessa_client import files, wire
from vessa_client._types import AnyArray, ClassDefinition, UInt8Array, Window

# Of one structure alone, as picture editors and many data sets have it.
MASK_VALUE = 255


@dataclass(frozen=True)
class LabelScheme:
    """Classes, and the value of each in label files.

    Attributes:
        classes: in the order of requests.
        values: of each class, in 1..255.
        chosen: values were named: others of a file are background.
    """

    classes: tuple[ClassDefinition, ...]
    values: tuple[int, ...]
    chosen: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Of the classes."""
        return tuple(c.name for c in self.classes)

    def to_numbers(self, labels_HW: AnyArray, name: str) -> UInt8Array:
        """Values of a file to 1, 2, ..., as requests have them.

        Raises:
            FileError: there is a value without a class.
        """
        table, known = np.zeros(256, np.uint8), set(self.values)
        table[list(self.values)] = np.arange(1, len(self.values) + 1)
        found = {int(v) for v in np.unique(labels_HW)} - {0}
        if found == {MASK_VALUE} and known == {1}:
            table[MASK_VALUE] = 1
        elif not self.chosen and not found <= known:
            raise files.FileError(
                f"--class: {name} has labels {_listed(found)}, named are {_listed(known)}; name "
                "each, in order: -c NAME for 1, -c NAME for 2; or by value: -c 3=NAME"
            )
        numbers: UInt8Array = table[labels_HW]
        return numbers

    def to_values(self, numbers_HW: UInt8Array) -> UInt8Array:
        """1, 2, ... of an answer to the values that were named."""
        table = np.zeros(256, np.uint8)
        table[1 : len(self.values) + 1] = self.values
        values: UInt8Array = table[numbers_HW]
        return values


def parse(texts: Sequence[str]) -> LabelScheme:
    """Read ``name``, ``name: description`` or ``VALUE=name: description``.

    Raises:
        FileError: some have values and some not, or a value or name is there twice.
    """
    matched = [re.fullmatch(r"(?:(\d+)=)?([^:]*)(?::(.*))?", text, re.DOTALL) for text in texts]
    parts = [match.groups() for match in matched if match]
    given = [value for value, _, _ in parts if value is not None]
    if given and len(given) < len(texts):
        raise files.FileError(
            "--class: some have a value and some not; give all of them one: 3=NAME"
        )
    values = tuple(int(v) for v in given) or tuple(range(1, len(texts) + 1))
    if not all(0 < value < 256 for value in values):
        raise files.FileError(f"--class: values {_listed(values)}, expected 1..255")
    classes = tuple(
        ClassDefinition(name=name.strip(), description=(about or "").strip())
        for _, name, about in parts
    )
    return _scheme(values, classes, chosen=bool(given))


def read_scheme(path: Path) -> LabelScheme:
    """Classes of a file: ITK-SNAP's label descriptions, or dataset.json of nnU-Net or MSD.

    Raises:
        FileError: it is neither, or names nothing.
    """
    with files.reading(path):
        text = path.read_text()
        named = _of_json(text) if path.suffix == ".json" else _of_itk_snap(text)
    named = {value: named[value] for value in sorted(named) if 0 < value < 256}
    if not named:
        raise files.FileError(
            f"{path}: names no label; expected ITK-SNAP's label descriptions, or dataset.json"
        )
    return _scheme(tuple(named), tuple(named.values()), chosen=True)


def find_pairs(image: Path, labels: Path | None, suffix: str) -> list[tuple[Path, Path]]:
    """As :func:`find`, without the images that have no label file."""
    return [(path, found) for path, found in find(image, labels, suffix) if found is not None]


def find(image: Path, labels: Path | None, suffix: str) -> list[tuple[Path, Path | None]]:
    """Images, each with its label file or None.

    Args:
        image: an image, or a folder of images.
        labels: a label file, or a folder of them; beside the images by default.
        suffix: what names of label files have after the image's.

    Raises:
        FileError: no image has one.
    """
    if not image.exists():
        raise files.FileError(f"{image}: no such file or folder")
    if files.is_image(image) or not image.is_dir():
        found = labels or files.find_label(image, suffix)
        if found is not None and found.is_dir():
            found = files.find_label(image, suffix, found)
        if found is None:
            raise files.FileError(
                f"{image}: no label file (NAME{suffix}) beside it; give one as LABELS"
            )
        return [(image, found)]
    if labels is not None and not labels.is_dir():
        raise files.FileError(f"{labels}: expected a folder, as {image} is one")
    pairs = [
        (path, files.find_label(path, suffix, labels)) for path in files.find_images(image, suffix)
    ]
    if not any(found for _, found in pairs):
        where = labels or image
        raise files.FileError(
            f"{where}: no label file (NAME{suffix}) of any of {len(pairs)} images"
        )
    return pairs


@dataclass(frozen=True, eq=False)
class AnnotatedSlice:
    """One slice as a template: (H, W) or (H, W, 3), and labels 1, 2, ... of (H, W)."""

    image: AnyArray
    labels: UInt8Array
    name: str
    window: Window | None = None


def read_pair(
    image: Path, labels: Path, *, axis: int | None = None, frame: int | None = None
) -> tuple[files.ImageFile, files.ImageFile]:
    """An image and its label file.

    Raises:
        FileError: labels lie elsewhere than the image, or one of them cannot be read.
    """
    source = files.read(image, axis=axis, channel=frame)
    annotation = files.read(labels, axis=source.axis, labels=True)
    source.check_same_space(annotation)
    return source, annotation


def numbers(annotation: files.ImageFile, scheme: LabelScheme) -> list[UInt8Array]:
    """Labels 1, 2, ... of each slice of a label file.

    Raises:
        FileError: there is a value without a class.
    """
    return [scheme.to_numbers(plane, str(annotation.path)) for plane in annotation.slices()]


def cut(
    source: files.ImageFile, annotation: files.ImageFile, scheme: LabelScheme, most: int
) -> list[AnnotatedSlice]:
    """Annotated slices of an image that was read with its label file, evenly spread.

    Args:
        source: the image.
        annotation: its labels.
        scheme: what their values mean.
        most: slices.

    Raises:
        FileError: labels show nothing, or have an unnamed value.
    """
    planes = numbers(annotation, scheme)
    annotated = [index for index, plane in enumerate(planes) if plane.any()]
    if not annotated:
        raise files.FileError(
            f"{annotation.path}: no pixel is labelled {' or '.join(scheme.names)}"
        )
    picks = np.linspace(0, len(annotated) - 1, min(most, len(annotated))).round().astype(int)
    found = []
    for index in (annotated[position] for position in picks):
        name = source.stem if source.depth == 1 else f"{source.stem} slice {index}"
        pixels = np.array(source.slice(index))  # a copy: a view would keep the whole volume
        name = wire.template_name(name)
        found.append(AnnotatedSlice(pixels, planes[index], name, source.window))
    return found


def _scheme(
    values: tuple[int, ...], classes: tuple[ClassDefinition, ...], *, chosen: bool
) -> LabelScheme:
    for kind, found in (("value", values), ("name", [c.name for c in classes])):
        if len(set(found)) < len(found):
            raise files.FileError(f"--class: a {kind} is there twice")
    if not all(c.name for c in classes):
        raise files.FileError("--class: one has no name; give NAME, or VALUE=NAME")
    return LabelScheme(classes, values, chosen=chosen)


def read_windows(path: Path) -> dict[str, Window]:
    """Windows of images by name, as ``vessa bank export`` writes them beside the labels' names.

    Raises:
        FileError: they are something else.
    """
    if path.suffix != ".json":
        return {}
    with files.reading(path):
        given = json.loads(path.read_text()).get("windows", {})
        return {name: (float(low), float(high)) for name, (low, high) in given.items()}


def _of_itk_snap(text: str) -> dict[int, ClassDefinition]:
    """Lines of index, colour, visibilities, and the name in quotes."""
    lines = re.findall(r'^\s*(\d+)(?:\s+[\d.]+){6}\s+"([^"]*)"', text, re.MULTILINE)
    return {
        int(value): ClassDefinition(name=name.replace(":", " ").strip()) for value, name in lines
    }


def _of_json(text: str) -> dict[int, ClassDefinition]:
    """``labels`` by name (nnU-Net) or by value (MSD); regions of several values are left out.

    ``descriptions``, by name, are ours.
    """
    content: Mapping[str, Mapping[str, object]] = json.loads(text)
    about = content.get("descriptions", {})
    found = {}
    for key, value in content["labels"].items():
        if key.isdigit():
            number, name = int(key), str(value)
        elif isinstance(value, int):
            number, name = value, key
        else:
            continue
        found[number] = ClassDefinition(name=name, description=str(about.get(name, "")))
    return found


def _listed(values: Sequence[int] | set[int]) -> str:
    return ", ".join(map(str, sorted(values)))
