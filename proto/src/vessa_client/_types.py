"""Requests and results, shared by the client and the server's in-process engine.

Axes: H W space, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

AnyArray = npt.NDArray[np.generic]
UInt8Array = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ImageReference:
    """An image that the server already holds, by its digest (lower-case hex sha256)."""

    sha256: str


# Pixels, (H, W) or (H, W, 3); an encoded file; or a reference.
ImageInput = AnyArray | bytes | ImageReference
# Intensities that become 0 and 1, in the unit of the pixels: finite, the first below the second.
Window = tuple[float, float]
# Whether somebody waits for the answer; empty leaves it to the server.
Priority = Literal["", "interactive", "bulk"]


@dataclass(frozen=True)
class VolumeReference:
    """A volume that the server already holds, by the digest of its slices' digests."""

    sha256: str


@dataclass(frozen=True, kw_only=True)
class Region:
    """A part of an image that shows the structures, in pixels.

    Turned counter-clockwise by ``quarter_turns``, 0..3, it lies as the templates do.
    """

    top: int
    left: int
    height: int
    width: int
    quarter_turns: int = 0


@dataclass(frozen=True, kw_only=True)
class Point:
    """Which class a pixel of an image is; background where ``class_name`` is empty."""

    row: int
    column: int
    class_name: str = ""


@dataclass(frozen=True, kw_only=True)
class Box:
    """A part of an image, in pixels, outside of which a class is nowhere.

    Several boxes of one class hold it together.
    """

    top: int
    left: int
    height: int
    width: int
    class_name: str


@dataclass(frozen=True, kw_only=True)
class SegmentationRequest:
    """One image to segment.

    Attributes:
        image: pixels, encoded file, or reference.
        class_names: classes of the bank, in the order of their labels; empty means all.
        text: added to the prompt of every class.
        student_mask: (H, W) integer labels in the order of the asked classes, or (C, H, W)
            probabilities, uint8 0..255 or float 0..1.
        volume: slices, of the image's size, of the volume that it is a slice of, the image
            itself among them or not; at most 32. They agree on where the structures are.
            All slices of a volume should name the same ones: then they are looked at once.
        volume_ref: the volume, sent before, that it is a slice of; instead of ``volume``.
        region: where to look; without it the server finds that itself.
        points: what is known of pixels, which the answer follows; at most 256.
        boxes: where classes are; at most 32. A point counts more than a box.
        window: intensities that are seen, of image and ``volume``; without it each slice is scaled
            by its own percentiles.
        top_k: templates for each class; 0 for the server's default.
        template_ids: use only these templates.
        return_probabilities: ask for the probability of each class.
        explain: ask the language model for words.
        bank: name of the bank; empty for the server's default.
        policy_off: rules of the server's policy that are not applied, by name.
        priority: whether somebody waits for the answer.
        request_id: comes back with the result.
    """

    image: ImageInput
    class_names: tuple[str, ...] = ()
    text: str = ""
    student_mask: AnyArray | None = None
    volume: tuple[ImageInput, ...] = ()
    volume_ref: VolumeReference | None = None
    region: Region | None = None
    points: tuple[Point, ...] = ()
    boxes: tuple[Box, ...] = ()
    window: Window | None = None
    top_k: int = 0
    template_ids: tuple[str, ...] = ()
    return_probabilities: bool = False
    explain: bool = False
    bank: str = ""
    policy_off: tuple[str, ...] = ()
    priority: Priority = ""
    request_id: str = ""


@dataclass(frozen=True, kw_only=True)
class VolumeRequest:
    """A volume to segment; it is sent once.

    Attributes:
        slices: all slices of the volume, of one size, in order.
        student_masks: by index of a slice, as in :class:`SegmentationRequest`.
        points: by index of a slice.
        boxes: by index of a slice.
        indices: slices to answer; empty for all.

    The other attributes are those of :class:`SegmentationRequest`.
    """

    slices: tuple[ImageInput, ...]
    class_names: tuple[str, ...] = ()
    text: str = ""
    student_masks: Mapping[int, AnyArray] = field(default_factory=dict)
    points: Mapping[int, tuple[Point, ...]] = field(default_factory=dict)
    boxes: Mapping[int, tuple[Box, ...]] = field(default_factory=dict)
    indices: tuple[int, ...] = ()
    window: Window | None = None
    top_k: int = 0
    template_ids: tuple[str, ...] = ()
    return_probabilities: bool = False
    explain: bool = False
    bank: str = ""
    policy_off: tuple[str, ...] = ()
    priority: Priority = ""
    request_id: str = ""


