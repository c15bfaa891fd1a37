"""Between the package's records and the wire's messages; used by client and server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from vessa.v1 import pseudo_label_pb2 as pb
from vessa_client import wire
from vessa_client._errors import InvalidRequestError
from vessa_client._types import (
    AnyArray,
    BankListing,
    ClassDefinition,
    ClassResult,
    ImageInput,
    ImageReference,
    Priority,
    SegmentationRequest,
    SegmentationResult,
    ServerInfo,
    ServerLimits,
    TemplateInfo,
    TemplateUse,
    UInt8Array,
    VolumeReference,
    VolumeRequest,
)

_PRIORITIES: Final[dict[Priority, pb.Priority]] = {
    "": pb.PRIORITY_UNSPECIFIED,
    "interactive": pb.PRIORITY_INTERACTIVE,
    "bulk": pb.PRIORITY_BULK,
}
_PRIORITY_NAMES: Final = {value: name for name, value in _PRIORITIES.items()}


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
        options=_options_to_message(request),
        bank=request.bank,
    )
    if request.student_mask is not None:
        mask = _student_to_message(request.student_mask, request.class_names)
        message.student_mask.CopyFrom(mask)
    if request.volume_ref is not None:
        message.volume_ref.sha256 = request.volume_ref.sha256
    return message


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
        top_k=message.options.top_k,
        template_ids=tuple(message.options.template_ids),
        return_probabilities=message.options.return_probabilities,
        explain=message.options.explain,
        bank=message.bank,
        policy_off=tuple(message.options.policy_off),
        priority=_priority_from_message(message.options),
        request_id=message.request_id,
    )


def _size_of_tensor(image: ImageInput) -> tuple[int, int] | None:
    if isinstance(image, np.ndarray) and image.ndim > 1:
        return int(image.shape[0]), int(image.shape[1])
    return None


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


def volume_header_to_message(
    request: VolumeRequest, reference: VolumeReference | None = None
) -> pb.VolumeHeader:
    """First message of a volume; with ``reference`` no image follows."""
    return pb.VolumeHeader(
        request_id=request.request_id,
        text=request.text,
        class_names=request.class_names,
        options=_options_to_message(request),
        bank=request.bank,
        num_slices=len(request.slices),
        ref=None if reference is None else pb.VolumeRef(sha256=reference.sha256),
    )


def volume_header_from_message(
    message: pb.VolumeHeader,
) -> tuple[VolumeRequest, VolumeReference | None]:
    """What a header says: a request that has no slices yet, and the volume's reference.

    Raises:
        InvalidRequestError: a field is malformed.
    """
    request = VolumeRequest(
        slices=(),
        class_names=tuple(message.class_names),
        text=message.text,
        top_k=message.options.top_k,
        template_ids=tuple(message.options.template_ids),
        return_probabilities=message.options.return_probabilities,
        explain=message.options.explain,
        bank=message.bank,
        policy_off=tuple(message.options.policy_off),
        priority=_priority_from_message(message.options),
        request_id=message.request_id,
    )
    return request, VolumeReference(message.ref.sha256) if message.HasField("ref") else None


def volume_slice_to_message(
    request: VolumeRequest, index: int, *, image: bool = True
) -> pb.VolumeSlice:
    """One slice of a volume, with its student mask, and with its image or by index alone.

    Raises:
        InvalidRequestError: an array has a dtype or rank that the wire does not carry.
    """
    student = request.student_masks.get(index)
    return pb.VolumeSlice(
        index=index,
        image=image_to_message(request.slices[index]) if image else None,
        student_mask=None if student is None else _student_to_message(student, request.class_names),
    )


def result_to_message(result: SegmentationResult) -> pb.SegmentResponse:
    """Result to message."""
    message = pb.SegmentResponse(
        request_id=result.request_id,
        label_map=wire.encode_label_map(result.labels, len(result.classes)),
        confidence=wire.encode_tensor(result.confidence),
        classes=[
            pb.ClassResult(
                class_name=c.class_name,
                predicted_iou=c.predicted_iou,
                explanation=c.explanation,
            )
            for c in result.classes
        ],
        templates=[
            pb.UsedTemplate(
                template_id=t.template_id, class_name=t.class_name, similarity=t.similarity
            )
            for t in result.templates
        ],
        stage_times=[
            pb.StageTime(stage=name, milliseconds=ms) for name, ms in result.stage_ms.items()
        ],
        model_digest=result.model_digest,
        bank_version=result.bank_version,
        cache=pb.CacheReport(
            image_features=_state(result.image_features_cached),
            template_features=_state(result.template_features_cached),
        ),
        image_ref=pb.ImageRef(sha256=result.image_sha256),
        slice_index=result.slice_index,
    )
    if result.volume_sha256:
        message.volume_ref.sha256 = result.volume_sha256
    if result.probabilities is not None:
        message.probabilities.CopyFrom(wire.encode_tensor(result.probabilities))
    return message


def result_from_message(message: pb.SegmentResponse) -> SegmentationResult:
    """Message to result.

    Raises:
        InvalidRequestError: a field is malformed.
    """
    probabilities = None
    if message.HasField("probabilities"):
        probabilities = _uint8(message.probabilities, "probabilities")
    return SegmentationResult(
        request_id=message.request_id,
        labels=wire.decode_label_map(message.label_map),
        confidence=_uint8(message.confidence, "confidence"),
        classes=tuple(
            ClassResult(
                class_name=c.class_name,
                predicted_iou=c.predicted_iou,
                explanation=c.explanation,
            )
            for c in message.classes
        ),
        templates=tuple(
            TemplateUse(template_id=t.template_id, class_name=t.class_name, similarity=t.similarity)
            for t in message.templates
        ),
        stage_ms={s.stage: s.milliseconds for s in message.stage_times},
        model_digest=message.model_digest,
        bank_version=message.bank_version,
        image_features_cached=message.cache.image_features == pb.CACHE_STATE_HIT,
        template_features_cached=message.cache.template_features == pb.CACHE_STATE_HIT,
        image_sha256=message.image_ref.sha256,
        probabilities=probabilities,
        slice_index=message.slice_index,
        volume_sha256=message.volume_ref.sha256,
    )


def template_to_message(template: TemplateInfo) -> pb.Template:
    """Template to message."""
    return pb.Template(
        template_id=template.template_id,
        name=template.name,
        height=template.height,
        width=template.width,
        class_names=template.class_names,
    )


def template_from_message(message: pb.Template) -> TemplateInfo:
    """Message to template."""
    return TemplateInfo(
        template_id=message.template_id,
        name=message.name,
        height=message.height,
        width=message.width,
        class_names=tuple(message.class_names),
    )


def class_to_message(definition: ClassDefinition) -> pb.ClassDefinition:
    """Class to message."""
    return pb.ClassDefinition(name=definition.name, description=definition.description)


def class_from_message(message: pb.ClassDefinition) -> ClassDefinition:
    """Message to class."""
    return ClassDefinition(name=message.name, description=message.description)


def listing_from_message(message: pb.ListTemplatesResponse) -> BankListing:
    """Message to listing."""
    return BankListing(
        templates=tuple(template_from_message(t) for t in message.templates),
        classes=tuple(class_from_message(c) for c in message.classes),
        version=message.bank_version,
    )


def info_from_message(message: pb.GetServerInfoResponse) -> ServerInfo:
    """Message to server information."""
    limits = message.limits
    return ServerInfo(
        version=message.version,
        model_name=message.model_name,
        model_digest=message.model_digest,
        model_parameters=message.model_parameters,
        canvas_size=message.canvas_size,
        bank_version=message.bank_version,
        num_templates=message.num_templates,
        classes=tuple(class_from_message(c) for c in message.classes),
        limits=ServerLimits(
            max_image_bytes=limits.max_image_bytes,
            max_image_side=limits.max_image_side,
            max_classes=limits.max_classes,
            max_top_k=limits.max_top_k,
            max_stream_in_flight=limits.max_stream_in_flight,
            max_request_pixels=limits.max_request_pixels,
        ),
        cache_backend=message.cache_backend,
        runtime=message.runtime,
        device=message.device,
        dtype=message.dtype,
        device_memory_bytes=message.device_memory_bytes,
        bank=message.bank,
        banks=tuple(message.banks),
        policy_version=message.policy_version,
        policy_rules=tuple(message.policy_rules),
    )


def info_to_message(info: ServerInfo) -> pb.GetServerInfoResponse:
    """Server information to message."""
    limits = info.limits
    return pb.GetServerInfoResponse(
        version=info.version,
        model_name=info.model_name,
        model_digest=info.model_digest,
        model_parameters=info.model_parameters,
        canvas_size=info.canvas_size,
        bank_version=info.bank_version,
        num_templates=info.num_templates,
        classes=[class_to_message(c) for c in info.classes],
        limits=pb.Limits(
            max_image_bytes=limits.max_image_bytes,
            max_image_side=limits.max_image_side,
            max_classes=limits.max_classes,
            max_top_k=limits.max_top_k,
            max_stream_in_flight=limits.max_stream_in_flight,
            max_request_pixels=limits.max_request_pixels,
        ),
        cache_backend=info.cache_backend,
        runtime=info.runtime,
        device=info.device,
        dtype=info.dtype,
        device_memory_bytes=info.device_memory_bytes,
        bank=info.bank,
        banks=info.banks,
        policy_version=info.policy_version,
        policy_rules=info.policy_rules,
    )


def _options_to_message(request: SegmentationRequest | VolumeRequest) -> pb.SegmentOptions:
    return pb.SegmentOptions(
        top_k=request.top_k,
        template_ids=request.template_ids,
        return_probabilities=request.return_probabilities,
        explain=request.explain,
        policy_off=request.policy_off,
        priority=_PRIORITIES[request.priority],
    )


def _priority_from_message(options: pb.SegmentOptions) -> Priority:
    if options.priority not in _PRIORITY_NAMES:
        raise InvalidRequestError(
            f"options.priority: {options.priority}, expected one of "
            f"{', '.join(pb.Priority.keys())}",
            field="options.priority",
        )
    return _PRIORITY_NAMES[options.priority]


def _student_to_message(student: AnyArray, class_names: tuple[str, ...]) -> pb.StudentMask:
    if student.ndim == 3:
        tensor = wire.encode_tensor(student, field="student_mask.probabilities")
        return pb.StudentMask(probabilities=tensor)
    highest = int(student.max()) if student.size else 0
    count = len(class_names) or highest
    labels = wire.encode_label_map(student, count, field="student_mask.label_map")
    return pb.StudentMask(label_map=labels)


def _state(hit: bool) -> pb.CacheState:
    return pb.CACHE_STATE_HIT if hit else pb.CACHE_STATE_MISS


def _uint8(message: pb.Tensor, field: str) -> UInt8Array:
    array = wire.decode_tensor(message, field=field)
    if array.dtype != np.uint8:
        raise InvalidRequestError(f"{field}: dtype {array.dtype}, expected uint8", field=field)
    return array.astype(np.uint8, copy=False)
