"""Where a volume's structures are: its slices are asked together.

A slice alone may be looked at in the wrong place, or turned the wrong way, and then nothing of
its answer is right. Structures of a volume lie on top of each other, and all slices are turned
alike: what most slices find is right far more often.

Axes: Z slices, H W space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from vessa_client import files
from vessa_server.engine.work import Work
from vessa_server.model import preprocess
from vessa_server.model.preprocess import Canvas, Crop

# Steps 1 to 5 for slices on one canvas.
Look = Callable[[Sequence[Work], Canvas], list[Work]]
Floats = npt.NDArray[np.float64]

# Looks closer, each at what the one before it found.
ROUNDS = 2
# Pixels by which votes are blurred, and the share of the most votes above which a pixel counts.
BLUR, ENOUGH_VOTES = 3.0, 0.5
# Share of the slices' votes up to which a class is hardly shown anywhere.
HARDLY = 0.05
# Mean estimated IoU below which turned views are tried, of an image alone, too.
TURN_BELOW = 0.4
# How many slices of a volume are turned, and how much more it must be worth then.
TURNED_SLICES, TURN_MARGIN = 3, 0.05
# How much the estimated IoU of whole images counts beside that of the last look.
WHOLE_WEIGHT = 2.0


@dataclass(frozen=True)
class Found:
    """Slices on the canvas that they agree on.

    Attributes:
        canvas: the same for all.
        works: what was found in each slice on it.
        whole_Z: estimated IoU of what was found in each whole slice before.
    """

    canvas: Canvas
    works: list[Work]
    whole_Z: Floats

    def quality(self, slices: Sequence[int] | None = None) -> float:
        """Mean estimated IoU on the canvas, of some slices or of all."""
        return float(_some(_qualities(self.works), slices).mean())

    def worth(self, slices: Sequence[int] | None = None) -> float:
        """How likely it is that canvas and turn are the right ones."""
        return self.quality(slices) + WHOLE_WEIGHT * _better_half(_some(self.whole_Z, slices))


def find(works: Sequence[Work], canvas: Canvas, look: Look, *, turn: bool, focus: bool) -> Found:
    """Find the canvas on which all slices of a volume are to be seen.

    Args:
        works: slices of one volume, of equal size, without students' masks.
        canvas: of whole slices, upright.
        look: how they are looked at.
        turn: whether to try quarter turns where the volume is unsure.
        focus: whether to look closer.
    """
    rounds = ROUNDS if focus else 0
    found = _closer(works, _whole(works, canvas, look), look, rounds)
    if turn and found.quality() < TURN_BELOW:
        slices = files.spread(len(works), TURNED_SLICES)
        few = [works[z] for z in slices]
        turned = [_whole(few, replace(canvas, turns=turns), look) for turns in (1, 2, 3)]
        best = max(turned, key=lambda tried: _better_half(tried.whole_Z))
        if _closer(few, best, look, rounds).worth() > found.worth(slices) + TURN_MARGIN:
            found = _closer(works, _whole(works, best.canvas, look), look, rounds)
    return found


def window(works: Sequence[Work]) -> Crop | None:
    """The window around what most slices show; None where it would be nearly the whole image."""
    votes_HW = _votes(works, [1 - w.own_answer().probability_CHW[:1].double() for w in works])[0]
    labelled, _ = ndimage.label(votes_HW >= ENOUGH_VOTES * votes_HW.max())
    peak = np.unravel_index(int(votes_HW.argmax()), votes_HW.shape)
    return preprocess.focus(labelled == labelled[peak])


def cores(works: Sequence[Work]) -> Tensor:
    """Where most slices show each class, (C, H, W); everywhere for one that hardly any shows."""
    votes_CHW = _votes(works, [w.own_answer().probability_CHW[1:] for w in works])
    most_C11 = votes_CHW.max(axis=(1, 2), keepdims=True)
    hardly_C11 = most_C11 <= HARDLY * _qualities(works).sum()
    return torch.from_numpy(hardly_C11 | (votes_CHW >= ENOUGH_VOTES * most_C11))


def _votes(works: Sequence[Work], shown_ZCHW: Sequence[Tensor]) -> Floats:
    """What the slices show, weighted by how good they are, added up and blurred, (C, H, W)."""
    shown = np.stack([shown_CHW.double().numpy() for shown_CHW in shown_ZCHW])
    votes_CHW = np.einsum("z,zchw->chw", _qualities(works), shown)
    blurred: Floats = ndimage.gaussian_filter(votes_CHW, (0, BLUR, BLUR))
    return blurred


def _whole(works: Sequence[Work], canvas: Canvas, look: Look) -> Found:
    """What whole slices show."""
    seen = look(works, canvas)
    return Found(canvas, seen, _qualities(seen))


def _closer(works: Sequence[Work], found: Found, look: Look, rounds: int) -> Found:
    """Look at the window that most slices point to, as long as that is no worse."""
    for _ in range(rounds):
        crop = window(found.works)
        if crop is None:
            break
        canvas = replace(found.canvas, crop=crop)
        closer = replace(found, canvas=canvas, works=look(works, canvas))
        if closer.quality() < found.quality():
            break
        found = closer
    return found


def _qualities(works: Sequence[Work]) -> Floats:
    """Mean estimated IoU of the classes in each slice."""
    return np.array([work.quality() for work in works])


def _some(values_Z: Floats, slices: Sequence[int] | None) -> Floats:
    return values_Z if slices is None else values_Z[list(slices)]


def _better_half(values_Z: Floats) -> float:
    """Mean of the better half: slices at the ends of a volume may show nothing."""
    return float(np.sort(values_Z)[len(values_Z) // 2 :].mean())
