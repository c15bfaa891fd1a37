"""The operations that the model on Triton offers: the methods of a runtime, as messages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load, save

from vessa_server.runtime.clock import StageClock
from vessa_server.runtime.protocol import (
    Conditioning,
    Decoded,
    Decoding,
    Described,
    Handle,
    Runtime,
)
from vessa_server.runtime.triton.handles import HandleStore
from vessa_server.runtime.triton.messages import Message, MessageError


class Operation(ABC):
    """A method of the runtime: items of requests, in one batch where their keys are the same."""

    together: ClassVar[bool] = True

    def __init__(self, runtime: Runtime, held: HandleStore) -> None:
        self.runtime = runtime
        self.held = held
        self.side = runtime.info.canvas

    def key(self, message: Message) -> Hashable:
        """Requests that have the same may run together."""
        del message
        return None

    @abstractmethod
    def items(self, message: Message) -> list[Any]:
        """What a request asks for.

        Raises:
            MessageError: a field is missing or wrong.
            HandleLostError: a handle is not here.
        """

    @abstractmethod
    def run(self, items: Sequence[Any], clock: StageClock) -> Sequence[Any]:
        """A result for each item."""

    def answer(self, results: Sequence[Any]) -> Message:
        """The answer to a request, by default handles that are kept for it."""
        return Message({"handles": [self.held.put(handle) for handle in results]})

    def handles(self, names: Sequence[str]) -> list[Handle]:
        """What names stand for."""
        return [self.held.get(name) for name in names]


class Encode(Operation):
    """Images on their canvases."""

    def key(self, message: Message) -> Hashable:
        """Read by the VLM or not."""
        return message.get("read", bool)

    def items(self, message: Message) -> list[Any]:
        """Canvases, and whether the VLM reads them."""
        read = message.get("read", bool)
        for canvas in message.floats:
            _check("canvas", canvas.shape, (1, self.side, self.side), (3, self.side, self.side))
        return [(canvas, read) for canvas in message.floats]

    def run(self, items: Sequence[Any], clock: StageClock) -> Sequence[Any]:
        """Handles of images."""
        return self.runtime.encode(
            [c for c, _ in items], clock, read=items[0][1] if items else False
        )


class Describe(Operation):
    """Images with the masks of a class."""

    def items(self, message: Message) -> list[Any]:
        """Images and masks."""
        for mask_HW in message.masks:
            _check("mask", mask_HW.shape, (self.side, self.side))
        images = self.handles(message.get("images", list))
        if len(images) != len(message.masks):
            raise MessageError(f"masks: {len(message.masks)}, expected {len(images)}")
        return list(zip(images, message.masks, strict=True))

    def run(self, items: Sequence[Any], clock: StageClock) -> Sequence[Any]:
        """Templates with their embeddings."""
        return self.runtime.describe([i for i, _ in items], [m for _, m in items], clock)

    def answer(self, results: Sequence[Described]) -> Message:
        """Handles and embeddings."""
        handles = super().answer([described.handle for described in results])
        return Message(handles.fields, floats=[d.embedding_2D for d in results])


class Index(Operation):
    """Embeddings that images are compared with."""

    together = False

    def items(self, message: Message) -> list[Any]:
        """The embeddings, which outlive the request's memory."""
        return [np.array(embeddings_CN2D) for embeddings_CN2D in message.floats]

    def run(self, items: Sequence[Any], clock: StageClock) -> Sequence[Any]:
        """Handles of indices."""
        del clock
        return [self.runtime.index(embeddings_CN2D) for embeddings_CN2D in items]


class Similarity(Operation):
    """Images beside an index."""

    def key(self, message: Message) -> Hashable:
        """The index."""
        return message.get("index", str)

    def items(self, message: Message) -> list[Any]:
        """Images, each with the index."""
        index = self.held.get(message.get("index", str))
        return [(image, index) for image in self.handles(message.get("images", list))]

    def run(self, items: Sequence[Any], clock: StageClock) -> Sequence[Any]:
        """Similarities."""
        if not items:
            return []
        return self.runtime.similarity([image for image, _ in items], items[0][1], clock)

    def answer(self, results: Sequence[Any]) -> Message:
        """Arrays of similarities."""
        return Message({}, floats=results)


class Prefix(Operation):
    """What the VLM reads before it sees the image."""

    def items(self, message: Message) -> list[Any]:
        """Overlays and prompts."""
        for overlay in message.floats:
            _check("overlay", overlay.shape, (3, self.side, self.side))
        prompts = message.get("prompts", list)
        if len(prompts) != len(message.floats):
            raise MessageError(f"overlays: {len(message.floats)}, expected {len(prompts)}")
        return list(zip(message.floats, prompts, strict=True))

    def run(self, items: Sequence[Any], clock: StageClock) -> Sequence[Any]:
        """Handles of prefixes."""
        del clock
        return self.runtime.prefix([o for o, _ in items], [p for _, p in items])


