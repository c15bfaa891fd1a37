"""What a data set gives: annotated slices, and the words for their labels."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as validated

from vessa_client import UInt8Array

# Structures of one task, at most: as many as the overlay has tints.
MAX_CLASSES = 8


@validated(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class ClassText:
    """Name and description of one structure, as the prompt uses them."""

    name: str
    description: str = ""


@dataclass(frozen=True, kw_only=True)
class PackedSlice:
    """A slice of a volume, or a picture.

    Attributes:
        image: uint8, (H, W) or (H, W, 3).
        labels: uint8, (H, W); values are 1-based classes.
        subject: whom it is of.
        axis: along which the volume was cut; -1 for a picture.
        position: in the annotated part of the volume, 0 to 1; outside of it beyond that.
        held_out: whether its subject is kept out of training.
    """

    image: UInt8Array
    labels: UInt8Array
    subject: str
    axis: int = -1
    position: float = 0.0
    held_out: bool = False
