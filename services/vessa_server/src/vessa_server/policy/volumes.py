"""Where a volume's structures are: its slices agree on it.

A slice alone may be seen in the wrong place, or turned the wrong way, and then nothing of its
answer is right. Structures of a volume lie on top of each other, and all slices are turned
alike: what most slices show is right far more often.

Axes: Z slices, C classes, H W space.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from vessa_server.model import preprocess
from vessa_server.model.preprocess import Crop
from vessa_server.policy.answers import Answer, Bools, Floats
from vessa_server.policy.config import VolumeConfig

Doubles = npt.NDArray[np.float64]


def window(answers: Sequence[Answer], config: VolumeConfig) -> Crop | None:
    """The window around what most slices show; None where it would be nearly the whole image."""
    shown = [1 - answer.probability_CHW[:1].astype(np.float64) for answer in answers]
    votes_HW = _votes(answers, shown, config)[0]
    labelled, _ = ndimage.label(votes_HW >= config.enough * votes_HW.max())
    peak = np.unravel_index(int(votes_HW.argmax()), votes_HW.shape)
    return preprocess.focus(labelled == labelled[peak])


def cores(answers: Sequence[Answer], config: VolumeConfig) -> Bools:
    """Where most slices show each class, (C, H, W); everywhere for one that hardly any shows."""
    votes_CHW = _votes(answers, [answer.probability_CHW[1:] for answer in answers], config)
    most_C11 = votes_CHW.max(axis=(1, 2), keepdims=True)
    hardly_C11 = most_C11 <= config.hardly * qualities(answers).sum()
    core_CHW: Bools = hardly_C11 | (votes_CHW >= config.enough * most_C11)
    return core_CHW


def qualities(answers: Sequence[Answer]) -> Doubles:
    """Mean estimated IoU of the classes in each slice."""
    return np.array([answer.quality for answer in answers])


def better_half(values_Z: Doubles) -> float:
    """Mean of the better half: slices at the ends of a volume may show nothing."""
    return float(np.sort(values_Z)[len(values_Z) // 2 :].mean())


def _votes(
    answers: Sequence[Answer], shown_ZCHW: Sequence[Floats | Doubles], config: VolumeConfig
) -> Doubles:
    """What the slices show, weighted by how good they are, added up and blurred, (C, H, W)."""
    shown = np.stack([shown_CHW.astype(np.float64) for shown_CHW in shown_ZCHW])
    votes_CHW = np.einsum("z,zchw->chw", qualities(answers), shown)
    blurred: Doubles = ndimage.gaussian_filter(votes_CHW, (0, config.blur, config.blur))
    return blurred
