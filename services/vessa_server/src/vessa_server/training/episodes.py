"""Episodes: small tasks in which each image is a query and a template for the others.

The images of a group are encoded once and serve all its pairs ("packed" episodes). A batch
depends on the seed and its number only, so that a resumed run sees the same data.

Axes: N images of the step, P image-class pairs, H W space.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vessa_server.model import prompts
from vessa_server.model.preprocess import PALETTE
from vessa_server.training.augment import (
    SpatialTransform,
    apply_intensity,
    apply_spatial,
    focus_point,
    shift_structures,
)
from vessa_server.training.config import TrainingConfig
from vessa_server.training.corruption import corrupt
from vessa_server.training.tasks import ClassText, TaskSource

STUDENT_STRIDE = 2
WORDS = prompts.VOCABULARY.split()
# Annotated pixels from which an image can be a template, and draws of a task with one.
MIN_PIXELS, MAX_TRIES = 16, 20


@dataclass(frozen=True)
class Episode:
    """One batch.

    Attributes:
        image_N3HW: canvases in [0, 1].
        labels_NHW: uint8 label maps; the values are places in the overlay's palette.
        group_N: which task each image is of.
        image_P, class_P: image and label value of each pair.
        shown_PV: which label values the pair's template masks show. More than the asked one
            where only the text says which structure is wanted.
        candidates_PN: which images may be the pair's template: others of its group that
            show the class.
        student_P1HW: corrupted student probabilities at stride 2.
        prompts, answers: text of each pair.
    """

    image_N3HW: Tensor
    labels_NHW: Tensor
    group_N: Tensor
    image_P: Tensor
    class_P: Tensor
    shown_PV: Tensor
    candidates_PN: Tensor
    student_P1HW: Tensor
    prompts: list[str]
    answers: list[str]

    def to(self, device: torch.device) -> Episode:
        """The episode on another device."""
        moved: dict[str, Any] = {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in ((f.name, getattr(self, f.name)) for f in fields(self))
        }
        return Episode(**moved)

    def masks(self) -> Tensor:
        """Ground truth of each pair, (P, 1, H, W) float."""
        return (self.labels_NHW[self.image_P] == self.class_P[:, None, None]).float()[:, None]

    def shown_masks(self, image_P: Tensor) -> Tensor:
        """What a template of image ``image_P`` shows to each pair, (P, 1, H, W) float."""
        labels = self.labels_NHW[image_P].long().flatten(1)
        shown = self.shown_PV.gather(1, labels).view(len(image_P), 1, *self.labels_NHW.shape[1:])
        return shown.float()


def _renamed(rng: np.random.Generator) -> ClassText:
    """A text that says nothing: no name, or words that were drawn at random."""
    if rng.uniform() < 0.4:
        return ClassText(name="structure")
    words = [str(word) for word in rng.choice(WORDS, size=int(rng.integers(1, 7)))]
    return ClassText(name=" ".join(words[:2]), description=" ".join(words[2:]))


@dataclass(frozen=True)
class _Pair:
    image: int
    value: int
    shown: frozenset[int]
    candidates: list[int]
    text: ClassText
    colour: str


@dataclass
class _Draft:
    images: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    pairs: list[_Pair] = field(default_factory=list)


class EpisodeDataset(Dataset[Episode]):
    """Maps the number of a batch to its :class:`Episode`."""

    def __init__(
        self, sources: list[tuple[TaskSource, float]], config: TrainingConfig, canvas_size: int
    ) -> None:
        self.sources = [source for source, _ in sources]
        weights = np.array([weight for _, weight in sources])
        self.probabilities = weights / weights.sum()
        self.config = config
        self.canvas_size = canvas_size

    def __getitem__(self, batch: int) -> Episode:
        rng = np.random.default_rng([self.config.seed, batch])
        draft = _Draft()
        for group in range(self.config.groups):
            # A task whose structures all fell out of view has no pairs: take another one.
            for _ in range(MAX_TRIES):
                source = self.sources[int(rng.choice(len(self.sources), p=self.probabilities))]
                if self._add_group(source, group, rng, draft):
                    break
        if not draft.pairs:
            raise ValueError(f"batch {batch}: no source shows an annotated structure twice")
        return self._assemble(draft, rng)

    def _add_group(
        self, source: TaskSource, group: int, rng: np.random.Generator, draft: _Draft
    ) -> bool:
        config = self.config
        items, texts = source.sample(rng, config.images_per_group)
        shared = SpatialTransform.group(
            rng,
            mirror=source.mirror,
            zoom_range=config.zoom_range,
            focus=focus_point(items[0].labels, rng),
        )
        palette = rng.permutation(np.arange(1, len(PALETTE) + 1))[: len(texts)]
        lookup = torch.from_numpy(np.concatenate([[0], palette]).astype(np.uint8))
        images, labels = [], []
        focused = rng.uniform() < config.focus_probability
        for item in items:
            own = shared.vary(
                rng,
                strength=config.variation,
                turn=source.mirror and rng.uniform() < config.turn_probability,
            )
            if focused:
                own = own.look_at(item.labels, rng)
            image, label = apply_spatial(item, own, self.canvas_size, rng)
            if config.structure_shift:
                image = shift_structures(image, label, config.structure_shift, rng)
            images.append(apply_intensity(image, rng))
            labels.append(lookup[label.long()])
        first = len(draft.images)
        pairs = self._pairs(source, texts, palette, labels, first, rng)
        if not pairs:
            return False
        draft.images += images
        draft.labels += labels
        draft.groups += [group] * len(images)
        draft.pairs += pairs
        return True

    def _pairs(
        self,
        source: TaskSource,
        texts: list[ClassText],
        palette: npt.NDArray[np.int_],
        labels: list[Tensor],
        first: int,
        rng: np.random.Generator,
    ) -> list[_Pair]:
        pairs = []
        for index in rng.permutation(len(texts))[: self.config.max_classes]:
            value = int(palette[index])
            showing = [n for n, lab in enumerate(labels) if int((lab == value).sum()) >= MIN_PIXELS]
            shown, colour, text = frozenset([value]), PALETTE[value - 1].name, texts[index]
            if len(texts) > 1 and rng.uniform() < self.config.text_decides:
                shown = frozenset(int(v) for v in palette)
                if source.named and rng.uniform() < 0.5:
                    colour = ""
            if colour and rng.uniform() < self.config.renamed:
                text = _renamed(rng)
            for member in range(len(labels)):
                others = [first + n for n in showing if n != member]
                if others:
                    pairs.append(_Pair(first + member, value, shown, others, text, colour))
        most = self.config.pairs_per_group
        return [pairs[i] for i in sorted(rng.permutation(len(pairs))[:most])]

    def _assemble(self, draft: _Draft, rng: np.random.Generator) -> Episode:
        pairs = draft.pairs
        candidates = torch.zeros(len(pairs), len(draft.images), dtype=torch.bool)
        shown = torch.zeros(len(pairs), len(PALETTE) + 1, dtype=torch.bool)
        students, answers, texts = [], [], []
        for row, pair in enumerate(pairs):
            candidates[row, pair.candidates] = True
            shown[row, list(pair.shown)] = True
            labels = draft.labels[pair.image]
            answers.append(prompts.answer((labels == pair.value).numpy()))
            texts.append(prompts.prompt(pair.text.name, pair.text.description, pair.colour))
            small = labels[::STUDENT_STRIDE, ::STUDENT_STRIDE]
            students.append(corrupt(small == pair.value, (small > 0) & (small != pair.value), rng))
        return Episode(
            image_N3HW=torch.stack(draft.images),
            labels_NHW=torch.stack(draft.labels),
            group_N=torch.tensor(draft.groups),
            image_P=torch.tensor([pair.image for pair in pairs]),
            class_P=torch.tensor([pair.value for pair in pairs]),
            shown_PV=shown,
            candidates_PN=candidates,
            student_P1HW=torch.stack(students)[:, None],
            prompts=texts,
            answers=answers,
        )
