"""Arrays on the wire: tensors, label maps and digests. Pure functions, used by both sides.

Everything that comes from the other side is checked before memory is taken for it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from vessa.v1 import pseudo_label_pb2 as pb
from vessa_client import _runs
from vessa_client._errors import InvalidRequestError
from vessa_client._types import AnyArray, UInt8Array, Window

# Largest array that is accepted, in elements; servers set lower limits for images.
MAX_ELEMENTS: Final = 1 << 28
MAX_CLASSES: Final = 255
# Of an image.
MAX_POINTS: Final = 256
MAX_BOXES: Final = 32
MAX_MESSAGE_BYTES: Final = 256 * 1024 * 1024
# Most slices that a request may name of the volume that its image is a slice of.
MAX_VOLUME_SLICES: Final = 32
# Characters of a template's name.
MAX_NAME_LENGTH: Final = 80
METADATA_FIELD: Final = "vessa-field"
METADATA_RETRY_AFTER: Final = "vessa-retry-after"
IMAGE_REF_FIELD: Final = "image.ref"
VOLUME_REF_FIELD: Final = "volume.ref"

_DTYPES: Final[dict[str, pb.DataType]] = {
    "uint8": pb.DATA_TYPE_UINT8,
    "int8": pb.DATA_TYPE_INT8,
    "uint16": pb.DATA_TYPE_UINT16,
    "int16": pb.DATA_TYPE_INT16,
    "uint32": pb.DATA_TYPE_UINT32,
    "int32": pb.DATA_TYPE_INT32,
    "float16": pb.DATA_TYPE_FLOAT16,
    "float32": pb.DATA_TYPE_FLOAT32,
    "float64": pb.DATA_TYPE_FLOAT64,
}
_NAMES: Final = {value: name for name, value in _DTYPES.items()}


def encode_tensor(array: AnyArray, *, field: str = "tensor") -> pb.Tensor:
    """Array to message.

    Raises:
        InvalidRequestError: the dtype is not one of the wire's.
    """
    name = array.dtype.name
    if name not in _DTYPES:
        raise InvalidRequestError(
            f"{field}: dtype {name}, expected one of {', '.join(_DTYPES)}", field=field
        )
    data = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return pb.Tensor(dtype=_DTYPES[name], shape=array.shape, data=data.tobytes())


def decode_tensor(message: pb.Tensor, *, field: str = "tensor") -> AnyArray:
    """Message to a read-only array.

    Raises:
        InvalidRequestError: dtype, shape and data do not belong together.
    """
    if message.dtype not in _NAMES:
        raise InvalidRequestError(
            f"{field}.dtype: {message.dtype}, expected one of {', '.join(_DTYPES)}",
            field=f"{field}.dtype",
        )
    dtype = np.dtype(_NAMES[message.dtype]).newbyteorder("<")
    elements = math.prod(message.shape)
    if len(message.shape) > 4 or elements > MAX_ELEMENTS:
        raise InvalidRequestError(
            f"{field}.shape: {list(message.shape)}, expected at most 4 axes and "
            f"{MAX_ELEMENTS} elements",
            field=f"{field}.shape",
        )
    if elements * dtype.itemsize != len(message.data):
        raise InvalidRequestError(
            f"{field}.data: {len(message.data)} bytes, expected {elements * dtype.itemsize} "
            f"for shape {list(message.shape)} of {dtype.name}",
            field=f"{field}.data",
        )
    array = np.frombuffer(message.data, dtype=dtype).reshape(tuple(message.shape))
    return array.astype(dtype.newbyteorder("="), copy=False)


def encode_label_map(
    labels: AnyArray, num_classes: int, *, field: str = "label_map"
) -> pb.LabelMap:
    """Label map to message, in the smallest of the three encodings.

    Raises:
        InvalidRequestError: not a two-dimensional integer array in 0..num_classes.
    """
    if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
        raise InvalidRequestError(
            f"{field}: shape {labels.shape} of {labels.dtype}, expected (H, W) integers",
            field=field,
        )
    low, high = (int(labels.min()), int(labels.max())) if labels.size else (0, -1)
    if not 0 <= low <= high <= num_classes <= MAX_CLASSES:
        raise InvalidRequestError(
            f"{field}: labels {low}..{high} of {labels.size} pixels, expected 0..{num_classes} "
            f"of at least one, and at most {MAX_CLASSES} classes",
            field=field,
        )
    values = np.ascontiguousarray(labels, dtype=np.uint8).reshape(-1)
    packed_bytes = num_classes * math.ceil(values.size / 8)
    runs = _runs.encode(values, num_classes, min(values.size, packed_bytes))
    run_bytes = math.inf if runs is None else sum(map(len, runs))
    if values.size <= min(packed_bytes, run_bytes):
        encoding, payload = pb.MASK_ENCODING_RAW, [values.tobytes()]
    elif runs is None or packed_bytes < run_bytes:
        encoding = pb.MASK_ENCODING_BIT_PACKED
        payload = [np.packbits(values == i).tobytes() for i in range(1, num_classes + 1)]
    else:
        encoding, payload = pb.MASK_ENCODING_RUN_LENGTH, runs
    return pb.LabelMap(
        height=labels.shape[0],
        width=labels.shape[1],
        num_classes=num_classes,
        encoding=encoding,
        payload=payload,
    )


def decode_label_map(
    message: pb.LabelMap,
    *,
    field: str = "label_map",
    expected: tuple[int, int] | None = None,
    max_classes: int = MAX_CLASSES,
) -> UInt8Array:
    """Message to (H, W) uint8 labels.

    Args:
        message: a label map in any encoding.
        field: its name in errors.
        expected: height and width that it must have; None for any.
        max_classes: most classes that it may have.

    Raises:
        InvalidRequestError: it is not of the expected size, the payload does not fit height,
            width and number of classes, or classes overlap.
    """
    height, width, count = message.height, message.width, message.num_classes
    size = height * width
    if expected is not None and (height, width) != expected:
        raise InvalidRequestError(
            f"{field}: {height} x {width}, expected {expected[0]} x {expected[1]}", field=field
        )
    if size == 0 or size > MAX_ELEMENTS or count > max_classes:
        raise InvalidRequestError(
            f"{field}: {height} x {width} with {count} classes, expected at least one pixel, "
            f"at most {MAX_ELEMENTS}, and at most {max_classes} classes",
            field=field,
        )
    parts = 1 if message.encoding == pb.MASK_ENCODING_RAW else count
    if len(message.payload) != parts:
        raise _payload_error(field, f"{len(message.payload)} parts, expected {parts}")
    flat = _decode_labels(message, size, field)
    return flat.reshape(height, width)


def _decode_labels(message: pb.LabelMap, size: int, field: str) -> UInt8Array:
    if message.encoding == pb.MASK_ENCODING_RAW:
        _check_bytes(message.payload[0], size, field)
        labels = np.frombuffer(message.payload[0], dtype=np.uint8)
        if labels.max() > message.num_classes:
            raise InvalidRequestError(
                f"{field}: label {labels.max()}, expected 0..{message.num_classes}", field=field
            )
        return labels
    if message.encoding == pb.MASK_ENCODING_BIT_PACKED:
        return _decode_bits(message.payload, size, field)
    if message.encoding == pb.MASK_ENCODING_RUN_LENGTH:
        return _runs.decode(message.payload, size, field)
    raise InvalidRequestError(
        f"{field}.encoding: {message.encoding}, expected RAW, BIT_PACKED or RUN_LENGTH",
        field=f"{field}.encoding",
    )


def _decode_bits(payloads: Sequence[bytes], size: int, field: str) -> UInt8Array:
    for payload in payloads:
        _check_bytes(payload, math.ceil(size / 8), field)
    flat, covered = np.zeros(size, dtype=np.uint8), 0
    for label, payload in enumerate(payloads, start=1):
        bits = np.unpackbits(np.frombuffer(payload, dtype=np.uint8), count=size)
        covered += int(np.count_nonzero(bits))
        bits *= np.uint8(label)
        flat += bits
    if np.count_nonzero(flat) != covered:
        raise _payload_error(field, "classes overlap, expected each pixel in one at most")
    return flat


def _check_bytes(payload: bytes, expected: int, field: str) -> None:
    if len(payload) != expected:
        raise _payload_error(field, f"{len(payload)} bytes, expected {expected}")


def _payload_error(field: str, message: str) -> InvalidRequestError:
    return InvalidRequestError(f"{field}.payload: {message}", field=f"{field}.payload")


def image_digest(image: AnyArray | bytes) -> str:
    """Reference of an image: sha256 as the contract's ``ImageRef`` defines it."""
    if isinstance(image, bytes):
        return hashlib.sha256(image).hexdigest()
    header = f"{image.dtype.name}:{','.join(map(str, image.shape))}:"
    state = hashlib.sha256(header.encode())
    state.update(np.ascontiguousarray(image, dtype=image.dtype.newbyteorder("<")).data)
    return state.hexdigest()


