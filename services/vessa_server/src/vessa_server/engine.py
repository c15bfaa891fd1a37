"""The engine: everything that segments, behind one object, without queue or network.

What locks what: requests are opened and finished in any thread; looks run in one thread at a
time. Bank, caches and memories lock themselves.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from vessa_client import (
    AnyArray,
    ClassDefinition,
    ImageReference,
    InvalidRequestError,
    OverloadedError,
    SegmentationRequest,
    SegmentationResult,
    TemplateInfo,
    files,
)
from vessa_client._types import Window
from vessa_client.wire import check_window
from vessa_server.bank import Banks, TemplateBank
from vessa_server.cache import FeatureCache
from vessa_server.cases import students
from vessa_server.cases.case import Case, Shared, Steps
from vessa_server.cases.images import ImageLimits, ImageStore, StoredImage, check_same_size
from vessa_server.cases.points import Marks
from vessa_server.cases.segment import finish, segment
from vessa_server.engine_settings import EngineSettings
from vessa_server.features.lru import ByteLru
from vessa_server.features.templates import TemplateFeatureStore
from vessa_server.inference.five_steps import FiveSteps
from vessa_server.inference.look import AnyLook, Prediction, TemplateLook
from vessa_server.inference.plan import Limits, make_plan
from vessa_server.inference.scan import Scan
from vessa_server.model.preprocess import Canvas
from vessa_server.runtime.clock import StageClock
from vessa_server.runtime.protocol import Runtime


class VessaEngine:
    """Segments images with one runtime, bank and cache; the in-process ``Segmenter``."""

    def __init__(
        self,
        runtime: Runtime,
        banks: Banks,
        cache: FeatureCache,
        settings: EngineSettings | None = None,
    ) -> None:
        self.runtime = runtime
        self.banks = banks
        self.cache = cache
        self.settings = settings or EngineSettings()
        self.info = runtime.info
        self.limits = Limits(
            self.settings.default_top_k, self.settings.max_top_k, self.settings.max_classes
        )
        limits = ImageLimits(
            max_bytes=self.settings.max_image_bytes, max_side=self.settings.max_image_side
        )
        self.images = ImageStore(limits, self.settings.image_store_bytes)
        self.memory: ByteLru[Any] = ByteLru(self.settings.feature_bytes)
        self.templates = TemplateFeatureStore(runtime, cache, self.settings.template_bytes)
        self.five_steps = FiveSteps(runtime, self.templates, self.memory)
        self._lock = threading.Lock()

    @property
    def bank(self) -> TemplateBank:
        """The default bank."""
        return self.banks.get("")

    def segment(self, request: SegmentationRequest) -> SegmentationResult:
        """Segment one image.

        Raises:
            VessaError: the request is wrong; names the field and what was expected.
        """
        case = self.open(request)
        with self._lock:
            draft, words = self._drive(segment(case))
        return self.finish(request, case, draft, words)

    def open(self, request: SegmentationRequest, volume: Sequence[StoredImage] = ()) -> Case:
        """Decode and check a request.

        Args:
            request: of one image.
            volume: slices of its volume that are decoded already.

        Raises:
            VessaError: it is wrong, or over a limit.
        """
        check_window(request.window)
        clock = StageClock()
        with clock.stage("decode_image"):
            image = self._held(request, volume) or self.images.resolve(request.image)
            volume = self._voters(request, image, volume)
        bank = self.banks.get(request.bank)
        policy = self.settings.policy.without(request.policy_off)
        plan = make_plan(request, bank, policy, self.limits)
        height, width = (int(n) for n in image.pixels.shape[:2])
        if request.student_mask is not None:
            students.check(request.student_mask, (height, width), len(plan.classes))
        marks = Marks.of(request.points, request.boxes, plan.names, (height, width))
        self.check_work(height * width, len(plan.classes), max(1, len(volume)))
        canvas = None
        if request.region is not None:
            canvas = Canvas.of(request.region, height, width, self.info.canvas)
        return Case(
            scan=Scan(image.sha256, image.pixels, request.window),
            plan=plan,
            memory=self.memory,
            canvas_size=self.info.canvas,
            volume=tuple(Scan(s.sha256, s.pixels, request.window) for s in volume),
            canvas=canvas,
            student=request.student_mask,
            marks=marks,
            explain=request.explain,
            clock=clock,
        )

    def check_work(self, pixels: int, classes: int, slices: int) -> None:
        """Refuse what would keep everybody waiting.

        Raises:
            OverloadedError: more pixels, classes and slices than the limit.
        """
        if pixels * classes * slices > self.settings.max_request_pixels:
            raise OverloadedError(
                f"image: {pixels} pixels x {classes} classes x {slices} slices, expected at most "
                f"{self.settings.max_request_pixels} (VESSA_MAX_REQUEST_PIXELS); ask for fewer "
                "classes or a smaller image",
                field="image",
            )

    @staticmethod
    def _held(request: SegmentationRequest, volume: Sequence[StoredImage]) -> StoredImage | None:
        """The image, where it is a slice that is decoded already."""
        if not isinstance(request.image, ImageReference):
            return None
        digest = request.image.sha256
        return next((slice_ for slice_ in volume if slice_.sha256 == digest), None)

    def _voters(
        self, request: SegmentationRequest, image: StoredImage, volume: Sequence[StoredImage]
    ) -> Sequence[StoredImage]:
        """The slices of a volume that are asked where its structures are."""
        if request.volume and (request.volume_ref is not None or volume):
            raise InvalidRequestError(
                "volume: expected slices or volume_ref, not both", field="volume"
            )
        if request.volume_ref is not None:
            volume = self.images.volume(request.volume_ref)
        if not volume:
            return self.images.resolve_volume(request.volume, image)
        for slice_ in volume:
            check_same_size(slice_, image)
        most = self.settings.policy.volume.slices
        return [volume[index] for index in files.spread(len(volume), most)]

    def finish(
        self, request: SegmentationRequest, case: Case, draft: Any, words: Sequence[str]
    ) -> SegmentationResult:
        """Bring a case's answer to the image's size."""
        result = finish(
            case,
            draft,
            words,
            request_id=request.request_id,
            probabilities=request.return_probabilities,
        )
        return replace(result, model_digest=self.info.model_digest)

    def add_template(
        self,
        image: AnyArray | bytes,
        labels: AnyArray,
        classes: Sequence[ClassDefinition],
        *,
        name: str = "",
        bank: str = "",
        window: Window | None = None,
    ) -> tuple[TemplateInfo, bool]:
        """Add an annotated image to a bank, which is made where there is none of that name.

        See :meth:`TemplateBank.add`.
        """
        stored = self.images.resolve(image)
        if len(classes) > self.settings.max_classes:
            raise InvalidRequestError(
                f"classes: {len(classes)}, expected at most {self.settings.max_classes}",
                field="classes",
            )
        return self.banks.get(bank, create=True).add(
            stored.pixels, labels, classes, name=name, window=window
        )

    def encode_templates(self, bank: str, templates: Sequence[TemplateInfo]) -> Steps:
        """Encode templates, whole and close, before a request needs them."""
        found = self.banks.get(bank)
        for info in templates:
            for focus in (None, info.class_names):
                yield [TemplateLook(found, info, focus)]

    def run(self, looks: Sequence[AnyLook], pause: Callable[[], object] = bool) -> list[Prediction]:
        """Run looks, together where ``fuse`` is set; others may run in ``pause``."""
        size = self.settings.max_batch if self.settings.fuse else 1
        predictions: list[Prediction] = []
        for start in range(0, len(looks), size):
            predictions += self.five_steps.run(looks[start : start + size], pause)
        return predictions

    def close(self) -> None:
        """Release device and cache."""
        self.runtime.close()
        self.cache.close()

    def _drive(self, steps: Steps) -> Any:
        """Run one case to its end."""
        sent: Any = None
        while True:
            try:
                wanted = steps.send(sent)
            except StopIteration as end:
                return end.value
            sent = self._drive(wanted.work()) if isinstance(wanted, Shared) else self.run(wanted)
