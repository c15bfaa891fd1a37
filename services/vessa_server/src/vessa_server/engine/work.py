"""A request on its way through the stages, and what is kept of it for the next one.

Axes: P image-class pairs, C classes, H W space.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vessa_client import SegmentationRequest, TemplateInfo, TemplateUse
from vessa_server.engine import core, label_maps
from vessa_server.engine.images import StoredImage
from vessa_server.engine.plan import Plan
from vessa_server.engine.quality import Answer, expected_iou, with_background
from vessa_server.engine.stages import StageClock
from vessa_server.engine.template_store import Focus
from vessa_server.model.preprocess import Canvas
from vessa_server.model.vessa import Conditioned, Decoded, ImageFeatures

# Logit of a class outside of the window of a second look.
OUTSIDE_LOGIT = -10.0
# Predicted IoU below which a structure stays as the prompt has it, and how sure that is.
KEEP_BELOW, KEPT_LOGIT = 0.5, 2.0
# VESSA's least and largest share of the prompt; between them one half less the student's own IoU.
OWN_SHARE_RANGE = (0.04, 0.4)
# The same for label maps, which do not say how sure they are.
LABEL_MAP_SHARE = 0.08
# How much more of VESSA is tried, and by how much the decoder must expect that to be better.
MORE_OWN, MORE_OWN_MARGIN = 0.2, 0.05


@dataclass(frozen=True)
class View:
    """An image, or the part of it that a second look shows, and its features."""

    canvas: Canvas
    features: ImageFeatures

    @property
    def nbytes(self) -> int:
        """Bytes of the features."""
        return self.features.nbytes

    @property
    def focused(self) -> bool:
        """Whether this is a second look."""
        return self.canvas.crop is not None


@dataclass(frozen=True)
class Prepared:
    """Steps 1 to 4 of one image for its classes, kept between requests."""

    view: View
    conditioned: Conditioned
    templates: tuple[TemplateUse, ...]
    # The template of each class that the VLM reads. Its prompt is kept once, with the template.
    read: tuple[TemplateInfo, ...]
    # Where most slices of its volume show each class, (C, H, W); None of an image alone.
    core_CHW: Tensor | None = None
    # VESSA's own answer: probabilities of the classes, 255 for 1, (C, H, W).
    own_CHW: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept for it alone."""
        shared = self.view.canvas.crop is None and not self.view.canvas.turns
        view = 0 if shared else self.view.nbytes  # upright whole images are kept once
        answer = 0 if self.own_CHW is None else self.own_CHW.nbytes
        return self.conditioned.nbytes + view + answer


