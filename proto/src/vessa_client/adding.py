"""Templates of a bank that show the same pixels as an annotated image that is added.

Axes: H W space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vessa_client._types import ClassDefinition, TemplateContent, TemplateInfo
from vessa_client.annotated import AnnotatedSlice
from vessa_client.windows import described


@dataclass(frozen=True)
class Outdated:
    """A template with other labels of the same pixels, and how they differ, in words."""

    info: TemplateInfo
    differs: str


def outdated(
    find: Callable[[str], TemplateContent],
    templates: Sequence[TemplateInfo],
    slice_: AnnotatedSlice,
    classes: Sequence[ClassDefinition],
) -> list[Outdated]:
    """Templates that show a slice with other labels of a structure that both have.

    Labels of other structures of the same image may be added in files of their own.

    Args:
        find: reads a template by its id; asked only for those of the slice's name.
        templates: of the bank.
        slice_: that is added.
        classes: of its labels 1, 2, ...
    """
    found = []
    for info in templates:
        if info.name != slice_.name:
            continue
        held = find(info.template_id)
        if not np.array_equal(held.image, slice_.image):
            continue
        differs = _differing(held, slice_, [c.name for c in classes])
        if held.info.window != slice_.window and np.array_equal(held.labels, slice_.labels):
            differs.append(f"window {described(held.info.window)}")
        if differs:
            found.append(Outdated(info, ", ".join(differs)))
    return found


def _differing(held: TemplateContent, slice_: AnnotatedSlice, names: Sequence[str]) -> list[str]:
    """Structures that both show, elsewhere, with the number of pixels that differ."""
    found = []
    for value, name in enumerate(held.info.class_names, start=1):
        if name in names:
            new_HW = slice_.labels == names.index(name) + 1
            pixels = int((new_HW != (held.labels == value)).sum())
            if new_HW.any() and pixels:
                found.append(f"{name} by {pixels} pixels")
    return found
