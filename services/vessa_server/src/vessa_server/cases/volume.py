"""Finds where a volume's structures are, by looks at all of its slices.

Axes: Z slices, C classes, H W space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vessa_client import files
from vessa_server.cases.case import Case, Steps
from vessa_server.inference.look import Prediction
from vessa_server.model.preprocess import Canvas
from vessa_server.policy import volumes
from vessa_server.policy.answers import Answer
from vessa_server.policy.volumes import Doubles

# Of a canvas with its key, about.
PLACE_BYTES = 1024


@dataclass(frozen=True)
class Seen:
    """Slices on the canvas that they agree on.

    Attributes:
        canvas: the same for all.
        predictions: of each slice on it.
        answers: the same on the frame.
        whole_Z: estimated IoU of each whole slice before.
    """

    canvas: Canvas
    predictions: list[Prediction]
    answers: list[Answer]
    whole_Z: Doubles

    def quality(self, slices: Sequence[int] | None = None) -> float:
        """Mean estimated IoU on the canvas, of some slices or of all."""
        return float(_some(volumes.qualities(self.answers), slices).mean())

    def worth(self, whole_weight: float, slices: Sequence[int] | None = None) -> float:
        """How likely it is that canvas and turn are the right ones."""
        whole = volumes.better_half(_some(self.whole_Z, slices))
        return self.quality(slices) + whole_weight * whole


def find_place(case: Case) -> Steps:
    """Find the canvas on which all slices of the case's volume are to be seen, and keep it.

    Slices that are equal are looked at once and count once.
    """
    policy = case.plan.policy
    distinct = {scan.sha256: scan for scan in case.volume}
    slices = [case.neighbour(scan) for scan in distinct.values()]
    found = yield from _closer(slices, (yield from _whole(slices, case.whole)))
    if policy.uses("turns") and found.quality() < policy.turns.below:
        found = yield from _turned(slices, found)
    case.memory.put(("place", case.volume_key), found.canvas, PLACE_BYTES)
    for slice_, prediction in zip(slices, found.predictions, strict=True):
        slice_.keep(prediction, found.canvas)
        case.cached &= slice_.cached
        case.templates_cached &= slice_.templates_cached
    return found.canvas


def _turned(slices: Sequence[Case], found: Seen) -> Steps:
    """The volume turned by quarters, where a few slices fit the templates clearly better so."""
    turns = slices[0].plan.policy.turns
    chosen = files.spread(len(slices), turns.volume_slices)
    few = [slices[z] for z in chosen]
    upright = slices[0].whole
    turned = []
    for quarters in (1, 2, 3):
        turned.append((yield from _whole(few, replace(upright, turns=quarters))))
    best = max(turned, key=lambda tried: volumes.better_half(tried.whole_Z))
    closer = yield from _closer(few, best)
    before = found.worth(turns.whole_weight, chosen)
    if closer.worth(turns.whole_weight) > before + turns.volume_margin:
        found = yield from _closer(slices, (yield from _whole(slices, best.canvas)))
    return found


def _whole(slices: Sequence[Case], canvas: Canvas) -> Steps:
    """What whole slices show."""
    predictions, answers = yield from _look(slices, canvas)
    return Seen(canvas, predictions, answers, volumes.qualities(answers))


def _closer(slices: Sequence[Case], seen: Seen) -> Steps:
    """Look at the window that most slices point to, as long as that is no worse."""
    policy = slices[0].plan.policy
    for _ in range(policy.volume.rounds if policy.uses("focus") else 0):
        window = volumes.window(seen.answers, policy.volume)
        if window is None:
            break
        canvas = replace(seen.canvas, crop=slices[0].frame.in_image(window))
        predictions, answers = yield from _look(slices, canvas)
        closer = replace(seen, canvas=canvas, predictions=predictions, answers=answers)
        if closer.quality() < seen.quality():
            break
        seen = closer
    return seen


def _look(slices: Sequence[Case], canvas: Canvas) -> Steps:
    predictions = yield [slice_.look(canvas) for slice_ in slices]
    answers = [
        slice_.own_answer(slice_.seen(prediction), canvas)
        for slice_, prediction in zip(slices, predictions, strict=True)
    ]
    return predictions, answers


def _some(values_Z: Doubles, slices: Sequence[int] | None) -> Doubles:
    return values_Z if slices is None else values_Z[list(slices)]
