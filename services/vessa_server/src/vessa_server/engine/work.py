"""A request on its way through the stages, and what is kept of it for the next one.

Axes: P image-class pairs, C classes, H W space.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vessa_client import SegmentationRequest, TemplateInfo, TemplateUse
from vessa_server.engine.images import StoredImage
from vessa_server.engine.pieces import Pieces
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
# VESSA's share of the prompt that is made of a label map.
LABEL_MAP_SHARE = 0.08
# Shares of a student's probabilities, of VESSA's repair of them, and of its own answer.
POOL = (0.5, 0.25, 0.25)


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
    pieces: Pieces
    # The template of each class that the VLM reads. Its prompt is kept once, with the template.
    read: tuple[TemplateInfo, ...]
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
        """What VESSA found, without what the templates make doubtful."""
        assert self.prepared is not None
        assert self.decoded is not None
        if self.own is None or self.own[0] is not self.decoded:
            answer = Answer.of(self.prepared.pieces.doubt(self._logits()))
            self.own = self.decoded, answer
        return self.own[1]

    def answer(self) -> Answer:
        """What is told: VESSA's own answer, or what it makes of a student's mask."""
        if self.prompt_CHW is None:
            return self.own_answer()
        return self._pooled() if self.told_how_sure else self._repaired()

    def _pooled(self) -> Answer:
        """A student's probabilities, their repair, and VESSA's own answer together.

        None of them is best all through a training; a weighted mean is better than each. The
        weights were chosen on unlabelled slices of ACDC with patient 38 annotated, for teachers
        early, in the middle of, and late in a training.
        """
        assert self.student_CHW is not None
        told = filled_up(self.student_CHW)
        own = filled_up(self._kept_own())
        # A student tells itself in how many pieces a structure comes.
        repaired = with_background(self._logits())
        student_share, repair_share, own_share = POOL
        pooled_CHW = student_share * told + repair_share * repaired + own_share * own
        return Answer(pooled_CHW, expected_iou(pooled_CHW))

    def _repaired(self) -> Answer:
        """The repair of a label map; where VESSA is unsure of a structure, the prompt stays."""
        assert self.prompt_CHW is not None
        assert self.decoded is not None
        logits_CHW = self._logits()
        iou_C = Answer.of(logits_CHW).iou_C
        unsure_C = self.decoded.iou_P < KEEP_BELOW
        kept_CHW = torch.logit(self.prompt_CHW[unsure_C], eps=1e-6)
        logits_CHW[unsure_C] = kept_CHW.clamp(-KEPT_LOGIT, KEPT_LOGIT)
        return Answer(with_background(logits_CHW), iou_C)

    @property
    def told_how_sure(self) -> bool:
        """Whether there is a student's mask of probabilities."""
        mask = self.request.student_mask
        return mask is not None and mask.ndim == 3

    def keep_own(self) -> None:
        """Keep VESSA's own answer, which was decoded without a student's mask."""
        assert self.prepared is not None
        own_CHW = (self.own_answer().probability_CHW[1:] * 255).round().to(torch.uint8)
        self.prepared = replace(self.prepared, own_CHW=own_CHW)

    def mix(self) -> None:
        """Make the decoder's prompt, where there is a student's mask."""
        if self.student_CHW is None:
            return
        self.prompt_CHW = (
            self.student_CHW
            if self.told_how_sure
            else torch.lerp(self.student_CHW, self._kept_own(), LABEL_MAP_SHARE)
        )

    def take(self, other: Work) -> None:
        """Go on with what another try found."""
        self.prepared, self.decoded = other.prepared, other.decoded
        self.prompt_CHW, self.own = other.prompt_CHW, other.own

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


def filled_up(maps_CHW: Tensor) -> Tensor:
    """Probabilities of the classes to those with background, which add up to one."""
    background_1HW = (1 - maps_CHW.sum(dim=0, keepdim=True)).clamp(min=0)
    full_CHW = torch.cat([background_1HW, maps_CHW])
    return full_CHW / full_CHW.sum(dim=0)