def volume_digest(digests: Iterable[str]) -> str:
    """Reference of a volume, from those of its slices: as the contract's ``VolumeRef`` says."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def check_window(window: Window | None) -> None:
    """Check intensities that become black and white.

    Raises:
        InvalidRequestError: they are not finite, or not in order.
    """
    if window is None:
        return
    low, high = window
    if not (low < high and math.isfinite(low) and math.isfinite(high - low)):
        raise InvalidRequestError(
            f"window: {low:g}..{high:g}, expected finite numbers, the lower one first",
            field="window",
        )


def check_marks(points: int, boxes: int) -> None:
    """Check the numbers of points and of boxes of an image.

    Raises:
        InvalidRequestError: they are too many.
    """
    for field, count, most in (("points", points, MAX_POINTS), ("boxes", boxes, MAX_BOXES)):
        if count > most:
            raise InvalidRequestError(f"{field}: {count}, expected {most} at most", field=field)


def template_name(text: str) -> str:
    """What a template may be called by: printable, and cut in its middle where it is too long."""
    printable = "".join(c if c.isprintable() else "?" for c in text)
    half = (MAX_NAME_LENGTH - 3) // 2
    short = len(printable) <= MAX_NAME_LENGTH
    return printable if short else f"{printable[:half]}...{printable[-half:]}"
