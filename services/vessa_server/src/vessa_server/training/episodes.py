"""Episodes: batches of small tasks in which images are queries, and templates for the others.

Each image and asked structure is a pair; the templates of a pair are the same structure in other
members of its group, so that images and annotations are encoded once ("packed" episodes). A batch
depends on the seed and its number only, on every device: whole numbers are equal, and pixels are
but for rounding (1e-4 of the range of intensities; labels at a border may fall to either side).

Axes: G groups, M members, N = G*M images, Q asked structures, P = G*Q*M pairs, V label values,
H W space.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vessa_common.transfer import to_device
from vessa_server.model import prompts
from vessa_server.model.preprocess import PALETTE
from vessa_server.training import scenes, views
from vessa_server.training.config import TrainingConfig
from vessa_server.training.corruption import corrupt
from vessa_server.training.draws import Draws
from vessa_server.training.pack import Pack
from vessa_server.training.planning import Plan, Planner

STUDENT_STRIDE = 2
# Annotated pixels from which an image can be a template.
MIN_PIXELS = 16


@dataclass(frozen=True)
class Episode:
    """One batch.

    Attributes:
        image_N3HW: canvases in [0, 1].
        labels_NHW: label maps; the values are places in the overlay's palette.
        image_P, class_P: image and label value of each pair.
        shown_PV: which label values the pair's masks show as a template. More than the asked
            one where only the text says which structure is wanted.
        candidates_PM: which members of its group may be the pair's template: those of other
            subjects that show the structure.
        weight_P: 1, or 0 for a pair without any.
        student_P1HW: corrupted student probabilities at stride 2.
        prompt_P, answer_P: rows of the run's texts, and of :data:`prompts.ANSWERS`.
        templates, reads, retrieves: see :class:`Plan`.
    """

    image_N3HW: Tensor
    labels_NHW: Tensor
    image_P: Tensor
    class_P: Tensor
    shown_PV: Tensor
    candidates_PM: Tensor
    weight_P: Tensor
    student_P1HW: Tensor
    prompt_P: Tensor
    answer_P: Tensor
    templates: int
    reads: bool
    retrieves: bool

    def masks(self) -> Tensor:
        """Ground truth of each pair, (P, 1, H, W) float."""
        return (self.labels_NHW[self.image_P] == self.class_P[:, None, None]).float()[:, None]

    def shown_masks(self) -> Tensor:
        """What each pair shows to others as their template, (P, 1, H, W) float."""
        labels = self.labels_NHW[self.image_P]
        shown = self.shown_PV.gather(1, labels.flatten(1)).view_as(labels)
        return shown.float()[:, None]


@dataclass(frozen=True)
class _Held:
    """What the device holds of a pack."""

    planes_LHW: Tensor
    labels_RHW: Tensor
    plane_R3: Tensor
    size_R2: Tensor

    @staticmethod
    def of(pack: Pack, device: torch.device) -> _Held:
        return _Held(
            pack.planes_LHW.to(device),
            pack.labels_RHW.to(device),
            torch.from_numpy(pack.plane_R3).to(device),
            torch.from_numpy(pack.size_R2).to(device),
        )

    def slices(self, row_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images in [0, 1], (N, 3, H, W); label maps, (N, H, W); their sizes, (N, 2)."""
        images = self.planes_LHW[self.plane_R3[row_N]].float() / 255.0
        return images, self.labels_RHW[row_N], self.size_R2[row_N]


