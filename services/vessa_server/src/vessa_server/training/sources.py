"""Real data for Stage 1: folders of NIfTI volumes or PNG images with ``*_gt`` label files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import nibabel as nib
import numpy as np
import numpy.typing as npt
from PIL import Image

from vessa_client import UInt8Array


@dataclass(frozen=True, kw_only=True)
class ClassText:
    """Name and description of one structure, as the prompt uses them."""

    name: str
    description: str = ""


@dataclass(frozen=True)
class LabelledImage:
    """Image (H, W) or (H, W, 3) and label map (H, W); labels are 1-based class indices."""

    image: npt.NDArray[np.generic]
    labels: UInt8Array


class TaskSource(Protocol):
    """Gives groups of images of one task, each from another subject where possible."""

    name: str
    mirror: bool

    def sample(
        self, rng: np.random.Generator, count: int
    ) -> tuple[list[LabelledImage], list[ClassText]]:
        """``count`` images of one task and the texts of classes 1, 2, ..."""
        ...


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """A data set: where it is, how its labels are called, how it may be cut and mirrored."""

    folder: str
    classes: tuple[ClassText, ...]
    axes: tuple[int, ...] = (2,)
    repeat_last_axis: int = 1
    binary: bool = False
    # False where left and right have names: mirrored images would contradict the text.
    mirror: bool = True
    weight: float = 1.0


STAGE1_SOURCES: tuple[SourceSpec, ...] = (
    SourceSpec(
        folder="left_atrium",
        classes=(ClassText(name="left atrium", description="Cavity of the heart in MRI."),),
        axes=(2, 2, 0, 1),
        repeat_last_axis=2,
        weight=2.0,
    ),
    SourceSpec(
        folder="hippocampus",
        classes=(
            ClassText(name="anterior hippocampus", description="Head of the hippocampus in MRI."),
            ClassText(name="posterior hippocampus", description="Body and tail in MRI."),
        ),
        axes=(0, 1, 2),
        weight=1.5,
    ),
    SourceSpec(
        folder="chest_xray",
        classes=(
            ClassText(name="right lung", description="On the left side of the radiograph."),
            ClassText(name="left lung", description="On the right side of the radiograph."),
            ClassText(name="heart", description="Between the lungs."),
        ),
        mirror=False,
        weight=1.5,
    ),
    SourceSpec(
        folder="blood_cells",
        classes=(
            ClassText(name="nucleus", description="Dark part of the white blood cell."),
            ClassText(name="cytoplasm", description="Pale ring around the nucleus."),
        ),
        weight=1.5,
    ),
    SourceSpec(
        folder="drive",
        classes=(ClassText(name="retinal vessels", description="Fundus photograph."),),
        binary=True,
        weight=0.5,
    ),
    SourceSpec(
        folder="isbi_em",
        classes=(ClassText(name="cell membrane", description="Electron microscopy."),),
        binary=True,
        weight=0.5,
    ),
)


class FolderSource:
    """A data set on disk, held in memory."""

    def __init__(self, spec: SourceSpec, root: Path) -> None:
        """Read the ``train`` split; every tenth subject is held out for validation.

        Raises:
            FileNotFoundError: the folder has no images with labels.
        """
        self.spec = spec
        self.name = spec.folder
        self.mirror = spec.mirror
        folder = root / spec.folder / "train"
        labels = sorted(folder.glob("*_gt.*"))
        if not labels:
            raise FileNotFoundError(f"data: no *_gt.* label files in {folder}")
        chosen = [f for i, f in enumerate(labels) if i % 10 != 9]
        self._subjects = [_read_pair(f, spec) for f in chosen]

    def sample(
        self, rng: np.random.Generator, count: int
    ) -> tuple[list[LabelledImage], list[ClassText]]:
        """See :class:`TaskSource`. Slices of volumes lie at similar relative positions."""
        subjects = rng.choice(len(self._subjects), size=count, replace=count > len(self._subjects))
        axis = int(rng.choice(self.spec.axes))
        position = rng.uniform()
        picked = []
        for subject in subjects:
            image, labels = self._subjects[int(subject)]
            if image.ndim == 3 and labels.ndim == 3:
                relative = position + rng.normal(0.0, 0.08)
                picked.append(_slice(image, labels, axis, relative, rng))
            else:
                picked.append(LabelledImage(image, labels))
        return picked, list(self.spec.classes)


def _read_pair(label_file: Path, spec: SourceSpec) -> tuple[UInt8Array, UInt8Array]:
    image_file = label_file.with_name(label_file.name.replace("_gt.", "."))
    if label_file.name.endswith((".nii", ".nii.gz")):
        image = np.asarray(nib.load(image_file).dataobj, dtype=np.uint8)
        labels = np.asarray(nib.load(label_file).dataobj, dtype=np.uint8)
        if spec.repeat_last_axis > 1:
            image = np.repeat(image, spec.repeat_last_axis, axis=2)
            labels = np.repeat(labels, spec.repeat_last_axis, axis=2)
        return image, labels
    image = np.asarray(Image.open(image_file))
    labels = np.asarray(Image.open(label_file))
    return image, (labels > 0).astype(np.uint8) if spec.binary else labels.astype(np.uint8)


def _slice(
    image: UInt8Array, labels: UInt8Array, axis: int, relative: float, rng: np.random.Generator
) -> LabelledImage:
    """A slice at ``relative`` of the annotated extent, sometimes just outside of it."""
    other = tuple(a for a in range(3) if a != axis)
    annotated = np.flatnonzero(labels.any(axis=other))
    first, last = (annotated[0], annotated[-1]) if annotated.size else (0, labels.shape[axis] - 1)
    margin = 0.08 * (last - first) if rng.uniform() < 0.3 else 0.0
    wanted = first - margin + relative * (last - first + 2 * margin)
    index = int(np.clip(round(wanted), 0, labels.shape[axis] - 1))
    where = [slice(None)] * 3
    where[axis] = slice(index, index + 1)
    chosen = tuple(where)
    return LabelledImage(image[chosen].squeeze(axis), labels[chosen].squeeze(axis))
