"""Templates with other labels of the same pixels: told, refused or replaced by corrected ones."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

from vessa_client import (
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
    banks: Banks, bank: str, new: AnnotatedSlice, classes: Sequence[ClassDefinition]
) -> list[adding.Outdated]:
    """Templates of a new one's name that show its pixels with other labels, or in another window.

    Args:
        banks: of the server.
        bank: name of the one to look in; one that is not there has none.
        new: the template.
        classes: of its labels 1, 2, ...
    """
    if new.labels.shape != new.image.shape[:2]:  # it is refused when it is added
        return []
    try:
        found = banks.get(bank)
    except NotFoundError:  # adding makes it
        return []
    return adding.outdated(found.find, found.snapshot().templates, new, classes)


def refusal(old: Sequence[adding.Outdated]) -> InvalidRequestError:
    """The error that says how they differ."""
    return InvalidRequestError(
        f"outdated: the bank has {old[0].info.name!r} otherwise ({old[0].differs}), "
        "expected `replace` to remove them, or `keep` to have both",
        field="outdated",
    )


def remove(banks: Banks, bank: str, template_ids: Iterable[str]) -> None:
    """Remove templates from a bank, those that are still there."""
    for template_id in template_ids:
        with contextlib.suppress(NotFoundError):  # somebody else did
            banks.get(bank).delete(template_id)
