"""From images to label maps: a student, and what is done to what it found.

Axes: H W space, Z slices.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import ndimage
from torch import nn

from ssl_trainer.config import TrainConfig
from ssl_trainer.evaluation import volumes
from vessa_client import UInt8Array, files

# Of a run: the names of the structures that come in one piece.
PREDICTION = "prediction.json"
ONE_PIECE = "one_piece"


@dataclass(frozen=True)
class Predictor:
    """Label maps of whole volumes.

    Attributes:
        student: in evaluation mode.
        size: side of its canvas, in pixels.
        one_piece: values of the structures of which only the largest piece of a volume is kept.
    """

    student: nn.Module
    size: int
    one_piece: tuple[int, ...] = ()

    def __call__(self, image: files.ImageFile) -> list[UInt8Array]:
        """Label map of each slice, (H, W)."""
        labels = volumes.predict_slices(self.student, image, self.size)
        return list(largest_pieces(np.stack(labels), self.one_piece))

    def as_chosen(self, run: Path, config: TrainConfig) -> Predictor:
        """With the structures that :func:`write_choice` wrote into a run; without them as it is.

        Raises:
            ValueError: the file is damaged.
        """
        file = run / PREDICTION
        if not file.is_file():
            return self
        try:
            names = json.loads(file.read_text())[ONE_PIECE]
            values = tuple(1 + config.data.classes.index(name) for name in names)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{file}: expected {{{ONE_PIECE!r}: [names of classes]}}; "
                f"`ssl-trainer report {run}` writes it again"
            ) from error
        return replace(self, one_piece=values)


def write_choice(run: Path, config: TrainConfig, one_piece: Sequence[int]) -> None:
    """Keep in a run of which structures only the largest piece counts."""
    names = [config.data.classes[value - 1] for value in one_piece]
    files.write_text(run / PREDICTION, json.dumps({ONE_PIECE: names}) + "\n")


def largest_pieces(labels_ZHW: UInt8Array, values: Sequence[int]) -> UInt8Array:
    """Label maps in which each of the structures is its largest piece, the rest background.

    Voxels that share a face, an edge or a corner are of one piece.
    """
    kept = labels_ZHW.copy()
    for value in values:
        pieces, count = ndimage.label(labels_ZHW == value, structure=np.ones((3, 3, 3)))
        if count > 1:
            largest = 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
            kept[(pieces > 0) & (pieces != largest)] = 0
    return kept
