"""Features of templates: from memory, from the cache, or computed.

Axes: C classes, K templates, D features, H W space.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vessa_client import ClassDefinition, TemplateInfo
from vessa_server.bank.template_bank import Template, TemplateBank
from vessa_server.cache import FeatureCache, cache_key
from vessa_server.features.lru import ByteLru
from vessa_server.model import intensity, preprocess, prompts
from vessa_server.model.preprocess import Canvas, Crop
from vessa_server.runtime.clock import StageClock
from vessa_server.runtime.protocol import Bools, Described, Floats, Handle, Runtime

# Classes of a close view, or None for the whole image.
Focus = tuple[str, ...] | None
EMBEDDING_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True)
class TemplateView:
    """A class of a template, whole or in a close view."""

    info: TemplateInfo
    class_name: str
    crop: Crop | None

    @property
    def image_parts(self) -> tuple[str, ...]:
        """What the encoded image depends on."""
        crop = self.crop
        place = () if crop is None else (crop.top, crop.left, crop.height, crop.width)
        return (self.info.template_id, *map(str, place))


@dataclass(frozen=True)
class Index:
    """The embeddings of the templates that may serve a request.

    Attributes:
        handle: the embeddings on the device.
        shown_CK: whether each template shows each class.
    """

    handle: Handle
    shown_CK: Bools


class TemplateFeatureStore:
    """Gives the features, embeddings and prompts of templates, of one runtime.

    Values that were computed and values that were read back are the same, bit for bit.
    ``computed`` counts what neither memory nor cache had.
    """

    def __init__(self, runtime: Runtime, cache: FeatureCache, max_bytes: int) -> None:
        self.runtime = runtime
        self.cache = cache
        self.computed = 0
        info = runtime.info
        self._canvas = info.canvas
        self._identity = (info.model_digest, info.dtype, preprocess.PREPROCESSING_VERSION)
        self._memory: ByteLru[Handle] = ByteLru(max_bytes)
        # Retrieval reads the embeddings of all templates for each image.
        self._embeddings: ByteLru[Floats] = ByteLru(EMBEDDING_BYTES)
        self._indices: ByteLru[Index] = ByteLru(EMBEDDING_BYTES)
        self._crops: ByteLru[tuple[Crop | None]] = ByteLru(EMBEDDING_BYTES)

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return self._memory.bytes + self._embeddings.bytes + self._indices.bytes

    def features(
        self, bank: TemplateBank, info: TemplateInfo, class_name: str, focus: Focus = None
    ) -> Handle:
        """Memory and matching features of a template and class.

        ``focus`` names the classes around which the template is shown more closely; see
        :func:`vessa_server.model.preprocess.focus`.
        """
        view = self._view(bank, info, class_name, focus)
        key = self._key("template", view)
        held = self._held("template", key)
        if held is None:
            held = self._compute(bank, [view])[0].handle
        return held

    def index(
        self,
        bank: TemplateBank,
        templates: Sequence[TemplateInfo],
        class_names: tuple[str, ...],
        key: Hashable,
        focus: Focus = None,
    ) -> Index:
        """Embeddings of templates for each class.

        Args:
            bank: that holds the templates.
            templates: K of them; each shows one of the classes at least.
            class_names: C classes.
            key: says which templates and classes these are.
            focus: as in :meth:`features`.
        """
        held = self._indices.get((key, focus))
        if held is not None:
            return held
        dim = self.runtime.info.feature_dim
        embeddings_CK2D = np.zeros((len(class_names), len(templates), 2, dim), np.float32)
        shown_CK = np.zeros((len(class_names), len(templates)), np.bool_)
        for k, info in enumerate(templates):
            shown = [c for c, name in enumerate(class_names) if name in info.class_names]
            names = [class_names[c] for c in shown]
            shown_CK[shown, k] = True
            embeddings_CK2D[shown, k] = self._embeddings_of(bank, info, names, focus)
        found = Index(self.runtime.index(embeddings_CK2D), shown_CK)
        size = embeddings_CK2D.nbytes + shown_CK.nbytes
        self._indices.put((key, focus), found, size)
        return found

    def prefix(
        self,
        bank: TemplateBank,
        info: TemplateInfo,
        definition: ClassDefinition,
        text: str,
        focus: Focus = None,
    ) -> Handle:
        """Key/value cache of the prompt up to the target image.

        It goes to the cache only without a free text: there are as many of those as requests.
        """
        # The request comes first: what does not fit is cut at the end.
        words = " ".join(part for part in (text, definition.description) if part)
        colour = preprocess.tint_of(info.class_names.index(definition.name) + 1).name
        prompt = prompts.prompt(definition.name, words, colour)
        view = self._view(bank, info, definition.name, focus)
        key = self._key("prefix", view, prompt)
        held = self._held("prefix", key)
        if held is None:
            held = self.runtime.prefix([self._overlay(bank, view)], [prompt])[0]
            self._computed("prefix", key, held, keep=not text)
        return held

    def prepare(self, bank: TemplateBank, info: TemplateInfo, focus: Focus) -> None:
        """Encode all classes of a template, where that was not done yet."""
        views = [self._view(bank, info, name, focus) for name in info.class_names]
        missing = [v for v in views if self._held("template", self._key("template", v)) is None]
        if missing:
            self._compute(bank, missing)

    def clear(self) -> None:
        """Forget what the runtime held; the cache keeps what it has."""
        self._memory.clear()
        self._indices.clear()

    def _embeddings_of(
        self, bank: TemplateBank, info: TemplateInfo, class_names: Sequence[str], focus: Focus
    ) -> list[Floats]:
        """Of classes of one template; what is missing is encoded together."""
        views = [self._view(bank, info, name, focus) for name in class_names]
        found = {view: self._held_embedding(view) for view in views}
        missing = [view for view, embedding_2D in found.items() if embedding_2D is None]
        if missing:
            described = self._compute(bank, missing)
            found |= {v: d.embedding_2D for v, d in zip(missing, described, strict=True)}
        return [embedding_2D for v in views if (embedding_2D := found[v]) is not None]

    def _held_embedding(self, view: TemplateView) -> Floats | None:
        key = self._key("embedding", view)
        held = self._embeddings.get(key)
        if held is None:
            tensors = self.cache.get(key)
            if tensors is not None and "embedding_2D" in tensors:
                held = tensors["embedding_2D"].numpy()
                self._embeddings.put(key, held, held.nbytes)
        return held

    def _compute(self, bank: TemplateBank, views: Sequence[TemplateView]) -> list[Described]:
        """Encode classes of one view of one template, and keep them."""
        template = bank.load(views[0].info)
        clock = StageClock()
        image = self.runtime.encode([self._unit(template, views[0].crop)], clock)[0]
        masks = [self._mask(template, view) for view in views]
        described = self.runtime.describe([image] * len(views), masks, clock)
        for view, found in zip(views, described, strict=True):
            self._computed("template", self._key("template", view), found.handle)
            key = self._key("embedding", view)
            self._embeddings.put(key, found.embedding_2D, found.embedding_2D.nbytes)
            self.cache.put(key, {"embedding_2D": torch.from_numpy(found.embedding_2D)})
        return described

    def _held(self, kind: str, key: str) -> Handle | None:
        held = self._memory.get(key)
        if held is not None:
            return held
        tensors = self.cache.get(key)
        if tensors is None:
            return None
        try:
            restored = self.runtime.restore(kind, tensors)
        except KeyError:
            return None
        self._memory.put(key, restored, restored.nbytes)
        return restored

    def _computed(self, kind: str, key: str, handle: Handle, *, keep: bool = True) -> None:
        self.computed += 1
        if keep:
            self.cache.put(key, self.runtime.dump(handle))
        self._memory.put(key, handle, handle.nbytes)

    def _key(self, kind: str, view: TemplateView, *more: str) -> str:
        return cache_key(kind, (*self._identity, view.class_name, *more, *view.image_parts))

    def _view(
        self, bank: TemplateBank, info: TemplateInfo, class_name: str, focus: Focus
    ) -> TemplateView:
        if focus is None:
            return TemplateView(info, class_name, None)
        shown = tuple(sorted(set(focus).intersection(info.class_names)))
        key = (info.template_id, shown)
        held = self._crops.get(key)
        if held is None:
            template = bank.load(info)
            held = (preprocess.focus(np.any([template.mask(n) > 0 for n in shown], axis=0)),)
            self._crops.put(key, held, 256)
        return TemplateView(info, class_name, held[0])

    def _unit(self, template: Template, crop: Crop | None) -> Floats:
        """The template on its canvas in [0, 1], (1 or 3, H, W)."""
        unit = intensity.unit_range(template.image, template.info.window)
        placed: Floats = self._placement(template, crop).place(unit).numpy()
        return placed

    def _mask(self, template: Template, view: TemplateView) -> Bools:
        mask = torch.from_numpy(template.mask(view.class_name).astype(np.float32))[None]
        # Bilinear: thin structures survive a smaller canvas.
        placed = self._placement(template, view.crop).place(mask, mode="bilinear")[0]
        shown: Bools = (placed >= 0.5).numpy()
        return shown

    def _overlay(self, bank: TemplateBank, view: TemplateView) -> Floats:
        template = bank.load(view.info)
        labels = torch.from_numpy(template.labels)[None].float()
        placed = self._placement(template, view.crop).place(labels, mode="nearest")
        unit = torch.from_numpy(self._unit(template, view.crop)).expand(1, 3, -1, -1)
        tinted: Floats = preprocess.overlay(unit, placed)[0].numpy()
        return tinted

    def _placement(self, template: Template, crop: Crop | None) -> Canvas:
        height, width = template.labels.shape
        return Canvas(height, width, self._canvas, crop)
