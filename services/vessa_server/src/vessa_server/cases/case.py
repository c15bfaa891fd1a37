"""One image of a request, or one slice of a volume, on its way to an answer.

:func:`segment` is a generator: it yields the looks that it needs next, and is sent what they
give. So whoever runs it may put looks of other requests between them, and run some together.

Axes: C classes, H W space.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Generator, Hashable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from vessa_client import AnyArray, TemplateUse, UInt8Array
from vessa_server.cases import students
from vessa_server.cases.frame import Frame
from vessa_server.cases.points import Marks
from vessa_server.features.lru import ByteLru
from vessa_server.inference.look import AnyLook, Look, Prediction
from vessa_server.inference.plan import Plan
from vessa_server.inference.scan import Scan
from vessa_server.model.preprocess import Canvas
from vessa_server.policy.answers import Answer, Floats
from vessa_server.runtime.clock import StageClock


@dataclass(frozen=True)
class Shared:
    """Work that several cases wait for: it is done once."""

    key: Hashable
    work: Callable[[], Steps]


Steps = Generator[list[AnyLook] | Shared, Any, Any]


@dataclass(frozen=True)
class Own:
    """VESSA's own answer, made without a student's mask.

    Attributes:
        canvas: on which the image is seen.
        probability_CHW: of the classes on the frame, 255 for 1.
        logits_CHW: of the classes, on the canvas.
        iou_C: estimated.
        templates: used.
    """

    canvas: Canvas
    probability_CHW: UInt8Array
    logits_CHW: Floats
    iou_C: tuple[float, ...]
    templates: tuple[TemplateUse, ...]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.probability_CHW.nbytes + self.logits_CHW.nbytes


@dataclass
class Case:
    """An image, what is asked of it, and what is known of it.

    Attributes:
        scan: the image.
        plan: classes, templates and rules.
        memory: what earlier requests found out.
        canvas_size: side of the model's canvas.
        volume: slices of the volume that the image is a slice of; empty for an image alone.
        canvas: where to look, where the request says so.
        student: a student's mask, checked.
        marks: points and boxes, checked.
        ended: set once nobody waits for the answer.
        cached: no image was encoded or conditioned for it so far.
        templates_cached: no template was encoded for it so far.
    """

    scan: Scan
    plan: Plan
    memory: ByteLru[Any]
    canvas_size: int
    volume: tuple[Scan, ...] = ()
    canvas: Canvas | None = None
    student: AnyArray | None = None
    marks: Marks | None = None
    explain: bool = False
    clock: StageClock = field(default_factory=StageClock)
    ended: threading.Event = field(default_factory=threading.Event)
    cached: bool = True
    templates_cached: bool = True

    def __post_init__(self) -> None:
        side = max(self.plan.policy.frame_side, self.canvas_size)
        self.frame = Frame.of(self.scan.height, self.scan.width, side)

    @functools.cached_property
    def student_on_frame(self) -> Floats:
        """The student's probabilities on the frame."""
        assert self.student is not None
        return students.on_frame(self.student, len(self.plan.classes), self.frame)

    def prepare(self) -> None:
        """Do now, in any thread, what takes long of a large image and will surely be needed."""
        if self.own is None:
            self.scan.prepare()
        if self.student is not None:
            _ = self.student_on_frame

    @property
    def own(self) -> Own | None:
        """VESSA's own answer, if it is kept."""
        held = self.memory.get(("own", self.key))
        return held if isinstance(held, Own) else None

    @property
    def nbytes(self) -> int:
        """Of the arrays that the request holds; slices that are equal count once."""
        pixels = {scan.sha256: scan.nbytes for scan in (*self.volume, self.scan)}
        return sum(pixels.values()) + (0 if self.student is None else self.student.nbytes)

    @property
    def key(self) -> Hashable:
        """All that its own answer depends on."""
        return self.scan.key, self.volume_key, self.canvas

    @property
    def volume_key(self) -> Hashable:
        """The same, without the image."""
        return tuple(scan.key for scan in self.volume), self.plan.key

    @property
    def whole(self) -> Canvas:
        """The canvas of the whole image, upright."""
        return Canvas(self.scan.height, self.scan.width, self.canvas_size)

    def neighbour(self, scan: Scan) -> Case:
        """Another slice of the same volume, without a student's mask, points and boxes."""
        return replace(self, scan=scan, student=None, marks=None, explain=False)

    def look(self, canvas: Canvas, prompt_CHW: Floats | None = None) -> Look:
        """One look at it; ``prompt_CHW`` is on the frame."""
        placed = None
        if prompt_CHW is not None:
            placed = self.frame.place(prompt_CHW, canvas, self.canvas_size // 2)
        return Look(self.scan, canvas, self.plan, self.clock, placed)

    def seen(self, prediction: Prediction) -> Prediction:
        """Note what a look cost."""
        self.cached &= prediction.cached
        self.templates_cached &= prediction.templates_cached
        return prediction

    def logits(self, prediction: Prediction, canvas: Canvas) -> Floats:
        """Of the classes, on the frame."""
        outside = self.plan.policy.outside_logit
        return self.frame.restore(prediction.logits_CHW, canvas, outside=outside)

    def own_answer(self, prediction: Prediction, canvas: Canvas) -> Answer:
        """What VESSA segments without a student, on the frame."""
        return Answer.of(self.logits(prediction, canvas))

    def keep(self, prediction: Prediction, canvas: Canvas) -> Own:
        """Keep VESSA's own answer."""
        answer = self.own_answer(prediction, canvas)
        own = Own(
            canvas,
            to_bytes(answer.probability_CHW[1:]),
            prediction.logits_CHW,
            tuple(answer.reported_iou()),
            prediction.templates,
        )
        self.memory.put(("own", self.key), own, own.nbytes)
        return own


def to_bytes(probability: Floats) -> UInt8Array:
    """Probabilities as 0..255."""
    rounded: UInt8Array = np.rint(probability * np.float32(255)).astype(np.uint8)
    return rounded
