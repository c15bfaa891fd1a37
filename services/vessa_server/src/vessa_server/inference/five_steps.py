"""Runs looks through the paper's five steps, and keeps what the next look can use.

Axes: C classes, K templates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np

from vessa_client import TemplateInfo, TemplateUse
from vessa_server.features.lru import ByteLru
from vessa_server.features.templates import TemplateFeatureStore
from vessa_server.inference.look import AnyLook, Look, Prediction, TemplateLook
from vessa_server.policy import retrieval
from vessa_server.runtime.clock import StageClock
from vessa_server.runtime.heap import HeapTrimmer
from vessa_server.runtime.protocol import (
    Conditioning,
    Decoding,
    Floats,
    Handle,
    HandleLostError,
    Runtime,
)

T = TypeVar("T")
EMPTY: Floats = np.zeros((0, 0, 0), np.float32)
# What a template that is encoded gives.
NOTHING = Prediction(EMPTY, EMPTY, (), cached=False, templates_cached=False)


class Conditioned:
    """An image-class pairs' features after steps 1 to 4, and what they were made of."""

    def __init__(
        self, handle: Handle, used: tuple[TemplateUse, ...], read: tuple[TemplateInfo, ...]
    ) -> None:
        self.handle = handle
        self.used = used
        # The template of each class that the VLM reads.
        self.read = read