class EpisodeGenerator:
    """Maps the number of a batch to its :class:`Episode`, made on ``device``."""

    def __init__(
        self,
        pack: Pack | None,
        config: TrainingConfig,
        canvas_size: int,
        device: torch.device | None = None,
    ) -> None:
        """Without a pack all tasks are made up."""
        self.device = device or torch.device("cpu")
        self.config = config
        self.canvas_size = canvas_size
        self.planner = Planner(pack, config)
        self.held = _Held.of(pack, self.device) if pack is not None else None

    def with_config(self, config: TrainingConfig) -> EpisodeGenerator:
        """The same with other batches; what the device holds is shared."""
        other = copy.copy(self)
        other.config = config
        other.planner = copy.copy(self.planner)
        other.planner.configure(config)
        return other

    def of_held_out(self, pack: Pack) -> EpisodeGenerator:
        """Batches of the held-out subjects of the same pack; what the device holds is shared."""
        other = copy.copy(self)
        other.planner = Planner(pack, self.config, held_out=True)
        return other

    @torch.no_grad()
    def __getitem__(self, number: int) -> Episode:
        plan, draws = self._begun(number)
        image, labels = self._pictures(plan, draws)
        return _assemble(plan, image, labels, draws)

    @torch.no_grad()
    def pictures(self, number: int) -> tuple[Tensor, Tensor]:
        """The images of a batch in [0, 1], (N, 3, H, W), and labels in classes, (N, H, W)."""
        return self._pictures(*self._begun(number))

    def _begun(self, number: int) -> tuple[Plan, Draws]:
        plan = to_device(self.planner.plan(number), self.device)
        return plan, Draws(self.config.seed, number, self.device)

    def _pictures(self, plan: Plan, draws: Draws) -> tuple[Tensor, Tensor]:
        """Canvases, and label maps with the classes of each source."""
        parts = []
        real = len(plan.rows_N)
        if real:
            assert self.held is not None
            parts.append(self.held.slices(plan.rows_N))
        if plan.scenes is not None:
            raw, labels = scenes.render(plan.scenes, self.config.images_per_group, draws)
            sizes = torch.full((len(raw), 2), scenes.SIDE, device=self.device)
            parts.append((raw, labels, sizes))
        images, maps, start = [], [], 0
        for raw, labels, sizes in parts:
            seen = views.rows(plan.views, start, start + len(raw))
            frame = views.frames(seen, labels, sizes, self.canvas_size, draws)
            image, label = views.sample(raw, labels, frame)
            images.append(image)
            maps.append(label)
            start += len(raw)
        image, label = torch.cat(images), torch.cat(maps)
        if self.config.structure_shift:
            change = plan.shift_NV.gather(1, label.flatten(1)).view_as(label)
            image = image + F.avg_pool2d(change[:, None], 3, stride=1, padding=1)
        return views.brighten(image, plan.views, draws), label


def _assemble(plan: Plan, image: Tensor, labels: Tensor, draws: Draws) -> Episode:
    groups, asked = plan.asked_GQ.shape
    members = plan.key_GM.shape[1]
    place_NV = plan.places_GV.repeat_interleave(members, dim=0)
    placed = place_NV.gather(1, labels.flatten(1)).view_as(labels)
    image_GQM = torch.arange(groups * members, device=image.device).view(groups, 1, members)
    image_P = image_GQM.expand(-1, asked, -1).flatten()
    place_GQ = plan.places_GV.gather(1, plan.asked_GQ)

    def each(values_GQ: Tensor) -> Tensor:
        return values_GQ.flatten().repeat_interleave(members)

    class_P = each(place_GQ)
    of_pair = placed[image_P]
    mask = of_pair == class_P[:, None, None]
    showing_GQM = (mask.flatten(1).sum(dim=1) >= MIN_PIXELS).view(groups, asked, 1, members)
    other_GMM = plan.key_GM[:, :, None] != plan.key_GM[:, None, :]
    candidates = (showing_GQM & other_GMM[:, None]).flatten(0, 2)
    value_V = torch.arange(len(PALETTE) + 1, device=image.device)
    shown = torch.where(each(plan.shown_all_GQ)[:, None], value_V > 0, value_V == class_P[:, None])
    small = of_pair[:, ::STUDENT_STRIDE, ::STUDENT_STRIDE]
    wanted = small == class_P[:, None, None]
    student = corrupt(wanted.float(), ((small > 0) & ~wanted).float(), draws)
    return Episode(
        image_N3HW=image,
        labels_NHW=placed,
        image_P=image_P,
        class_P=class_P,
        shown_PV=shown,
        candidates_PM=candidates,
        weight_P=candidates.any(dim=1).float(),
        student_P1HW=student[:, None],
        prompt_P=each(plan.prompt_GQ),
        answer_P=prompts.answer_row(mask),
        templates=plan.templates,
        reads=plan.reads,
        retrieves=plan.retrieves,
    )
