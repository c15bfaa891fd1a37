"""What the trainer asks VESSA: the slices of a coming batch, with the student's view of them.

Axes: B batch, C classes with background, H W space.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ssl_trainer.assistant.assistant import Assistant, PseudoLabel
from ssl_trainer.config import AssistantConfig, TrainConfig
from ssl_trainer.data import batches, frame
from ssl_trainer.data.batches import SliceSampler
from ssl_trainer.data.cases import Slice
from vessa_client import UInt8Array

# What the student makes of the canvases of a batch, 255 for 1, (B, C, H, W).
Told = Callable[[], Tensor]
# The number under which slices are asked about that are not in any batch.
ASIDE = -1
# Part of a run after which VESSA is asked about all slices, however few epochs that is.
ALL_BEGUN = 0.6


class Feedback:
    """Asks for batches by their number, and collects the answers later."""

    def __init__(
        self, config: TrainConfig, slices: list[Slice], sampler: SliceSampler, count: int
    ) -> None:
        """``count`` is the number of batches of the whole run, of all processes."""
        self.config, self.slices, self.sampler = config, slices, sampler
        epochs = count * sampler.batch / sampler.count
        self._begins = begins(slices, config.assistant, config.seed, epochs)
        self.assistant = Assistant(config.assistant, config.data.classes)

    def canvases(self, number: int) -> dict[int, Tensor]:
        """The slices of a batch that are asked about, on their canvases, (1, H, W), by row."""
        items, size = self._batch(number), self.config.data.size
        return {row: batches.canonical(items[row], size) for row in self._asked(number)}

    def ask(self, number: int, told: Told | None) -> None:
        """Begin to fetch the answers for a batch; None asks without prompts.

        Probabilities are sent, not labels: where the student is unsure VESSA corrects more.
        """
        items, rows = self._batch(number), self._asked(number)

        def masks(told: Told) -> list[UInt8Array]:
            maps_BCHW = told().float() / 255
            return [prompt(maps_BCHW[row], items[row].image.shape) for row in rows]

        students = None if told is None else partial(masks, told)
        self.assistant.ask(number, [items[row] for row in rows], students)

    def collect(self, number: int) -> list[PseudoLabel | None]:
        """Answers for a batch, in the order of its slices; None where there is none."""
        answers: list[PseudoLabel | None] = [None] * self.sampler.batch
        for row, answer in zip(self._asked(number), self.assistant.collect(number), strict=True):
            answers[row] = answer
        return answers

    def look(self, item: Slice) -> None:
        """Let VESSA look at a slice that it will be asked about later; waits for nothing."""
        self.assistant.look([item])

    def aside(self, items: Sequence[Slice], student_BCHW: Tensor) -> list[PseudoLabel | None]:
        """Answers for slices that are not in any batch; waits for them."""
        masks = [prompt(m, i.image.shape) for m, i in zip(student_BCHW, items, strict=True)]
        self.assistant.ask(ASIDE, items, lambda: masks)
        return self.assistant.collect(ASIDE)

    def close(self) -> None:
        """Finish the request under way, and drop the others."""
        self.assistant.close()

    def _batch(self, number: int) -> list[Slice]:
        return [self.slices[i] for i in self.sampler.indices(number)]

    def _asked(self, number: int) -> list[int]:
        """Rows of a batch whose slices VESSA looks at, and have had their turn for that."""
        first, count = number * self.sampler.batch, self.sampler.count
        return [
            row
            for row, index in enumerate(self.sampler.indices(number))
            if self._begins.get(index, math.inf) <= (first + row) / count
        ]


def begins(
    slices: Sequence[Slice], config: AssistantConfig, seed: int, epochs: float
) -> dict[int, float]:
    """From which epoch of ``epochs`` on VESSA is asked about each slice; fractions count.

    The slices of a series begin together: the first look at one is a look at all. Series begin
    one after the other, in a random order. They do so three times as often at first as in the
    end, when more slices are asked about again, so that the server has as much to do all the time.
    """
    asked = range(0, len(slices), config.every)
    series = list(dict.fromkeys(slices[i].series for i in asked))
    order = np.random.default_rng([seed, 3]).permutation(len(series))
    # Where 1.5 x - 0.5 x², whose slope falls from 1.5 to 0.5, is the share of the series.
    places = 1.5 - np.sqrt(2.25 - 2 * order / len(series))
    last = min(config.spread_epochs - 1, ALL_BEGUN * epochs)
    at = dict(zip(series, (last * places).tolist(), strict=True))
    return {i: at[slices[i].series] for i in asked}


def prompt(maps_CHW: Tensor, shape: tuple[int, ...]) -> UInt8Array:
    """Probabilities on a canvas to those of the classes in the native slice, 255 for 1."""
    native = frame.restore(maps_CHW, shape)[1:]
    probabilities: UInt8Array = (255 * native).round().to(torch.uint8).numpy()
    return probabilities
