"""What a request asks for, checked against the bank and the limits.

Axes: C classes, H W space.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vessa_client import (
    AnyArray,
    BankListing,
    ClassDefinition,
    InvalidRequestError,
    NotFoundError,
    SegmentationRequest,
    TemplateInfo,
)

MAX_TEXT_LENGTH = 400


@dataclass(frozen=True)
class Plan:
    """Classes to segment and the templates that may serve; each class is shown by some."""

    classes: tuple[ClassDefinition, ...]
    candidates: tuple[TemplateInfo, ...]
    top_k: int
    text: str
    bank_version: str
    template_ids: tuple[str, ...]

    def key(self) -> tuple[object, ...]:
        """All that the conditioned features depend on, besides the image."""
        return (self.classes, self.top_k, self.text, self.bank_version, self.template_ids)


def make_plan(
    request: SegmentationRequest,
    bank: BankListing,
    *,
    default_top_k: int,
    max_top_k: int,
    max_classes: int,
) -> Plan:
    """Check classes, templates and options of a request.

    Raises:
        NotFoundError: a class or a template is not in the bank.
        InvalidRequestError: the bank is empty, or an option is out of range.
    """
    if not bank.templates:
        raise InvalidRequestError(
            "class_names: the bank has no templates; add one with `vessa templates add`",
            field="class_names",
        )
    if not 0 <= request.top_k <= max_top_k:
        raise InvalidRequestError(
            f"options.top_k: {request.top_k}, expected 1..{max_top_k}, or 0 for the default",
            field="options.top_k",
        )
    if len(request.text) > MAX_TEXT_LENGTH:
        raise InvalidRequestError(
            f"text: {len(request.text)} characters, expected at most {MAX_TEXT_LENGTH}",
            field="text",
        )
    classes = _asked_classes(request.class_names, bank)
    if len(classes) > max_classes:
        raise InvalidRequestError(
            f"class_names: {len(classes)} classes, expected at most {max_classes}",
            field="class_names",
        )
    allowed = _allowed_templates(request.template_ids, bank)
    shown = {name for template in allowed for name in template.class_names}
    for definition in classes:
        if definition.name not in shown:
            raise NotFoundError(
                f"options.template_ids: none of the templates shows {definition.name!r}",
                field="options.template_ids",
            )
    asked = {definition.name for definition in classes}
    return Plan(
        classes=classes,
        candidates=tuple(t for t in allowed if asked.intersection(t.class_names)),
        top_k=request.top_k or default_top_k,
        text=request.text,
        bank_version=bank.version,
        template_ids=request.template_ids,
    )


def _asked_classes(names: tuple[str, ...], bank: BankListing) -> tuple[ClassDefinition, ...]:
    shown = {name for template in bank.templates for name in template.class_names}
    known = {c.name: c for c in bank.classes if c.name in shown}
    for name in names:
        if name not in known:
            raise NotFoundError(
                f"class_names: no class {name!r} in the bank, expected one of {', '.join(known)}",
                field="class_names",
            )
    if len(set(names)) != len(names):
        raise InvalidRequestError(
            f"class_names: {list(names)}, expected each class once", field="class_names"
        )
    return tuple(known[name] for name in names) or tuple(known.values())


def _allowed_templates(ids: tuple[str, ...], bank: BankListing) -> tuple[TemplateInfo, ...]:
    if not ids:
        return bank.templates
    by_id = {t.template_id: t for t in bank.templates}
    for template_id in ids:
        if template_id not in by_id:
            raise NotFoundError(
                f"options.template_ids: no template {template_id!r} in the bank",
                field="options.template_ids",
            )
    return tuple(by_id[template_id] for template_id in ids)


def student_probabilities(student: AnyArray, shape: tuple[int, int], num_classes: int) -> Tensor:
    """Student mask to (C, H, W) probabilities at the image's size.

    Raises:
        InvalidRequestError: size, dtype, number of classes or values do not fit.
    """
    field = "student_mask"
    if student.ndim == 3:
        if student.shape != (num_classes, *shape):
            raise InvalidRequestError(
                f"{field}.probabilities: shape {student.shape}, expected "
                f"{(num_classes, *shape)} (classes, height, width)",
                field=f"{field}.probabilities",
            )
        if student.dtype == np.uint8:
            maps = torch.from_numpy(student.astype(np.float32) / 255.0)
        elif student.dtype.kind == "f":
            maps = torch.from_numpy(student.astype(np.float32))
        else:
            raise InvalidRequestError(
                f"{field}.probabilities: dtype {student.dtype}, expected uint8 or float",
                field=f"{field}.probabilities",
            )
        if not bool(((maps >= 0) & (maps <= 1)).all()):
            raise InvalidRequestError(
                f"{field}.probabilities: values outside of 0..1", field=f"{field}.probabilities"
            )
    else:
        if student.shape != shape or student.dtype.kind not in "ui":
            raise InvalidRequestError(
                f"{field}.label_map: shape {student.shape} of {student.dtype}, expected "
                f"{shape} integers, the image's size",
                field=f"{field}.label_map",
            )
        if student.size and not 0 <= int(student.min()) <= int(student.max()) <= num_classes:
            raise InvalidRequestError(
                f"{field}.label_map: labels {student.min()}..{student.max()}, expected "
                f"0..{num_classes}, one for each asked class",
                field=f"{field}.label_map",
            )
        labels = torch.from_numpy(student.astype(np.int64))
        maps = F.one_hot(labels, num_classes + 1)[..., 1:].permute(2, 0, 1).float()
    return maps
