"""Episodes: small tasks in which each image is a query and a template for the others.

The images of a group are encoded once and serve all its pairs ("packed" episodes). Episode
``step`` depends on the seed and the step only, so that a resumed run sees the same data.

Axes: N images of the step, P image-class pairs, H W space.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vessa_server.model import prompts
from vessa_server.training.augment import (
    SpatialTransform,
    apply_intensity,
    apply_spatial,
    shift_structures,
)
from vessa_server.training.config import TrainingConfig
from vessa_server.training.corruption import corrupt
from vessa_server.training.sources import ClassText, TaskSource

STUDENT_STRIDE = 4


@dataclass(frozen=True)
class Episode:
    """Data of one training step.

    Attributes:
        image_N3HW: canvases in [0, 1].
        labels_NHW: uint8 label maps.
        image_P, class_P: image and label value of each pair.
        candidates_PN: which images may be the pair's template: others of its group that
            show the class.
        student_P1HW: corrupted student probabilities at stride 4.
        prompts, answers: text of each pair.
    """

    image_N3HW: Tensor
    labels_NHW: Tensor
    image_P: Tensor
    class_P: Tensor
    candidates_PN: Tensor
    student_P1HW: Tensor
    prompts: list[str]
    answers: list[str]

    def masks(self) -> Tensor:
        """Ground truth of each pair, (P, 1, H, W) float."""
        return (self.labels_NHW[self.image_P] == self.class_P[:, None, None]).float()[:, None]

    def template_masks(self, template_P: Tensor) -> tuple[Tensor, Tensor]:
        """Mask of the pair's class and of all other classes in its template, (P, 1, H, W)."""
        labels = self.labels_NHW[template_P]
        asked = labels == self.class_P[:, None, None]
        other = (labels > 0) & ~asked
        return asked.float()[:, None], other.float()[:, None]


class EpisodeDataset(Dataset[Episode]):
    """Maps a step to its :class:`Episode`."""

    def __init__(
        self, sources: list[tuple[TaskSource, float]], config: TrainingConfig, canvas_size: int
    ) -> None:
        self.sources = [source for source, _ in sources]
        weights = np.array([weight for _, weight in sources])
        self.probabilities = weights / weights.sum()
        self.config = config
        self.canvas_size = canvas_size

    def __len__(self) -> int:
        return self.config.steps

    def __getitem__(self, step: int) -> Episode:
        rng = np.random.default_rng([self.config.seed, step])
        images: list[Tensor] = []
        labels: list[Tensor] = []
        pairs: list[tuple[int, int, list[int], ClassText]] = []
        while not pairs:
            for _ in range(self.config.groups):
                source = self.sources[int(rng.choice(len(self.sources), p=self.probabilities))]
                self._add_group(source, rng, images, labels, pairs)
        return self._assemble(images, labels, pairs, rng)

    def _add_group(
        self,
        source: TaskSource,
        rng: np.random.Generator,
        images: list[Tensor],
        labels: list[Tensor],
        pairs: list[tuple[int, int, list[int], ClassText]],
    ) -> None:
        first = len(images)
        items, texts = source.sample(rng, self.config.images_per_group)
        shared = SpatialTransform.group(
            rng, mirror=source.mirror, zoom_range=self.config.zoom_range
        )
        for item in items:
            own = shared.vary(rng, strength=self.config.variation)
            image, label = apply_spatial(item, own, self.canvas_size, rng)
            if self.config.structure_shift:
                image = shift_structures(image, label, self.config.structure_shift, rng)
            images.append(apply_intensity(image, rng))
            labels.append(label)
        members = range(first, len(images))
        classes = rng.permutation(len(texts))[: self.config.max_classes]
        for class_index in classes:
            value = int(class_index) + 1
            showing = [n for n in members if int((labels[n] == value).sum()) >= 16]
            for member in members:
                candidates = [n for n in showing if n != member]
                if candidates:
                    pairs.append((member, value, candidates, texts[int(class_index)]))

    def _assemble(
        self,
        images: list[Tensor],
        labels: list[Tensor],
        pairs: list[tuple[int, int, list[int], ClassText]],
        rng: np.random.Generator,
    ) -> Episode:
        candidates = torch.zeros(len(pairs), len(images), dtype=torch.bool)
        students, answers = [], []
        for row, (image, value, others, _) in enumerate(pairs):
            candidates[row, others] = True
            mask = labels[image] == value
            answers.append(prompts.answer(mask.numpy()))
            small = labels[image][::STUDENT_STRIDE, ::STUDENT_STRIDE]
            students.append(corrupt(small == value, (small > 0) & (small != value), rng))
        return Episode(
            image_N3HW=torch.stack(images),
            labels_NHW=torch.stack(labels),
            image_P=torch.tensor([pair[0] for pair in pairs]),
            class_P=torch.tensor([pair[1] for pair in pairs]),
            candidates_PN=candidates,
            student_P1HW=torch.stack(students)[:, None],
            prompts=[prompts.prompt(text.name, text.description) for *_, text in pairs],
            answers=answers,
        )