class Condition(Operation):
    """Steps 2 to 4."""

    def items(self, message: Message) -> list[Any]:
        """Images with their templates and prefixes."""
        return [
            Conditioning(
                self.held.get(image),
                [self.handles(row) for row in templates],
                None if prefixes is None else self.handles(prefixes),
            )
            for image, templates, prefixes in message.get("items", list)
        ]

    def run(self, items: Sequence[Any], clock: StageClock) -> Sequence[Any]:
        """Handles of conditioned images."""
        return self.runtime.condition(items, clock)


class Decode(Operation):
    """Step 5."""

    def items(self, message: Message) -> list[Any]:
        """Conditioned images, some with a student's probabilities."""
        half = self.side // 2
        for prompt_CHW in message.floats:
            _check("prompt", prompt_CHW.shape[1:], (half, half))
        asked = message.get("items", list)
        count = sum(prompted for _, _, prompted in asked)
        if count != len(message.floats):
            raise MessageError(f"prompts: {len(message.floats)}, expected {count}")
        prompts = iter(message.floats)
        return [
            Decoding(
                self.held.get(image),
                self.held.get(conditioned),
                next(prompts) if prompted else None,
            )
            for image, conditioned, prompted in asked
        ]

    def run(self, items: Sequence[Any], clock: StageClock) -> Sequence[Any]:
        """Masks."""
        return self.runtime.decode(items, clock)

    def answer(self, results: Sequence[Decoded]) -> Message:
        """Logits and predicted IoU of each item, in turn."""
        return Message({}, floats=[a for d in results for a in (d.logits_CHW, d.iou_C)])


class Explain(Operation):
    """Words of the VLM."""

    together = False

    def items(self, message: Message) -> list[Any]:
        """An image, its prefixes, and how many tokens to write."""
        image = self.held.get(message.get("image", str))
        prefixes = self.handles(message.get("prefixes", list))
        return [(image, prefixes, message.get("tokens", int))]

    def run(self, items: Sequence[Any], clock: StageClock) -> Sequence[Any]:
        """Words for each prefix."""
        return [self.runtime.explain(i, prefixes, tokens, clock) for i, prefixes, tokens in items]

    def answer(self, results: Sequence[Any]) -> Message:
        """The words."""
        return Message({"words": results[0]})


class Dump(Operation):
    """Tensors of a handle, for a cache."""

    together = False

    def items(self, message: Message) -> list[Any]:
        """The handle."""
        return [self.held.get(message.get("handle", str))]

    def run(self, items: Sequence[Any], clock: StageClock) -> Sequence[Any]:
        """Its tensors."""
        del clock
        return [self.runtime.dump(handle) for handle in items]

    def answer(self, results: Sequence[Any]) -> Message:
        """A safetensors file."""
        return Message({}, tensors=save({n: t.contiguous() for n, t in results[0].items()}))


class Restore(Operation):
    """A handle from the tensors of a cache."""

    together = False

    def items(self, message: Message) -> list[Any]:
        """Kind and tensors."""
        try:
            tensors = load(message.tensors)
        except SafetensorError as error:
            raise MessageError(f"tensors: {error}") from None
        return [(message.get("kind", str), tensors)]

    def run(self, items: Sequence[Any], clock: StageClock) -> Sequence[Any]:
        """The handle."""
        del clock
        return [self.runtime.restore(kind, tensors) for kind, tensors in items]


class Info(Operation):
    """Model, device, and how much is kept for clients."""

    together = False

    def items(self, message: Message) -> list[Any]:
        """Nothing is needed."""
        del message
        return [None]

    def run(self, items: Sequence[Any], clock: StageClock) -> Sequence[Any]:
        """The facts."""
        del items, clock
        return [{"runtime": asdict(self.runtime.info), "feature_bytes": self.held.max_bytes}]

    def answer(self, results: Sequence[Any]) -> Message:
        """The facts as fields."""
        return Message(results[0])


class Release(Operation):
    """Nothing but what every request may do: release handles."""

    together = False

    def items(self, message: Message) -> list[Any]:
        """Nothing."""
        del message
        return []

    def run(self, items: Sequence[Any], clock: StageClock) -> Sequence[Any]:
        """Nothing."""
        del clock
        return items


OPERATIONS: dict[str, type[Operation]] = {
    "encode": Encode,
    "describe": Describe,
    "index": Index,
    "similarity": Similarity,
    "prefix": Prefix,
    "condition": Condition,
    "decode": Decode,
    "explain": Explain,
    "dump": Dump,
    "restore": Restore,
    "info": Info,
    "release": Release,
}


def _check(name: str, shape: tuple[int, ...], *expected: tuple[int, ...]) -> None:
    if shape not in expected:
        raise MessageError(f"{name}: shape {shape}, expected {' or '.join(map(str, expected))}")
