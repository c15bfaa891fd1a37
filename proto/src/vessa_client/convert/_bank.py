"""The bank and the server."""

from __future__ import annotations

from vessa.v1 import pseudo_label_pb2 as pb
from vessa_client import wire
from vessa_client._types import (
    BankListing,
    ClassDefinition,
    ServerInfo,
    ServerLimits,
    TemplateContent,
    TemplateInfo,
)
from vessa_client.convert._requests import window_from_message, window_to_message


def template_to_message(template: TemplateInfo) -> pb.Template:
    """Template to message."""
    return pb.Template(
        template_id=template.template_id,
        name=template.name,
        height=template.height,
        width=template.width,
        class_names=template.class_names,
        window=window_to_message(template.window),
    )


def template_from_message(message: pb.Template) -> TemplateInfo:
    """Message to template."""
    return TemplateInfo(
        template_id=message.template_id,
        name=message.name,
        height=message.height,
        width=message.width,
        class_names=tuple(message.class_names),
        window=window_from_message(message),
    )


def template_content_to_message(content: TemplateContent) -> pb.GetTemplateResponse:
    """Template with its pixels to message."""
    labels = wire.encode_label_map(content.labels, len(content.info.class_names), field="label_map")
    return pb.GetTemplateResponse(
        template=template_to_message(content.info),
        image=pb.Image(tensor=wire.encode_tensor(content.image, field="image.tensor")),
        label_map=labels,
    )


def template_content_from_message(message: pb.GetTemplateResponse) -> TemplateContent:
    """Message to template with its pixels.

    Raises:
        InvalidRequestError: an array is malformed.
    """
    return TemplateContent(
        template_from_message(message.template),
        wire.decode_tensor(message.image.tensor, field="image.tensor"),
        wire.decode_label_map(message.label_map),
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
