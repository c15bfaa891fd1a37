"""What a task source gives: images with labels, and the words for the labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as validated

from vessa_client import UInt8Array


@validated(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
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
    """Gives groups of images of one task, each from another subject where possible.

    ``mirror`` says whether mirrored images are of the same kind, ``named`` whether the names
    of the structures mean the same in every task, so that they can be learnt.
    """

    name: str
    mirror: bool
    named: bool

    def sample(
        self, rng: np.random.Generator, count: int
    ) -> tuple[list[LabelledImage], list[ClassText]]:
        """``count`` images of one task and the texts of classes 1, 2, ..."""
        ...
