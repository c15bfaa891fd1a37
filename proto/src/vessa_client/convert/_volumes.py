"""Volumes: a header first, then their slices."""

from __future__ import annotations

from vessa.v1 import pseudo_label_pb2 as pb
from vessa_client._types import VolumeReference, VolumeRequest
from vessa_client.convert._requests import (
    image_to_message,
    marks_to_messages,
    options_from_message,
    options_to_message,
    student_to_message,
    window_from_message,
    window_to_message,
)


def volume_header_to_message(
    request: VolumeRequest, reference: VolumeReference | None = None
) -> pb.VolumeHeader:
    """First message of a volume; with ``reference`` no image follows."""
    return pb.VolumeHeader(
        request_id=request.request_id,
        text=request.text,
        class_names=request.class_names,
        options=options_to_message(request),
        bank=request.bank,
        num_slices=len(request.slices),
        ref=None if reference is None else pb.VolumeRef(sha256=reference.sha256),
        window=window_to_message(request.window),
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
        bank=message.bank,
        window=window_from_message(message),
        request_id=message.request_id,
        **options_from_message(message.options),
    )
    return request, VolumeReference(message.ref.sha256) if message.HasField("ref") else None


def volume_slice_to_message(
    request: VolumeRequest, index: int, *, image: bool = True
) -> pb.VolumeSlice:
    """One slice of a volume, with what is known of it, and with its image or by index alone.

    Raises:
        InvalidRequestError: an array has a dtype or rank that the wire does not carry.
    """
    student = request.student_masks.get(index)
    return pb.VolumeSlice(
        index=index,
        image=image_to_message(request.slices[index]) if image else None,
        student_mask=None if student is None else student_to_message(student, request.class_names),
        points=marks_to_messages(pb.Point, request.points.get(index, ()), "points"),
        boxes=marks_to_messages(pb.Box, request.boxes.get(index, ()), "boxes"),
    )
