"""Features of templates: from memory, from the cache, or computed.

Axes: C classes, K templates, D features, H W space.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from vessa_client import ClassDefinition, TemplateInfo
from vessa_server.bank.template_bank import Template, TemplateBank
from vessa_server.cache import FeatureCache, cache_key
from vessa_server.engine.lru import ByteLru
from vessa_server.model import preprocess, prompts
from vessa_server.model.preprocess import Canvas
from vessa_server.model.reasoner import PromptPrefix
from vessa_server.model.records import TensorRecord
from vessa_server.model.vessa import ImageFeatures, TemplateFeatures, Vessa

# Classes of a second look, or None for the whole image.
Focus = tuple[str, ...] | None
R = TypeVar("R", bound=TensorRecord)
IMAGE_BYTES = 128 * 1024 * 1024
EMBEDDING_BYTES = 64 * 1024 * 1024


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
        # Retrieval reads the embeddings of all templates for each image.
        self._embeddings: ByteLru[Tensor] = ByteLru(EMBEDDING_BYTES)
        self._lock = threading.Lock()

    def features(
        self, info: TemplateInfo, class_name: str, *, focus_on: Focus = None
    ) -> TemplateFeatures:
        """Memory, matching features and retrieval embedding; one row.

        ``focus_on`` names the classes around which the template is shown more closely; see
        :func:`vessa_server.model.preprocess.focus`.
        """
        return self._get(
            TemplateFeatures,
            "template",
            (info.template_id, class_name, *_view(focus_on)),
            lambda: self._compute_features(info, class_name, focus_on),
        )

    def embeddings(
        self,
        templates: Sequence[TemplateInfo],
        class_names: tuple[str, ...],
        *,
        focus_on: Focus = None,
    ) -> Tensor:
        """Retrieval embeddings, (C, K, 2, D); zero where a template does not show a class."""
        key = (tuple(info.template_id for info in templates), class_names, focus_on)
        held = self._embeddings.get(key)
        if held is not None:
            return held
        dim = self.model.config.matcher.feature_dim
        embeddings_CK2D = torch.zeros(len(class_names), len(templates), 2, dim)
        for c, name in enumerate(class_names):
            for k, info in enumerate(templates):
                if name in info.class_names:
                    features = self.features(info, name, focus_on=focus_on)
                    embeddings_CK2D[c, k] = features.embedding_K2D[0]
        self._embeddings.put(key, embeddings_CK2D, embeddings_CK2D.nbytes)
        return embeddings_CK2D

    def prefix(
        self, info: TemplateInfo, definition: ClassDefinition, text: str, *, focus_on: Focus = None
    ) -> PromptPrefix:
        """Key/value cache of the prompt up to the target image; one row."""
        # The request comes first: what does not fit is cut at the end.
        words = " ".join(part for part in (text, definition.description) if part)
        colour = preprocess.tint_of(info.class_names.index(definition.name) + 1).name
        prompt = prompts.prompt(definition.name, words, colour)
        return self._get(
            PromptPrefix,
            "prefix",
            (info.template_id, definition.name, prompt, *_view(focus_on)),
            lambda: self._compute_prefix(info, prompt, focus_on),
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

    def _compute_features(
        self, info: TemplateInfo, class_name: str, focus_on: Focus
    ) -> TemplateFeatures:
        template = self.bank.load(info)
        mask = torch.from_numpy(template.mask(class_name).astype(np.float32))[None]
        # Bilinear: thin structures survive a smaller canvas.
        placed = self._canvas(template, focus_on).place(mask, mode="bilinear")
        with torch.no_grad():
            features = self._image_features(template, focus_on)
            return self.model.encode_template(features, (placed >= 0.5).float()[None])

    def _image_features(self, template: Template, focus_on: Focus) -> ImageFeatures:
        key = (template.info.template_id, focus_on)
        held = self._images.get(key)
        if held is not None:
            return held
        unit = self._unit(template, focus_on)
        # The VLM reads the overlay, see below; the template itself it need not see.
        features = self.model.encode_image(preprocess.normalise(unit, self.model.config), None)
        self._images.put(key, features, features.nbytes)
        return features

    def _compute_prefix(self, info: TemplateInfo, prompt: str, focus_on: Focus) -> PromptPrefix:
        template = self.bank.load(info)
        labels = torch.from_numpy(template.labels)[None].float()
        placed = self._canvas(template, focus_on).place(labels, mode="nearest")
        tinted = preprocess.overlay(self._unit(template, focus_on), placed)
        reasoner = self.model.reasoner
        with torch.no_grad():
            view = preprocess.vlm_view(tinted, self.model.config.vlm.image_size)
            ids, attention = reasoner.tokenize([prompt])
            return reasoner.prefix(ids, attention, reasoner.see(view))

    def _unit(self, template: Template, focus_on: Focus) -> Tensor:
        """The template on its canvas in [0, 1], (1, 3, H, W)."""
        unit = preprocess.to_unit_range(template.image)
        return self._canvas(template, focus_on).place(unit)[None]

    def _canvas(self, template: Template, focus_on: Focus) -> Canvas:
        height, width = template.labels.shape
        crop = None
        if focus_on:
            shown = [template.mask(n) > 0 for n in focus_on if n in template.info.class_names]
            crop = preprocess.focus(np.any(shown, axis=0))
        return Canvas(height, width, self.model.config.image_size, crop)


def _view(focus_on: Focus) -> tuple[str, ...]:
    return () if focus_on is None else ("focus", *focus_on)
