"""Results."""

from __future__ import annotations

import numpy as np

from vessa.v1 import pseudo_label_pb2 as pb
from vessa_client import wire
from vessa_client._errors import InvalidRequestError
from vessa_client._types import (
    ClassResult,
    SegmentationResult,
    TemplateUse,
    UInt8Array,
)
from vessa_client.convert._requests import region_from_message, region_to_message


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
    if result.region is not None:
        message.region.CopyFrom(region_to_message(result.region))
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
        region=region_from_message(message),
    )


def _state(hit: bool) -> pb.CacheState:
    return pb.CACHE_STATE_HIT if hit else pb.CACHE_STATE_MISS


def _uint8(message: pb.Tensor, field: str) -> UInt8Array:
    array = wire.decode_tensor(message, field=field)
    if array.dtype != np.uint8:
        raise InvalidRequestError(f"{field}: dtype {array.dtype}, expected uint8", field=field)
    return array.astype(np.uint8, copy=False)
