"""What a runtime does: the paper's five steps on batches, with features that stay where they are.

Above it are numpy arrays and handles; tensors and devices are below. Every runtime passes
``tests/integration/test_runtimes.py``.

Axes: C classes, K templates of a class, N templates, D features, H W the canvas or half of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vessa_client import UnavailableError
from vessa_server.runtime.clock import StageClock

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


class RuntimeUnavailableError(UnavailableError):
    """The device or the server behind a runtime cannot compute now."""


class HandleLostError(Exception):
    """A runtime does not hold (any more) what a handle names: compute it again."""


class Handle(Protocol):
    """Something that a runtime holds; released when nobody refers to it any more."""

    @property
    def nbytes(self) -> int:
        """Bytes that it takes on the device."""
        ...


@dataclass(frozen=True, kw_only=True)
class RuntimeInfo:
    """The model and where it runs.

    Attributes:
        canvas: side of the square images that the model sees, in pixels.
        feature_dim: of retrieval embeddings.
        memory: bytes held by the model now.
    """

    runtime: str
    model_name: str
    model_digest: str
    parameters: int
    canvas: int
    feature_dim: int
    device: str
    dtype: str
    memory: int


@dataclass(frozen=True)
class Described:
    """A template and class: what the steps need of it, and its embeddings for retrieval.

    Attributes:
        handle: memory, matching features and mask.
        embedding_2D: image-level and foreground embedding.
    """

    handle: Handle
    embedding_2D: Floats


@dataclass(frozen=True)
class Conditioning:
    """An image and, for each of C classes, K templates, and the prompts that the VLM reads.

    Attributes:
        image: from :meth:`Runtime.encode`.
        templates: C rows of K handles; K is the same for all classes.
        prefixes: of each class; None where the VLM is not asked.
    """

    image: Handle
    templates: Sequence[Sequence[Handle]]
    prefixes: Sequence[Handle] | None = None


@dataclass(frozen=True)
class Decoding:
    """A conditioned image and what a student says of it.

    Attributes:
        image: from :meth:`Runtime.encode`.
        conditioned: from :meth:`Runtime.condition`.
        prompt_CHW: a student's probabilities at half of the canvas's side.
    """

    image: Handle
    conditioned: Handle
    prompt_CHW: Floats | None = None


@dataclass(frozen=True)
class Decoded:
    """Mask logits at half of the canvas's side, (C, H, W), and the predicted IoU, (C,)."""

    logits_CHW: Floats
    iou_C: Floats


class Runtime(Protocol):
    """The model on a device. Every method takes a batch; times of its stages go to ``clock``.

    Results do not depend on the batch they are computed in beyond the rounding of the device.

    Raises:
        HandleLostError: something that a handle names is gone.
        RuntimeUnavailableError: the device cannot compute now.
    """

    @property
    def info(self) -> RuntimeInfo:
        """Model and device."""
        ...

    def encode(
        self, canvases: Sequence[Floats], clock: StageClock, *, read: bool = False
    ) -> list[Handle]:
        """Encode images, (1 or 3, H, W) in [0, 1]; with ``read`` for the VLM, too."""
        ...

    def describe(
        self, images: Sequence[Handle], masks_HW: Sequence[Bools], clock: StageClock
    ) -> list[Described]:
        """Encode annotated templates of which the images are encoded (step 4)."""
        ...

    def index(self, embeddings_CN2D: Floats) -> Handle:
        """Keep the embeddings of N templates for each class where images are compared with them."""
        ...

    def similarity(
        self, images: Sequence[Handle], index: Handle, clock: StageClock
    ) -> list[Floats]:
        """How well the templates of an index fit images, (C, N) in [-1, 1] each (step 1)."""
        ...

    def prefix(self, overlays: Sequence[Floats], prompts: Sequence[str]) -> list[Handle]:
        """Key/value caches of *text + template overlay*, (3, H, W) each (step 3)."""
        ...

    def condition(self, items: Sequence[Conditioning], clock: StageClock) -> list[Handle]:
        """Match, reason and remember (steps 2 to 4)."""
        ...

    def decode(self, items: Sequence[Decoding], clock: StageClock) -> list[Decoded]:
        """Decode masks (step 5)."""
        ...

    def explain(
        self, image: Handle, prefixes: Sequence[Handle], tokens: int, clock: StageClock
    ) -> list[str]:
        """Words of the VLM for each class."""
        ...

    def dump(self, handle: Handle) -> dict[str, Any]:
        """Tensors of a template or a prefix, for the cache."""
        ...

    def restore(self, kind: str, tensors: dict[str, Any]) -> Handle:
        """Inverse of :meth:`dump`; ``kind`` is ``template`` or ``prefix``.

        Raises:
            KeyError: a tensor is missing.
        """
        ...

    def close(self) -> None:
        """Release the device or the connection."""
        ...
