"""Between the package's records and the wire's messages; used by client and server."""

from vessa_client.convert._bank import (
    class_from_message,
    class_to_message,
    info_from_message,
    info_to_message,
    listing_from_message,
    template_content_from_message,
    template_content_to_message,
    template_from_message,
    template_to_message,
)
from vessa_client.convert._requests import (
    image_from_message,
    image_to_message,
    marks_from_message,
    request_from_message,
    request_to_message,
    student_from_message,
    window_from_message,
    window_to_message,
)
from vessa_client.convert._results import (
    result_from_message,
    result_to_message,
)
from vessa_client.convert._volumes import (
    volume_header_from_message,
    volume_header_to_message,
    volume_slice_to_message,
)

__all__ = [
    "class_from_message",
    "class_to_message",
    "image_from_message",
    "image_to_message",
    "info_from_message",
    "info_to_message",
    "listing_from_message",
    "marks_from_message",
    "request_from_message",
    "request_to_message",
    "result_from_message",
    "result_to_message",
    "student_from_message",
    "template_content_from_message",
    "template_content_to_message",
    "template_from_message",
    "template_to_message",
    "volume_header_from_message",
    "volume_header_to_message",
    "volume_slice_to_message",
    "window_from_message",
    "window_to_message",
]