@dataclass
class Work:
    """A request on its way through the stages."""

    request: SegmentationRequest
    image: StoredImage
    plan: Plan
    # The student's probabilities of the classes, and what of them the decoder is given.
    student_CHW: Tensor | None
    clock: StageClock
    # Slices of the volume that the image is a slice of; empty for an image alone.
    volume: tuple[StoredImage, ...] = ()
    prompt_CHW: Tensor | None = None
    prepared: Prepared | None = None
    cached: bool = False
    templates_cached: bool = True
    decoded: Decoded | None = None
    explanations: list[str] = field(default_factory=list)
    # The answer that was made of what was decoded; several steps ask for it.
    own: tuple[Decoded, Answer] | None = None

    @property
    def height(self) -> int:
        """Of the image, in pixels."""
        return int(self.image.pixels.shape[0])

    @property
    def width(self) -> int:
        """Of the image, in pixels."""
        return int(self.image.pixels.shape[1])

    def key(self) -> tuple[Hashable, ...]:
        """All that steps 1 to 4 depend on."""
        return self.image.sha256, *self.volume_key()

    def image_key(self) -> tuple[Hashable, ...]:
        """All that the features of the whole image depend on."""
        return "image", self.image.sha256, bool(self.plan.text)

    def volume_key(self) -> tuple[Hashable, ...]:
        """The same, without the image."""
        return tuple(image.sha256 for image in self.volume), self.plan.key()

    def neighbour(self, image: StoredImage) -> Work:
        """Another slice of the same volume, without a student's mask."""
        request = replace(self.request, student_mask=None)
        return Work(request, image, self.plan, None, self.clock, self.volume)

    def focus_on(self, view: View) -> Focus:
        """Around which classes templates are shown beside ``view``."""
        return tuple(c.name for c in self.plan.classes) if view.focused else None

    def quality(self) -> float:
        """Mean estimated IoU of the classes, without a student's mask."""
        return float(self.own_answer().iou_C.mean())

    def repair_quality(self) -> float:
        """Mean IoU that the decoder predicts: it learned on students' masks how good it is."""
        assert self.decoded is not None
        return float(self.decoded.iou_P.mean())

    def own_answer(self) -> Answer:
        """What VESSA found, without what the volume makes doubtful."""
        assert self.prepared is not None
        assert self.decoded is not None
        if self.own is None or self.own[0] is not self.decoded:
            answer = Answer.of(core.doubt_outside(self._logits(), self.prepared.core_CHW))
            self.own = self.decoded, answer
        return self.own[1]

    def answer(self) -> Answer:
        """What is told. Where VESSA is unsure of a student's structure, the prompt stays."""
        if self.prompt_CHW is None:
            return self.own_answer()
        assert self.decoded is not None
        assert self.prepared is not None
        assert self.student_CHW is not None
        logits_CHW = self._logits()
        iou_C = Answer.of(logits_CHW).iou_C
        unsure_C = self.decoded.iou_P < KEEP_BELOW
        kept_CHW = torch.logit(self.prompt_CHW, eps=1e-6).clamp(-KEPT_LOGIT, KEPT_LOGIT)
        logits_CHW[unsure_C] = kept_CHW[unsure_C]
        if self.told_how_sure:
            core_CHW = self.prepared.core_CHW
            sure_CHW = core.doubt_outside(logits_CHW, core_CHW, self.student_CHW)
            return Answer(with_background(sure_CHW), iou_C)
        return Answer(label_maps.heard(logits_CHW, kept_CHW, self.student_CHW), iou_C)

    @property
    def told_how_sure(self) -> bool:
        """Whether there is a student's mask of probabilities."""
        mask = self.request.student_mask
        return mask is not None and mask.ndim == 3

    def of_volume(self, core_CHW: Tensor) -> None:
        """Say where most slices of its volume show each class."""
        assert self.prepared is not None
        self.prepared, self.own = replace(self.prepared, core_CHW=core_CHW), None

    def keep_own(self) -> None:
        """Keep VESSA's own answer, which was decoded without a student's mask."""
        assert self.prepared is not None
        own_CHW = (self.own_answer().probability_CHW[1:] * 255).round().to(torch.uint8)
        self.prepared = replace(self.prepared, own_CHW=own_CHW)

    def mix(self) -> None:
        """Make the decoder's prompt, where there is a student's mask."""
        if self.student_CHW is None:
            return
        own_CHW = self._kept_own()
        self.prompt_CHW = (
            mixed(self.student_CHW, own_CHW)
            if self.told_how_sure
            else torch.lerp(self.student_CHW, own_CHW, LABEL_MAP_SHARE)
        )

    def take(self, other: Work) -> None:
        """Go on with what another try found."""
        self.prepared, self.decoded = other.prepared, other.decoded
        self.prompt_CHW, self.own = other.prompt_CHW, other.own

    def with_more_of_its_own(self) -> Work:
        """The same work, with more of VESSA's own answer in the prompt."""
        assert self.prompt_CHW is not None
        own_CHW = self._kept_own()
        return replace(self, prompt_CHW=torch.lerp(self.prompt_CHW, own_CHW, MORE_OWN))

    def _kept_own(self) -> Tensor:
        """Probabilities of the classes in VESSA's own answer, (C, H, W)."""
        assert self.prepared is not None
        assert self.prepared.own_CHW is not None
        return self.prepared.own_CHW.float() / 255

    def _logits(self) -> Tensor:
        """Of the classes at the image's size, (C, H, W)."""
        assert self.decoded is not None
        assert self.prepared is not None
        canvas = self.prepared.view.canvas
        return canvas.restore(self.decoded.class_logits()[:, 0], outside=OUTSIDE_LOGIT)


def mixed(student_CHW: Tensor, own_CHW: Tensor) -> Tensor:
    """The student's probabilities with some of VESSA's own.

    VESSA's share is small where the student is sure of a structure, larger where it is not. The
    shares were chosen on ACDC's validation patients, for UniMatch V2's teacher at several times
    of a run and for corrupted label maps.
    """
    background_1HW = (1 - student_CHW.sum(dim=0, keepdim=True)).clamp(min=0)
    sure_C = expected_iou(torch.cat([background_1HW, student_CHW]))
    share_C11 = (0.5 - sure_C).clamp(*OWN_SHARE_RANGE)[:, None, None]
    return torch.lerp(student_CHW, own_CHW, share_C11)
