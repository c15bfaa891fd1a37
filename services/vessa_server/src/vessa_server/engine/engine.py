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
from dataclasses import dataclass, field

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
    TemplateUse,
    UInt8Array,
    VessaError,
)
from vessa_server.bank import BankError, TemplateBank
from vessa_server.cache import FeatureCache
from vessa_server.engine.images import ImageLimits, ImageStore, StoredImage
from vessa_server.engine.lru import ByteLru
from vessa_server.engine.plan import Plan, make_plan, student_probabilities
from vessa_server.engine.stages import StageClock
from vessa_server.engine.template_store import TemplateStore
from vessa_server.model import preprocess
from vessa_server.model.preprocess import Canvas
from vessa_server.model.reasoner import PromptPrefix
from vessa_server.model.vessa import Conditioned, Decoded, ImageFeatures, TemplateFeatures, Vessa

EXPLANATION_TOKENS = 24
MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Limits and sizes of the engine."""

    max_image_bytes: int = 64 * MIB
    max_image_side: int = 4096
    max_classes: int = 32
    default_top_k: int = 2
    max_top_k: int = 7
    image_store_bytes: int = 512 * MIB
    feature_bytes: int = 2048 * MIB
    template_bytes: int = 512 * MIB
    fuse: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.default_top_k <= self.max_top_k:
            raise ValueError(
                f"default_top_k {self.default_top_k}: expected 1..max_top_k, {self.max_top_k}"
            )


@dataclass
class _Work:
    """A request on its way through the stages."""

    request: SegmentationRequest
    image: StoredImage
    canvas: Canvas
    plan: Plan
    student: Tensor | None
    clock: StageClock
    features: ImageFeatures | None = None
    prepared: _Prepared | None = None
    cached: bool = False
    templates_cached: bool = True
    decoded: Decoded | None = None
    explanations: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Prepared:
    """Steps 1 to 4 of one image for its classes, kept between requests."""

    conditioned: Conditioned
    templates: tuple[TemplateUse, ...]
    prefix: PromptPrefix

    @property
    def nbytes(self) -> int:
        return self.conditioned.nbytes + self.prefix.nbytes


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
        self.features: ByteLru[ImageFeatures | _Prepared] = ByteLru(self.settings.feature_bytes)
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
        works: dict[int, _Work] = {}
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
                    self._compute([works[index] for index in group])
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

    def _accept(self, request: SegmentationRequest, bank: BankListing) -> _Work:
        clock = StageClock()
        with clock.stage("decode_image"):
            image = self.images.resolve(request.image)
        plan = make_plan(
            request,
            bank,
            default_top_k=self.settings.default_top_k,
            max_top_k=self.settings.max_top_k,
            max_classes=self.settings.max_classes,
        )
        height, width = image.pixels.shape[:2]
        canvas = Canvas(height, width, self.model.config.image_size)
        student = None
        if request.student_mask is not None:
            size = self.model.config.image_size // 4
            student = student_probabilities(
                request.student_mask, (height, width), len(plan.classes), canvas, size
            )
        return _Work(request, image, canvas, plan, student, clock)

    def _compute(self, works: list[_Work]) -> None:
        for work in works:
            features = self.features.get(("image", work.image.sha256))
            prepared = self.features.get(("prepared", work.image.sha256, work.plan.key()))
            work.features = features if isinstance(features, ImageFeatures) else None
            work.prepared = prepared if isinstance(prepared, _Prepared) else None
            work.cached = work.features is not None and work.prepared is not None
        self._encode([work for work in works if work.features is None])
        for work in works:
            if work.prepared is None:
                self._prepare(work)
            if work.request.explain:
                self._explain(work)
        self._decode(works)

    def _encode(self, works: list[_Work]) -> None:
        if not works:
            return
        clocks = [work.clock for work in works]
        with StageClock.shared(clocks, "encode_image"):
            unit = torch.stack(
                [work.canvas.place(preprocess.to_unit_range(work.image.pixels)) for work in works]
            )
            view = preprocess.vlm_view(unit, self.model.config.vlm.image_size)
            features = self.model.encode_image(preprocess.normalise(unit, self.model.config), view)
        for index, work in enumerate(works):
            work.features = features.select(torch.tensor([index]))
            self.features.put(("image", work.image.sha256), work.features, work.features.nbytes)

    def _prepare(self, work: _Work) -> None:
        """Steps 1 to 4 for all classes of one image."""
        assert work.features is not None
        count = len(work.plan.classes)
        image_P = torch.zeros(count, dtype=torch.long)
        computed = self.templates.computed
        chosen, used = self._retrieve(work)
        with work.clock.stage("template_features"):
            templates = TemplateFeatures.concatenate(
                [
                    self.templates.features(info, work.plan.classes[c].name)
                    for c in range(count)
                    for info in chosen[c]
                ]
            )
            prefix = PromptPrefix.concatenate(
                [
                    self.templates.prefix(chosen[c][0], work.plan.classes[c], work.plan.text)
                    for c in range(count)
                ]
            )
        work.templates_cached = self.templates.computed == computed
        with work.clock.stage("match"):
            matched = self.model.match(work.features, image_P, templates)
        with work.clock.stage("remember"):
            top = self.model.remember(work.features, image_P, templates)
        with work.clock.stage("reason"):
            seg, _ = self.model.reason(prefix, work.features, image_P)
        conditioned = Conditioned(
            top, matched.prior_P1HW, matched.points_PN2, matched.labels_PN, seg
        )
        work.prepared = _Prepared(conditioned, used, prefix)
        key = ("prepared", work.image.sha256, work.plan.key())
        self.features.put(key, work.prepared, work.prepared.nbytes)

    def _retrieve(self, work: _Work) -> tuple[list[list[TemplateInfo]], tuple[TemplateUse, ...]]:
        """The best ``top_k`` templates of each class; the best one again where there are fewer."""
        assert work.features is not None
        chosen: list[list[TemplateInfo]] = []
        used: list[TemplateUse] = []
        most = min(work.plan.top_k, max(len(c) for c in work.plan.candidates))
        for definition, candidates in zip(work.plan.classes, work.plan.candidates, strict=True):
            with work.clock.stage("template_features"):
                embeddings = torch.cat(
                    [self.templates.features(t, definition.name).embedding_K2D for t in candidates]
                )
            with work.clock.stage("retrieve"):
                scores = self.model.matcher.retrieval_scores(work.features.match_BDHW, embeddings)[
                    0
                ]
                best = scores.topk(min(most, len(candidates)))
            order = best.indices.tolist()
            for index, score in zip(order, best.values.tolist(), strict=True):
                used.append(
                    TemplateUse(
                        template_id=candidates[index].template_id,
                        class_name=definition.name,
                        similarity=score,
                    )
                )
            order += order[:1] * (most - len(order))
            chosen.append([candidates[index] for index in order])
        return chosen, tuple(used)

    def _explain(self, work: _Work) -> None:
        assert work.features is not None
        assert work.prepared is not None
        with work.clock.stage("explain"):
            image_P = torch.zeros(len(work.plan.classes), dtype=torch.long)
            target = work.features.visual_tokens().select(image_P)
            work.explanations = self.model.reasoner.explain(
                work.prepared.prefix, target, EXPLANATION_TOKENS
            )

    def _decode(self, works: list[_Work]) -> None:
        features = ImageFeatures.concatenate([w.features for w in works if w.features])
        conditioned = Conditioned.concatenate([w.prepared.conditioned for w in works if w.prepared])
        counts = [len(work.plan.classes) for work in works]
        image_P = torch.arange(len(works)).repeat_interleave(torch.tensor(counts))
        students, has = [], []
        size = self.model.config.image_size // 4
        for work, count in zip(works, counts, strict=True):
            has.append(torch.full((count,), work.student is not None))
            students.append(
                torch.zeros(count, 1, size, size) if work.student is None else work.student
            )
        any_student = any(work.student is not None for work in works)
        with StageClock.shared([work.clock for work in works], "decode_mask"):
            decoded = self.model.decode(
                features,
                image_P,
                conditioned,
                torch.cat(students) if any_student else None,
                torch.cat(has) if any_student else None,
            )
        start = 0
        for work, count in zip(works, counts, strict=True):
            rows = slice(start, start + count)
            work.decoded = Decoded(
                decoded.logits_P1HW[rows], decoded.iou_P[rows], decoded.presence_P[rows]
            )
            start += count

    def _result(self, work: _Work) -> SegmentationResult:
        assert work.decoded is not None
        assert work.prepared is not None
        with work.clock.stage("decode_mask"):
            logits_CHW = work.canvas.restore(work.decoded.class_logits()[:, 0])
            background = torch.zeros_like(logits_CHW[:1])
            probability = torch.softmax(torch.cat([background, logits_CHW]), dim=0)
            best = probability.max(dim=0)
        explanations = work.explanations or [""] * len(work.plan.classes)
        return SegmentationResult(
            request_id=work.request.request_id,
            labels=best.indices.to(torch.uint8).numpy(),
            confidence=_to_byte(best.values),
            classes=tuple(
                ClassResult(class_name=c.name, predicted_iou=iou, explanation=words)
                for c, iou, words in zip(
                    work.plan.classes, work.decoded.iou_P.tolist(), explanations, strict=True
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
