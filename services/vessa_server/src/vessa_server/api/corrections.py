"""Templates with other labels of the same pixels: told, refused or replaced by corrected ones."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Literal, get_args

from vessa_client import (
    AnyArray,
    ClassDefinition,
    InvalidRequestError,
    NotFoundError,
    adding,
)
from vessa_client.annotated import AnnotatedSlice
from vessa_server.bank import Banks

Outdated = Literal["keep", "refuse", "replace"]
OUTDATED: tuple[Outdated, ...] = get_args(Outdated)


def outdated(
    banks: Banks,
    bank: str,
    image: AnyArray,
    labels: AnyArray,
    classes: Sequence[ClassDefinition],
    name: str,
) -> list[adding.Outdated]:
    """Templates of that name that show the same pixels with other labels of the same structure.

    Args:
        banks: of the server.
        bank: name of the one to look in; one that is not there has none.
        image: (H, W) or (H, W, 3) of the new template.
        labels: (H, W), of ``classes``.
        classes: of the labels 1, 2, ...
        name: of the new template.
    """
    if labels.shape != image.shape[:2]:  # it is refused when it is added
        return []
    try:
        found = banks.get(bank)
    except NotFoundError:  # adding makes it
        return []
    new = AnnotatedSlice(image, labels, name)
    return adding.outdated(found.find, found.snapshot().templates, new, classes)


def refusal(old: Sequence[adding.Outdated]) -> InvalidRequestError:
    """The error that says how they differ."""
    return InvalidRequestError(
        f"outdated: the bank has other labels of {old[0].info.name!r} ({old[0].differs}), "
        "expected `replace` to remove them, or `keep` to have both",
        field="outdated",
    )


def remove(banks: Banks, bank: str, old: Sequence[adding.Outdated]) -> None:
    """Remove them from a bank."""
    for gone in old:
        with contextlib.suppress(NotFoundError):  # somebody else did
            banks.get(bank).delete(gone.info.template_id)
