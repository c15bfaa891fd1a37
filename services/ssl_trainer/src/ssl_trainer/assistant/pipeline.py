"""VESSA's pseudo-labels for the updates of a run: asked ahead, collected when they are needed.

Axes: B batch, C classes with background, H W space.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from functools import partial

import torch
from torch import Tensor, nn

from ssl_trainer import schedule
from ssl_trainer.assistant.assistant import WINDOW_MARGIN, Assistant, PseudoLabel
from ssl_trainer.assistant.prompter import Prompter, known
from ssl_trainer.config import TrainConfig
from ssl_trainer.data import batches, frame
from ssl_trainer.data.batches import SliceSampler
from ssl_trainer.data.slices import Slice
from ssl_trainer.data.store import SliceStore
from vessa_client import UInt8Array
from vessa_common.processes import Processes

Answers = dict[int, list[PseudoLabel | None]]


class Pipeline:
    """Asks about updates ahead of the training, with the teacher's probabilities as prompts.

    Attributes:
        assistant: that is asked.
        store: of the slices, with their regions of interest; it is given before anything is asked.
        prompts: of the updates under way, 255 for 1, (B, C, H, W) uint8; None of those without.
    """

    def __init__(
        self,
        config: TrainConfig,
        sampler: SliceSampler,
        processes: Processes,
        teacher: nn.Module,
    ) -> None:
        self.config, self.sampler, self.processes = config, sampler, processes
        self.store: SliceStore
        self.assistant = Assistant(config.assistant, config.data.classes)
        self.prompts: dict[int, Future[Tensor] | None] = {}
        self._prompter = Prompter(teacher, config)

    def restore(self, prompts: Mapping[int, Tensor], step: int, planned: int) -> None:
        """Ask again about what was under way at ``step``, with the same prompts.

        Args:
            prompts: of all processes, by update.
            step: the update that comes next.
            planned: updates of the whole run, as it was planned then: beyond nothing was asked.
        """
        asked = schedule.assisted(planned, self.config.assistant)
        under_way = range(step, min(self._ahead(step).stop, asked))
        own = self.config.accumulate * self.config.unlabelled_batch
        rows = slice(self.processes.rank * own, (self.processes.rank + 1) * own)
        for number in under_way:
            maps_or_none = prompts.get(number)
            self._ask(number, None if maps_or_none is None else known(maps_or_none[rows]))

    def ask_ahead(self, step: int) -> None:
        """Ask about the updates from ``step`` on that are near, and were not asked about yet."""
        for coming in self._ahead(step):
            if coming not in self.prompts:
                self._ask(coming, self._predict(coming))

    def collect(self, step: int) -> Answers:
        """Answers for the batches of an update, by number, in the order of their slices.

        None where they would not count.

        Raises:
            AssistantError: the run needs what it does not get; nothing of the update is counted.
        """
        if step >= schedule.assisted(self.config.steps, self.config.assistant):
            return {}
        counts = self.assistant.counts
        try:
            answers = {
                number: self.assistant.collect(number)
                for number in batches.numbers(step, self.config, self.processes)
            }
        except ValueError:
            self.assistant.counts = counts
            raise
        self.prompts.pop(step, None)
        return answers

    def gathered(self) -> dict[int, Tensor]:
        """Prompts of the updates under way, of all processes."""
        return {
            step: self.processes.gather(maps.result())
            for step, maps in self.prompts.items()
            if maps is not None
        }

    def close(self) -> None:
        """Finish what is under way, and drop the rest."""
        self.assistant.close()
        self._prompter.close()

    def _ahead(self, step: int) -> range:
        """Updates from ``step`` on that are near; none where the answers would not count."""
        last = schedule.assisted(self.config.steps, self.config.assistant)
        return range(step, max(step, min(step + self.config.assistant.ahead, last)))

    def _predict(self, step: int) -> Future[Tensor] | None:
        """Prompts for the slices of ``step``, where it is time for that."""
        if not schedule.feedback(step, self.config.steps, self.config.assistant):
            return None
        rows = [row for n in self._numbers(step) for row in self.sampler.indices(n)]
        return self._prompter.begin(partial(self.store.canvases, rows))

    def _ask(self, step: int, prompts: Future[Tensor] | None) -> None:
        self.prompts[step] = prompts
        batch = self.config.unlabelled_batch
        for index, number in enumerate(self._numbers(step)):
            rows = slice(index * batch, (index + 1) * batch)
            masks = None if prompts is None else partial(self._masks, prompts, rows, number)
            items = self._items(number)
            rois = [self._window(item) for item in items]
            self.assistant.ask(number, items, masks, rois)

    def _window(self, item: Slice) -> frame.Roi | None:
        """Where VESSA is to look: as close as it does by itself, which is what it learned."""
        roi = self.store.roi(item)
        if roi is None or roi.side >= max(item.image.shape[:2]):
            return roi
        return roi.scaled(1 / WINDOW_MARGIN)

    def _masks(self, prompts: Future[Tensor], rows: slice, number: int) -> list[UInt8Array]:
        """Probabilities are sent, not labels: where the teacher is unsure VESSA corrects more."""
        maps_BCHW = prompts.result()[rows].float() / 255
        return [
            mask(maps_CHW, item.image.shape, self.store.roi(item))
            for maps_CHW, item in zip(maps_BCHW, self._items(number), strict=True)
        ]

    def _numbers(self, step: int) -> range:
        return batches.numbers(step, self.config, self.processes)

    def _items(self, number: int) -> list[Slice]:
        return [self.store.slices[index] for index in self.sampler.indices(number)]


def mask(maps_CHW: Tensor, shape: tuple[int, ...], roi: frame.Roi | None) -> UInt8Array:
    """Probabilities on a canvas to those of the classes in the native slice, 255 for 1."""
    native = frame.restore(maps_CHW[1:], shape, roi)
    probabilities: UInt8Array = (255 * native).round().to(torch.uint8).numpy()
    return probabilities
