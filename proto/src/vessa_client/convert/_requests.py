"""Images and requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Final, TypedDict, TypeVar

import numpy as np

from vessa.v1 import pseudo_label_pb2 as pb
from vessa_client import wire
from vessa_client._errors import InvalidRequestError
from vessa_client._types import (
    AnyArray,
    Box,
    ImageInput,
    ImageReference,
    Point,
    Priority,
    Region,
    SegmentationRequest,
    VolumeReference,
    VolumeRequest,
    Window,
)

M = TypeVar("M", pb.Point, pb.Box)

_PRIORITIES: Final[dict[Priority, pb.Priority]] = {
    "": pb.PRIORITY_UNSPECIFIED,
    "interactive": pb.PRIORITY_INTERACTIVE,
    "bulk": pb.PRIORITY_BULK,
}
_PRIORITY_NAMES: Final = {value: name for name, value in _PRIORITIES.items()}


class Options(TypedDict):
    """Fields that requests of an image and of a volume share."""

    top_k: int
    template_ids: tuple[str, ...]
    return_probabilities: bool
    explain: bool
    policy_off: tuple[str, ...]
    priority: Priority


def image_to_message(image: ImageInput) -> pb.Image:
    """Image to message."""
    if isinstance(image, ImageReference):
        return pb.Image(ref=pb.ImageRef(sha256=image.sha256))
    if isinstance(image, bytes):
        return pb.Image(encoded=image)
    return pb.Image(tensor=wire.encode_tensor(image, field="image.tensor"))


def image_from_message(message: pb.Image) -> ImageInput:
    """Message to image.

    Raises:
        InvalidRequestError: there is no image, or its tensor is malformed.
    """
    source = message.WhichOneof("source")
    if source == "encoded":
        return message.encoded
    if source == "tensor":
        return wire.decode_tensor(message.tensor, field="image.tensor")
    if source == "ref":
        return ImageReference(message.ref.sha256)
    raise InvalidRequestError("image: missing, expected one of encoded, tensor, ref", field="image")


def request_to_message(request: SegmentationRequest) -> pb.SegmentRequest:
    """Request to message.

    Raises:
        InvalidRequestError: an array has a dtype or rank that the wire does not carry.
    """
    message = pb.SegmentRequest(
        request_id=request.request_id,
        image=image_to_message(request.image),
        volume=[image_to_message(slice_) for slice_ in request.volume],
        text=request.text,
        class_names=request.class_names,
        options=options_to_message(request),
        bank=request.bank,
        window=window_to_message(request.window),
        points=marks_to_messages(pb.Point, request.points, "points"),
        boxes=marks_to_messages(pb.Box, request.boxes, "boxes"),
    )
    if request.student_mask is not None:
        mask = student_to_message(request.student_mask, request.class_names)
        message.student_mask.CopyFrom(mask)
    if request.volume_ref is not None:
        message.volume_ref.sha256 = request.volume_ref.sha256
    if request.region is not None:
        message.region.CopyFrom(region_to_message(request.region))
    return message


def window_to_message(window: Window | None) -> pb.Window | None:
    """Window to message.

    Raises:
        InvalidRequestError: it is no pair of numbers.
    """
    if window is None:
        return None
    try:
        low, high = window
        return pb.Window(low=low, high=high)
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(
            f"window: {window!r}, expected a pair of numbers", field="window"
        ) from error


def window_from_message(
    message: pb.SegmentRequest | pb.VolumeHeader | pb.Template | pb.AddTemplateRequest,
) -> Window | None:
    """The window of a message, where it has one."""
    if not message.HasField("window"):
        return None
    return message.window.low, message.window.high


class Marks(TypedDict):
    """Fields that tell what a user knows of an image, or of a slice."""

    points: tuple[Point, ...]
    boxes: tuple[Box, ...]


def marks_to_messages(kind: type[M], marks: Sequence[Point] | Sequence[Box], field: str) -> list[M]:
    """Points or boxes to messages of their kind.

    Raises:
        InvalidRequestError: a number that the wire does not carry.
    """
    try:
        return [kind(**asdict(mark)) for mark in marks]
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(
            f"{field}: {error}, expected integers of 0 or more and the name of a class", field=field
        ) from error


def marks_from_message(message: pb.SegmentRequest | pb.VolumeSlice) -> Marks:
    """Points and boxes of an image or a slice.

    Raises:
        InvalidRequestError: they are too many.
    """
    wire.check_marks(len(message.points), len(message.boxes))
    points = (Point(row=p.row, column=p.column, class_name=p.class_name) for p in message.points)
    boxes = (
        Box(top=b.top, left=b.left, height=b.height, width=b.width, class_name=b.class_name)
        for b in message.boxes
    )
    return Marks(points=tuple(points), boxes=tuple(boxes))


def region_to_message(region: Region) -> pb.Region:
    """Region to message.

    Raises:
        InvalidRequestError: a number that the wire does not carry.
    """
    try:
        return pb.Region(**asdict(region))
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(
            f"region: {region}, expected integers of 0 or more", field="region"
        ) from error


def region_from_message(message: pb.SegmentRequest | pb.SegmentResponse) -> Region | None:
    """The region of a request or a response, where it has one."""
    if not message.HasField("region"):
        return None
    found = message.region
    return Region(
        top=found.top,
        left=found.left,
        height=found.height,
        width=found.width,
        quarter_turns=found.quarter_turns,
    )


def request_from_message(
    message: pb.SegmentRequest,
    size_of: Callable[[ImageInput], tuple[int, int] | None] | None = None,
) -> SegmentationRequest:
    """Message to request.

    Args:
        message: the request.
        size_of: height and width of an image; without it only tensors' are known. A student's
            mask of another size is refused before it is decoded: few bytes may be very many
            pixels.

    Raises:
        InvalidRequestError: a field is malformed.
    """
    reference = message.volume_ref.sha256 if message.HasField("volume_ref") else None
    image = image_from_message(message.image)
    student = None
    if message.HasField("student_mask"):
        classes = len(message.class_names) or wire.MAX_CLASSES
        expected = (size_of or _size_of_tensor)(image)
        student = student_from_message(message.student_mask, expected, classes)
    return SegmentationRequest(
        image=image,
        class_names=tuple(message.class_names),
        text=message.text,
        student_mask=student,
        volume=tuple(image_from_message(slice_) for slice_ in message.volume),
        volume_ref=None if reference is None else VolumeReference(reference),
        region=region_from_message(message),
        window=window_from_message(message),
        bank=message.bank,
        request_id=message.request_id,
        **marks_from_message(message),
        **options_from_message(message.options),
    )


def student_to_message(student: AnyArray, class_names: tuple[str, ...]) -> pb.StudentMask:
    """(H, W) labels or (C, H, W) probabilities, to message.

    Raises:
        InvalidRequestError: their dtype or rank is not one that the wire carries.
    """
    if student.ndim == 3:
        tensor = wire.encode_tensor(student, field="student_mask.probabilities")
        return pb.StudentMask(probabilities=tensor)
    highest = int(student.max()) if student.size else 0
    count = len(class_names) or highest
    labels = wire.encode_label_map(student, count, field="student_mask.label_map")
    return pb.StudentMask(label_map=labels)


def student_from_message(
    message: pb.StudentMask,
    expected: tuple[int, int] | None = None,
    max_classes: int = wire.MAX_CLASSES,
) -> AnyArray | None:
    """Message to (H, W) labels, (C, H, W) probabilities, or None where there is no mask.

    Args:
        message: the mask.
        expected: height and width of its image, where they are known.
        max_classes: number of asked classes.

    Raises:
        InvalidRequestError: a field is malformed, or labels do not fit the image.
    """
    source = message.WhichOneof("source")
    if source == "label_map":
        return wire.decode_label_map(
            message.label_map,
            field="student_mask.label_map",
            expected=expected,
            max_classes=max_classes,
        )
    if source == "probabilities":
        field = "student_mask.probabilities"
        maps = wire.decode_tensor(message.probabilities, field=field)
        if maps.ndim != 3:
            raise InvalidRequestError(
                f"{field}: shape {maps.shape}, expected (classes, height, width)", field=field
            )
        return maps
    return None


def options_to_message(request: SegmentationRequest | VolumeRequest) -> pb.SegmentOptions:
    """What a request may ask for, to message."""
    return pb.SegmentOptions(
        top_k=request.top_k,
        template_ids=request.template_ids,
        return_probabilities=request.return_probabilities,
        explain=request.explain,
        policy_off=request.policy_off,
        priority=_PRIORITIES[request.priority],
    )


def options_from_message(message: pb.SegmentOptions) -> Options:
    """Message to what a request may ask for.

    Raises:
        InvalidRequestError: its priority is none of the contract's.
    """
    if message.priority not in _PRIORITY_NAMES:
        raise InvalidRequestError(
            f"options.priority: {message.priority}, expected one of "
            f"{', '.join(pb.Priority.keys())}",
            field="options.priority",
        )
    return Options(
        top_k=message.top_k,
        template_ids=tuple(message.template_ids),
        return_probabilities=message.return_probabilities,
        explain=message.explain,
        policy_off=tuple(message.policy_off),
        priority=_PRIORITY_NAMES[message.priority],
    )


def _size_of_tensor(image: ImageInput) -> tuple[int, int] | None:
    if isinstance(image, np.ndarray) and image.ndim > 1:
        return int(image.shape[0]), int(image.shape[1])
    return None
