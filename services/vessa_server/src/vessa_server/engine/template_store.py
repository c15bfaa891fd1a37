"""Features of templates: from memory, from the cache, or computed.

Axes: K templates, H W space.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from vessa_client import ClassDefinition, TemplateInfo, UInt8Array
from vessa_server.bank.template_bank import Template, TemplateBank
from vessa_server.cache import FeatureCache, cache_key
from vessa_server.engine.lru import ByteLru
from vessa_server.model import preprocess, prompts
from vessa_server.model.preprocess import Canvas
from vessa_server.model.reasoner import PromptPrefix
from vessa_server.model.records import TensorRecord
from vessa_server.model.vessa import ImageFeatures, TemplateFeatures, Vessa

R = TypeVar("R", bound=TensorRecord)
IMAGE_BYTES = 128 * 1024 * 1024


class TemplateStore:
    """Gives :class:`TemplateFeatures` and :class:`PromptPrefix` of template and class.

    Values that were computed and values that were read back are the same, bit for bit.
    ``computed`` counts what neither memory nor cache had.
    """

    def __init__(
        self,
        model: Vessa,
        model_digest: str,
        bank: TemplateBank,
        cache: FeatureCache,
        max_bytes: int,
    ) -> None:
        self.model = model
        self.bank = bank
        self.cache = cache
        self.computed = 0
        self._identity = (model_digest, preprocess.PREPROCESSING_VERSION)
        self._memory: ByteLru[TensorRecord] = ByteLru(max_bytes)
        # Image features of templates: the classes of one template share them.
        self._images: ByteLru[ImageFeatures] = ByteLru(IMAGE_BYTES)
        self._lock = threading.Lock()

    def features(self, info: TemplateInfo, class_name: str) -> TemplateFeatures:
        """Memory, matching features and retrieval embedding; one row."""
        return self._get(
            TemplateFeatures,
            "template",
            (info.template_id, class_name),
            lambda: self._compute_features(info, class_name),
        )

    def prefix(self, info: TemplateInfo, definition: ClassDefinition, text: str) -> PromptPrefix:
        """Key/value cache of the prompt up to the target image; one row."""
        words = " ".join(part for part in (definition.description, text) if part)
        prompt = prompts.prompt(definition.name, words)
        return self._get(
            PromptPrefix,
            "prefix",
            (info.template_id, definition.name, prompt),
            lambda: self._compute_prefix(info, definition.name, prompt),
        )

    def _get(
        self, record: type[R], kind: str, parts: tuple[str, ...], compute: Callable[[], R]
    ) -> R:
        key = cache_key(kind, (*self._identity, *parts))
        held = self._memory.get(key)
        if isinstance(held, record):
            return held
        tensors = self.cache.get(key)
        if tensors is not None:
            try:
                value = record.from_tensors(tensors)
            except KeyError:
                tensors = None
        if tensors is None:
            value = compute()
            with self._lock:
                self.computed += 1
            self.cache.put(key, value.to_tensors())
        self._memory.put(key, value, value.nbytes)
        return value

    def _compute_features(self, info: TemplateInfo, class_name: str) -> TemplateFeatures:
        template = self.bank.load(info)
        mask = self._mask(self._canvas(template), template.mask(class_name))
        with torch.no_grad():
            return self.model.encode_template(self._image_features(template), mask)

    def _image_features(self, template: Template) -> ImageFeatures:
        held = self._images.get(template.info.template_id)
        if held is not None:
            return held
        unit = self._canvas(template).place(preprocess.to_unit_range(template.image))[None]
        view = preprocess.vlm_view(unit, self.model.config.vlm.image_size)
        features = self.model.encode_image(preprocess.normalise(unit, self.model.config), view)
        self._images.put(template.info.template_id, features, features.nbytes)
        return features

    def _compute_prefix(self, info: TemplateInfo, class_name: str, prompt: str) -> PromptPrefix:
        template = self.bank.load(info)
        canvas = self._canvas(template)
        unit = canvas.place(preprocess.to_unit_range(template.image))[None]
        mask = template.mask(class_name)
        asked = self._mask(canvas, mask)
        other = self._mask(canvas, ((template.labels > 0) & (mask == 0)).astype(np.uint8))
        tinted = preprocess.overlay(unit, asked, other)
        reasoner = self.model.reasoner
        with torch.no_grad():
            view = preprocess.vlm_view(tinted, self.model.config.vlm.image_size)
            ids, attention = reasoner.tokenize([prompt])
            return reasoner.prefix(ids, attention, reasoner.see(view))

    def _canvas(self, template: Template) -> Canvas:
        height, width = template.labels.shape
        return Canvas(height, width, self.model.config.image_size)

    @staticmethod
    def _mask(canvas: Canvas, mask: UInt8Array) -> Tensor:
        """Binary mask on the canvas, (1, 1, H, W); thin structures survive a smaller canvas."""
        placed = canvas.place(torch.from_numpy(mask.astype(np.float32))[None], mode="bilinear")
        return (placed >= 0.5).float()[None]
