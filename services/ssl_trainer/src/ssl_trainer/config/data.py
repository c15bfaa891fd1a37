"""The images of a run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator
from pydantic.dataclasses import dataclass

from ssl_trainer.config.checks import STRICT, check_window

# How the images of a data set lie; see ssl_trainer.data.cases.
Layout = Literal["plain", "nnunet", "msd", "ssl4mis"]
# Slicing axes of volumes in right, anterior, superior.
AXES = ("sagittal", "coronal", "axial")


def _axis(value: object) -> int:
    names = (*AXES, 0, 1, 2)
    if value not in names:
        raise ValueError(f"{value!r}, expected {', '.join(AXES)}, or 0, 1, 2")
    return names.index(value) % 3


Axis = Annotated[int, BeforeValidator(_axis)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DataConfig:
    """Where the images are and which of them count as labelled.

    Attributes:
        root: folder of the data set, in one of the layouts of :mod:`ssl_trainer.data.cases`.
        layout: which one; without it the folder is looked at.
        classes: names of labels 1, 2, ...; the same as in the template bank. Where
            ``dataset.json`` names label values, those count in rising order.
        labelled: patients whose labels are used; empty means all that have a label file.
        patient_pattern: regular expression whose first group is the patient in a file's path below
            the folder of its split. Without it names and folders tell, see
            :mod:`vessa_common.patients`.
        channel: which image or modality of a case with several; null for the first where a data set
            says that it has several, and else for files with one only.
        size: side of the square that the student sees, in pixels; a multiple of 16 for a U-Net,
            of the patches' side for DINOv2.
        window: intensities that become black and white, in Hounsfield units for CT; null for
            percentiles of each slice, where intensities have no unit (MRI, pictures).
        axis: along which volumes are sliced: ``sagittal``, ``coronal``, ``axial`` or 0, 1, 2; null
            for the one along which most labelled volumes were acquired, which a run keeps.
        watch_quality: read the labels of unlabelled patients, where there are any, to log how
            good the pseudo-labels are. Nothing is trained on them.
    """

    root: Path
    classes: tuple[str, ...]
    layout: Layout | None = None
    labelled: tuple[str, ...] = ()
    patient_pattern: str | None = None
    channel: int | None = None
    size: int = 128
    window: tuple[float, float] | None = None
    axis: Axis | None = None
    watch_quality: bool = False

    def __post_init__(self) -> None:
        if self.window is not None:
            check_window(self.window)
        if not self.classes:
            raise ValueError("classes: empty, expected the names of labels 1, 2, ...")
        if len(set(self.classes)) < len(self.classes) or not all(map(str.strip, self.classes)):
            raise ValueError(f"classes: {', '.join(self.classes)}: expected names that differ")
        if self.channel is not None and self.channel < 0:
            raise ValueError(f"channel: {self.channel}, expected 0 or more")
        try:
            groups = re.compile(self.patient_pattern or "()").groups
        except re.error as error:
            raise ValueError(f"patient_pattern: {self.patient_pattern!r}: {error}") from error
        if not groups:
            raise ValueError(f"patient_pattern: {self.patient_pattern!r}, expected a group")
