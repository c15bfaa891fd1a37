"""Between the package's records and the wire's messages; used by client and server."""

from __future__ import annotations

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
    SegmentationRequest,
    SegmentationResult,
    ServerInfo,
    ServerLimits,
    TemplateInfo,
    TemplateUse,
    UInt8Array,
)


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
        options=pb.SegmentOptions(
            top_k=request.top_k,
            template_ids=request.template_ids,
            return_probabilities=request.return_probabilities,
            explain=request.explain,
        ),
    )
    student = request.student_mask
    if student is None:
        return message
    if student.ndim == 3:
        tensor = wire.encode_tensor(student, field="student_mask.probabilities")
        message.student_mask.probabilities.CopyFrom(tensor)
    else:
        highest = int(student.max()) if student.size else 0
        count = len(request.class_names) or highest
        labels = wire.encode_label_map(student, count, field="student_mask.label_map")
        message.student_mask.label_map.CopyFrom(labels)
    return message


def request_from_message(message: pb.SegmentRequest) -> SegmentationRequest:
    """Message to request.

    Raises:
        InvalidRequestError: a field is malformed.
    """
    student: AnyArray | None = None
    source = message.student_mask.WhichOneof("source")
    if source == "label_map":
        student = wire.decode_label_map(
            message.student_mask.label_map, field="student_mask.label_map"
        )
    elif source == "probabilities":
        student = wire.decode_tensor(
            message.student_mask.probabilities, field="student_mask.probabilities"
        )
    return SegmentationRequest(
        image=image_from_message(message.image),
        class_names=tuple(message.class_names),
        text=message.text,
        student_mask=student,
        volume=tuple(image_from_message(slice_) for slice_ in message.volume),
        top_k=message.options.top_k,
        template_ids=tuple(message.options.template_ids),
        return_probabilities=message.options.return_probabilities,
        explain=message.options.explain,
        request_id=message.request_id,
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
    )
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
        ),
        cache_backend=message.cache_backend,
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
        ),
        cache_backend=info.cache_backend,
    )


def _state(hit: bool) -> pb.CacheState:
    return pb.CACHE_STATE_HIT if hit else pb.CACHE_STATE_MISS


def _uint8(message: pb.Tensor, field: str) -> UInt8Array:
    array = wire.decode_tensor(message, field=field)
    if array.dtype != np.uint8:
        raise InvalidRequestError(f"{field}: dtype {array.dtype}, expected uint8", field=field)
    return array.astype(np.uint8, copy=False)
