"""Where a volume's structures are: its slices agree on it.

A slice alone may be seen in the wrong place, or turned the wrong way, and then nothing of its
answer is right. Structures of a volume lie on top of each other, and all slices are turned
alike: what most slices show is right far more often.

Axes: Z slices, H W space.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from vessa_server.model import preprocess
from vessa_server.model.preprocess import Crop
from vessa_server.policy.answers import Answer
from vessa_server.policy.config import VolumeConfig

Doubles = npt.NDArray[np.float64]


def window(answers: Sequence[Answer], config: VolumeConfig) -> Crop | None:
    """The window around what most slices show; None where it would be nearly the whole image."""
    votes_HW = _votes(answers, config)
    labelled, _ = ndimage.label(votes_HW >= config.enough * votes_HW.max())
    peak = np.unravel_index(int(votes_HW.argmax()), votes_HW.shape)
    return preprocess.focus(labelled == labelled[peak])


def qualities(answers: Sequence[Answer]) -> Doubles:
    """Mean estimated IoU of the classes in each slice."""
    return np.array([answer.quality for answer in answers])


def better_half(values_Z: Doubles) -> float:
    """Mean of the better half: slices at the ends of a volume may show nothing."""
    return float(np.sort(values_Z)[len(values_Z) // 2 :].mean())


def _votes(answers: Sequence[Answer], config: VolumeConfig) -> Doubles:
    """What the slices show, weighted by how good they are, added up and blurred, (H, W)."""
    shown = np.stack([1 - answer.probability_CHW[0].astype(np.float64) for answer in answers])
    votes_HW = np.einsum("z,zhw->hw", qualities(answers), shown)
    blurred: Doubles = ndimage.gaussian_filter(votes_HW, config.blur)
    return blurred