@dataclass(frozen=True, kw_only=True)
class ClassResult:
    """One class: estimated IoU in [0, 1], 0 where nothing was found, and words where asked for."""

    class_name: str
    predicted_iou: float
    explanation: str = ""


@dataclass(frozen=True, kw_only=True)
class TemplateUse:
    """A template that was used for a class, and its retrieval score in [-1, 1]."""

    template_id: str
    class_name: str
    similarity: float


@dataclass(frozen=True, kw_only=True)
class SegmentationResult:
    """The answer.

    Attributes:
        labels: (H, W) uint8, 0 background, i the i-th of ``classes``.
        confidence: (H, W) uint8, probability of the chosen label, 255 for 1.
        probabilities: (C, H, W) uint8, where asked.
        stage_ms: time of each stage that was run, in milliseconds.
        image_features_cached: no image encoder, VLM or memory work was done.
        template_features_cached: no template had to be encoded.
        slice_index: which slice of a volume it is.
        volume_sha256: reference under which the server holds the volume.
        region: where the server looked, in the image or in all slices of its volume; None from
            servers that do not say.
    """

    request_id: str
    labels: UInt8Array
    confidence: UInt8Array
    classes: tuple[ClassResult, ...]
    templates: tuple[TemplateUse, ...]
    stage_ms: dict[str, float]
    model_digest: str
    bank_version: str
    image_features_cached: bool
    template_features_cached: bool
    image_sha256: str
    probabilities: UInt8Array | None = None
    slice_index: int = 0
    volume_sha256: str = ""
    region: Region | None = None


@dataclass(frozen=True, kw_only=True)
class ClassDefinition:
    """A class of the bank and the sentence that describes it to the language model."""

    name: str
    description: str = ""


@dataclass(frozen=True, kw_only=True)
class TemplateInfo:
    """A template in the bank; seen in ``window``, or as its own percentiles say."""

    template_id: str
    name: str
    height: int
    width: int
    class_names: tuple[str, ...]
    window: Window | None = None


@dataclass(frozen=True, eq=False)
class TemplateContent:
    """A template with its pixels.

    Attributes:
        info: what it is.
        image: (H, W) or (H, W, 3).
        labels: (H, W); 0 background, i the i-th of ``info.class_names``.
    """

    info: TemplateInfo
    image: AnyArray
    labels: UInt8Array

    @property
    def seen(self) -> AnyArray:
        """The image within its window, for pictures."""
        return self.image if self.info.window is None else np.clip(self.image, *self.info.window)

    def numbered(self, class_names: Sequence[str]) -> UInt8Array:
        """The labels by other numbers: i is the i-th of ``class_names``; other classes are 0."""
        numbers = {name: number for number, name in enumerate(class_names, start=1)}
        table = [0, *(numbers.get(name, 0) for name in self.info.class_names)]
        numbered: UInt8Array = np.array(table, np.uint8)[self.labels]
        return numbered


@dataclass(frozen=True, kw_only=True)
class BankListing:
    """All templates and classes of the bank at one version."""

    templates: tuple[TemplateInfo, ...]
    classes: tuple[ClassDefinition, ...]
    version: str


@dataclass(frozen=True, kw_only=True)
class ServerLimits:
    """What the server accepts; ``max_request_pixels`` counts pixels x classes x slices."""

    max_image_bytes: int
    max_image_side: int
    max_classes: int
    max_top_k: int
    max_stream_in_flight: int
    max_request_pixels: int = 0


@dataclass(frozen=True, kw_only=True)
class ServerInfo:
    """Model, bank and limits of a server.

    Attributes:
        runtime: torch or triton.
        device: where the model runs, such as cpu or cuda:0.
        dtype: in which precision.
        device_memory_bytes: held by the model and its features now.
        bank: name of the bank that is described.
        banks: names of all banks.
        policy_rules: names that ``policy_off`` takes.
    """

    version: str
    model_name: str
    model_digest: str
    model_parameters: int
    canvas_size: int
    bank_version: str
    num_templates: int
    classes: tuple[ClassDefinition, ...]
    limits: ServerLimits
    cache_backend: str
    runtime: str = ""
    device: str = ""
    dtype: str = ""
    device_memory_bytes: int = 0
    bank: str = ""
    banks: tuple[str, ...] = ()
    policy_version: str = ""
    policy_rules: tuple[str, ...] = ()


class Segmenter(Protocol):
    """What :class:`VessaClient` and the in-process engine have in common."""

    def segment(self, request: SegmentationRequest) -> SegmentationResult:
        """Segment one image."""
        ...
