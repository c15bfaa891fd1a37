"""The unit of work: one look at one image, and what it gives.

Axes: C classes, H W half of the canvas.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from vessa_client import TemplateInfo, TemplateUse
from vessa_server.bank import TemplateBank
from vessa_server.features.templates import Focus
from vessa_server.inference.plan import Plan
from vessa_server.inference.scan import Scan
from vessa_server.model.preprocess import Canvas
from vessa_server.runtime.clock import StageClock
from vessa_server.runtime.protocol import Floats


@dataclass(frozen=True)
class Look:
    """An image on a canvas, segmented into all classes of a plan.

    Attributes:
        scan: the image.
        canvas: which part of it, and how it is turned.
        plan: classes, templates and rules.
        clock: of the request.
        prompt_CHW: a student's probabilities on the canvas.
        explain: ask the VLM for words in place of masks.
    """

    scan: Scan
    canvas: Canvas
    plan: Plan
    clock: StageClock = field(compare=False, repr=False)
    prompt_CHW: Floats | None = None
    explain: bool = False

    @property
    def focus(self) -> Focus:
        """Around which classes templates are shown."""
        close = self.canvas.crop is not None
        return tuple(c.name for c in self.plan.classes) if close else None

    @property
    def reads(self) -> bool:
        """Whether the VLM is asked."""
        return bool(self.plan.text) or self.explain

    @property
    def image_key(self) -> Hashable:
        """All that the image's features depend on."""
        return "image", self.scan.key, self.canvas, self.reads

    @property
    def condition_key(self) -> Hashable:
        """All that steps 1 to 4 depend on."""
        return "conditioned", self.scan.key, self.canvas, self.plan.condition_key


@dataclass(frozen=True)
class TemplateLook:
    """A template that was added, to be encoded before a request needs it."""

    bank: TemplateBank
    info: TemplateInfo
    focus: Focus


AnyLook = Look | TemplateLook


@dataclass(frozen=True)
class Prediction:
    """What a look gives.

    Attributes:
        logits_CHW: of the classes; empty where words were asked for.
        iou_C: predicted IoU.
        templates: used, with their similarity.
        cached: no image was encoded or conditioned for it.
        templates_cached: no template was encoded for it.
        explanations: words for each class, where asked for.
    """

    logits_CHW: Floats
    iou_C: Floats
    templates: tuple[TemplateUse, ...]
    cached: bool
    templates_cached: bool
    explanations: tuple[str, ...] = ()
