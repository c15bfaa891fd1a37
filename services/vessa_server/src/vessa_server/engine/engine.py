"""The engine: from requests to results, with caches and stage times.

Locks: one lock around all model work, so results do not depend on who else calls; the bank,
the caches and the image store lock themselves. With ``fuse`` off (the default on CPUs) every
image is computed in tensors of its own, so its result does not depend on its batch, bit for
bit; with ``fuse`` on, a batch is one forward.

Axes: P image-class pairs, K templates, C classes, H W space.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vessa_client import (
    AnyArray,
    BankListing,
    ClassDefinition,
    ClassResult,
    InvalidRequestError,
    SegmentationRequest,
    SegmentationResult,
    TemplateInfo,
    UInt8Array,
    VessaError,
)
from vessa_server.bank import BankError, TemplateBank
from vessa_server.cache import FeatureCache
from vessa_server.engine.images import ImageLimits, ImageStore
from vessa_server.engine.pipeline import Pipeline
from vessa_server.engine.plan import make_plan, student_probabilities
from vessa_server.engine.stages import StageClock
from vessa_server.engine.template_store import TemplateStore
from vessa_server.engine.work import Work
from vessa_server.model.vessa import Vessa

MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Limits and sizes of the engine."""

    max_image_bytes: int = 64 * MIB
    max_image_side: int = 4096
    max_classes: int = 32
    default_top_k: int = 7
    max_top_k: int = 7
    image_store_bytes: int = 512 * MIB
    feature_bytes: int = 2048 * MIB
    template_bytes: int = 512 * MIB
    fuse: bool = False
    turn: bool = True
    focus: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.default_top_k <= self.max_top_k:
            raise ValueError(
                f"default_top_k {self.default_top_k}: expected 1..max_top_k, {self.max_top_k}"
            )


class VessaEngine:
    """Segments images with one model, bank and cache; the in-process ``Segmenter``."""

    def __init__(
        self,
        model: Vessa,
        model_digest: str,
        bank: TemplateBank,
        cache: FeatureCache,
        settings: EngineSettings | None = None,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.model_digest = model_digest
        self.bank = bank
        self.cache = cache
        self.settings = settings or EngineSettings()
        limits = ImageLimits(
            max_bytes=self.settings.max_image_bytes, max_side=self.settings.max_image_side
        )
        self.images = ImageStore(limits, self.settings.image_store_bytes)
        self.templates = TemplateStore(
            model, model_digest, bank, cache, self.settings.template_bytes
        )
        self.pipeline = Pipeline(
            model,
            self.templates,
            feature_bytes=self.settings.feature_bytes,
            turn=self.settings.turn,
            focus=self.settings.focus,
        )
        self._lock = threading.Lock()

    def segment(self, request: SegmentationRequest) -> SegmentationResult:
        """Segment one image.

        Raises:
            VessaError: the request is wrong; names the field and what was expected.
        """
        outcome = self.segment_batch([request])[0]
        if isinstance(outcome, VessaError):
            raise outcome
        return outcome

    def segment_batch(
        self, requests: Sequence[SegmentationRequest]
    ) -> list[SegmentationResult | VessaError]:
        """Segment several images; a wrong request gives its error and harms no other."""
        outcomes: list[SegmentationResult | VessaError | None] = [None] * len(requests)
        works: dict[int, Work] = {}
        bank = self.bank.snapshot()
        for index, request in enumerate(requests):
            try:
                works[index] = self._accept(request, bank)
            except VessaError as error:
                error.request_id = request.request_id
                outcomes[index] = error
        groups = [list(works)] if self.settings.fuse and works else [[index] for index in works]
        with self._lock, torch.inference_mode():
            for group in groups:
                try:
                    self.pipeline.run([works[index] for index in group])
                    for index in group:
                        outcomes[index] = self._result(works[index])
                except BankError as error:
                    for index in group:
                        outcomes[index] = VessaError(
                            str(error), request_id=requests[index].request_id
                        )
        return [outcome for outcome in outcomes if outcome is not None]

    def add_template(
        self,
        image: AnyArray | bytes,
        labels: AnyArray,
        classes: Sequence[ClassDefinition],
        *,
        name: str = "",
    ) -> tuple[TemplateInfo, bool]:
        """Add an annotated image to the bank; see :meth:`TemplateBank.add`."""
        stored = self.images.resolve(image)
        if len(classes) > self.settings.max_classes:
            raise InvalidRequestError(
                f"classes: {len(classes)}, expected at most {self.settings.max_classes}",
                field="classes",
            )
        return self.bank.add(stored.pixels, labels, classes, name=name)

    def _accept(self, request: SegmentationRequest, bank: BankListing) -> Work:
        clock = StageClock()
        with clock.stage("decode_image"):
            image = self.images.resolve(request.image)
            volume = self.images.resolve_volume(request.volume, image)
        plan = make_plan(
            request,
            bank,
            default_top_k=self.settings.default_top_k,
            max_top_k=self.settings.max_top_k,
            max_classes=self.settings.max_classes,
        )
        student = None
        if request.student_mask is not None:
            height, width = image.pixels.shape[:2]
            student = student_probabilities(
                request.student_mask, (height, width), len(plan.classes)
            )
        return Work(request, image, plan, student, clock, volume)

    def _result(self, work: Work) -> SegmentationResult:
        assert work.prepared is not None
        with work.clock.stage("decode_mask"):
            answer = work.answer()
            probability = answer.probability_CHW
            best = probability.max(dim=0)
        explanations = work.explanations or [""] * len(work.plan.classes)
        return SegmentationResult(
            request_id=work.request.request_id,
            labels=best.indices.to(torch.uint8).numpy(),
            confidence=_to_byte(best.values),
            classes=tuple(
                ClassResult(class_name=c.name, predicted_iou=iou, explanation=words)
                for c, iou, words in zip(
                    work.plan.classes, answer.told_iou(), explanations, strict=True
                )
            ),
            templates=work.prepared.templates,
            stage_ms=work.clock.milliseconds(),
            model_digest=self.model_digest,
            bank_version=work.plan.bank_version,
            image_features_cached=work.cached,
            template_features_cached=work.templates_cached,
            image_sha256=work.image.sha256,
            probabilities=_to_byte(probability[1:]) if work.request.return_probabilities else None,
        )


def _to_byte(probability: Tensor) -> UInt8Array:
    array: UInt8Array = (probability * 255).round().to(torch.uint8).numpy()
    return array
