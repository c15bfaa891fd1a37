"""A student's mask, checked and brought to probabilities.

Axes: C classes, H W space.
"""

from __future__ import annotations

import numpy as np

from vessa_client import AnyArray, InvalidRequestError
from vessa_server.cases.frame import Frame
from vessa_server.policy.answers import Floats

FIELD = "student_mask"


def check(student: AnyArray, shape: tuple[int, int], num_classes: int) -> None:
    """Check size, dtype, number of classes and values against the image.

    Raises:
        InvalidRequestError: they do not fit.
    """
    if student.ndim == 3:
        _check_probabilities(student, shape, num_classes)
    else:
        _check_label_map(student, shape, num_classes)


def on_frame(student: AnyArray, num_classes: int, frame: Frame) -> Floats:
    """A checked mask as probabilities on the frame, (C, H, W).

    One class is at the image's size at a time: 32 of 4096 x 4096 pixels would take gigabytes.
    """
    classes = range(num_classes)
    return np.concatenate([frame.reduce(_of_class(student, c)[None]) for c in classes])


def _of_class(student: AnyArray, index: int) -> Floats:
    """Probabilities of one class, (H, W)."""
    if student.ndim == 2:
        inside: Floats = (student == index + 1).astype(np.float32)
        return inside
    map_HW: Floats = student[index].astype(np.float32)
    return map_HW / np.float32(255) if student.dtype == np.uint8 else map_HW


def _check_probabilities(student: AnyArray, shape: tuple[int, int], num_classes: int) -> None:
    field = f"{FIELD}.probabilities"
    if student.shape != (num_classes, *shape):
        raise InvalidRequestError(
            f"{field}: shape {student.shape}, expected {(num_classes, *shape)} "
            "(classes, height, width)",
            field=field,
        )
    if student.dtype == np.uint8:
        return
    if student.dtype.kind != "f":
        raise InvalidRequestError(
            f"{field}: dtype {student.dtype}, expected uint8 or float", field=field
        )
    if student.size and not 0 <= float(student.min()) <= float(student.max()) <= 1:
        raise InvalidRequestError(f"{field}: values outside of 0..1", field=field)


def _check_label_map(student: AnyArray, shape: tuple[int, int], num_classes: int) -> None:
    field = f"{FIELD}.label_map"
    if student.shape != shape or student.dtype.kind not in "ui":
        raise InvalidRequestError(
            f"{field}: shape {student.shape} of {student.dtype}, expected {shape} integers, "
            "the image's size",
            field=field,
        )
    if student.size and not 0 <= int(student.min()) <= int(student.max()) <= num_classes:
        raise InvalidRequestError(
            f"{field}: labels {student.min()}..{student.max()}, expected 0..{num_classes}, one "
            "for each asked class",
            field=field,
        )