class FiveSteps:
    """Segments looks with one runtime; what it keeps is bounded by ``memory``. One thread."""

    def __init__(
        self, runtime: Runtime, templates: TemplateFeatureStore, memory: ByteLru[Any]
    ) -> None:
        self.runtime = runtime
        self.templates = templates
        self.memory = memory
        self._heap = HeapTrimmer()
        # Templates that were computed for others while a look waited between two steps.
        self._for_others = 0

    def run(self, looks: Sequence[AnyLook], pause: Callable[[], object] = bool) -> list[Prediction]:
        """Segment looks together: each step is one batch of the runtime.

        ``pause`` is called between steps; it may run other looks.
        """
        for look in looks:
            if isinstance(look, TemplateLook):
                self._anew(partial(self.templates.prepare, look.bank, look.info, look.focus))
                pause()
        images = [look for look in looks if isinstance(look, Look)]
        predictions = iter(self._segment(images, pause) if images else [])
        self._heap.count(len(looks))
        return [next(predictions) if isinstance(look, Look) else NOTHING for look in looks]

    def _segment(self, looks: Sequence[Look], pause: Callable[[], object]) -> list[Prediction]:
        clock = StageClock(between=partial(self._lend, pause))
        predictions = self._anew(partial(self._run, looks, clock))
        clock.share([look.clock for look in looks])
        return predictions

    def _lend(self, pause: Callable[[], object]) -> None:
        """Let others run, and remember what they computed."""
        before = self.templates.computed - self._for_others
        pause()
        self._for_others = self.templates.computed - before

    def _anew(self, work: Callable[[], T]) -> T:
        """Do ``work``; again where the device was restarted or made room for others."""
        try:
            return work()
        except HandleLostError:
            self.memory.clear()
            self.templates.clear()
            return work()

    def _run(self, looks: Sequence[Look], clock: StageClock) -> list[Prediction]:
        computed = self.templates.computed - self._for_others
        images, fresh = self._encode(looks, clock)
        conditioned, new = self._condition(looks, images, clock)
        fresh = [a or b for a, b in zip(fresh, new, strict=True)]
        warm = self.templates.computed - self._for_others == computed
        decoding = [
            Decoding(image, found.handle, look.prompt_CHW)
            for look, image, found in zip(looks, images, conditioned, strict=True)
            if not look.explain
        ]
        decoded = iter(self.runtime.decode(decoding, clock) if decoding else [])
        predictions = []
        for look, image, found, is_fresh in zip(looks, images, conditioned, fresh, strict=True):
            if look.explain:
                words = self._explain(look, image, found, clock)
                logits_CHW, iou_C = EMPTY, EMPTY
            else:
                words, mask = (), next(decoded)
                logits_CHW, iou_C = mask.logits_CHW, mask.iou_C
                if not np.isfinite(logits_CHW).all():
                    raise FloatingPointError("masks that are not finite")
            predictions.append(Prediction(logits_CHW, iou_C, found.used, not is_fresh, warm, words))
        return predictions

    def _encode(self, looks: Sequence[Look], clock: StageClock) -> tuple[list[Handle], list[bool]]:
        """Features of each look's image, and whether they had to be computed."""
        found: dict[object, Handle] = {}
        missing: dict[object, Look] = {}
        for look in looks:
            held = self.memory.get(look.image_key)
            if held is None:
                missing.setdefault(look.image_key, look)
            else:
                found[look.image_key] = held
        for read in (False, True):
            some = {key: look for key, look in missing.items() if look.reads == read}
            if some:
                with clock.stage("encode_image"):
                    canvases = [look.scan.on(look.canvas) for look in some.values()]
                handles = self.runtime.encode(canvases, clock, read=read)
                for key, handle in zip(some, handles, strict=True):
                    found[key] = handle
                    self.memory.put(key, handle, handle.nbytes)
        return [found[k.image_key] for k in looks], [k.image_key in missing for k in looks]

    def _condition(
        self, looks: Sequence[Look], images: Sequence[Handle], clock: StageClock
    ) -> tuple[list[Conditioned], list[bool]]:
        """Steps 1 to 4 of each look, and whether they had to be computed."""
        found: dict[object, Conditioned] = {}
        missing: dict[object, tuple[Look, Handle]] = {}
        for look, image in zip(looks, images, strict=True):
            held = self.memory.get(look.condition_key)
            if held is None:
                missing.setdefault(look.condition_key, (look, image))
            else:
                found[look.condition_key] = held
        prepared = []
        for look, image in missing.values():
            chosen, used = self._retrieve(look, image, clock)
            with clock.stage("template_features"):
                templates = [
                    [self._template(look, info, name) for info in row]
                    for name, row in zip(look.plan.names, chosen, strict=True)
                ]
                read = tuple(row[0] for row in chosen)
                prefixes = self._prefixes(look, read) if look.plan.text else None
            prepared.append((Conditioning(image, templates, prefixes), used, read))
        if prepared:
            handles = self.runtime.condition([item for item, _, _ in prepared], clock)
            for key, handle, (_, used, read) in zip(missing, handles, prepared, strict=True):
                found[key] = Conditioned(handle, used, read)
                self.memory.put(key, found[key], handle.nbytes)
        keys = [look.condition_key for look in looks]
        return [found[key] for key in keys], [key in missing for key in keys]

    def _retrieve(
        self, look: Look, image: Handle, clock: StageClock
    ) -> tuple[list[list[TemplateInfo]], tuple[TemplateUse, ...]]:
        """``top_k`` templates of each class; the best one again where there are fewer."""
        plan = look.plan
        with clock.stage("template_features"):
            index = self.templates.index(
                plan.bank, plan.candidates, plan.names, plan.index_key, look.focus
            )
        scores_CK = self.runtime.similarity([image], index.handle, clock)[0]
        with clock.stage("retrieve"):
            most = min(plan.top_k, int(index.shown_CK.sum(1).max()))
            orders = retrieval.choose(scores_CK, index.shown_CK, most)
        used = tuple(
            TemplateUse(
                template_id=plan.candidates[k].template_id,
                class_name=name,
                similarity=float(scores_CK[c, k]),
            )
            for c, name in enumerate(plan.names)
            for k in orders[c]
        )
        filled = [order + order[:1] * (most - len(order)) for order in orders]
        return [[plan.candidates[k] for k in order] for order in filled], used

    def _template(self, look: Look, info: TemplateInfo, name: str) -> Handle:
        return self.templates.features(look.plan.bank, info, name, look.focus)

    def _prefixes(self, look: Look, read: Sequence[TemplateInfo]) -> list[Handle]:
        """What the VLM reads before it sees the image, of each class."""
        plan = look.plan
        return [
            self.templates.prefix(plan.bank, info, definition, plan.text, look.focus)
            for info, definition in zip(read, plan.classes, strict=True)
        ]

    def _explain(
        self, look: Look, image: Handle, found: Conditioned, clock: StageClock
    ) -> tuple[str, ...]:
        prefixes = self._prefixes(look, found.read)
        tokens = look.plan.policy.explanation_tokens
        return tuple(self.runtime.explain(image, prefixes, tokens, clock))
