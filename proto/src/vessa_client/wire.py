"""Arrays on the wire: tensors, label maps and digests. Pure functions, used by both sides.

Everything that comes from the other side is checked before memory is taken for it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from vessa.v1 import pseudo_label_pb2 as pb
from vessa_client._errors import InvalidRequestError
from vessa_client._types import AnyArray, UInt8Array

# Largest array that is accepted, in elements; servers set lower limits for images.
MAX_ELEMENTS: Final = 1 << 28
MAX_MESSAGE_BYTES: Final = 256 * 1024 * 1024
# Most slices that a request may name of the volume that its image is a slice of.
MAX_VOLUME_SLICES: Final = 32
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
    if num_classes > 255 or (labels.size and not 0 <= labels.min() <= labels.max() <= num_classes):
        raise InvalidRequestError(
            f"{field}: labels {labels.min()}..{labels.max()}, expected 0..{num_classes} "
            "and at most 255 classes",
            field=field,
        )
    values = labels.astype(np.uint8, copy=False)
    runs = [_encode_runs(values == i) for i in range(1, num_classes + 1)]
    packed_bytes = num_classes * math.ceil(values.size / 8)
    run_bytes = sum(len(run) for run in runs)
    if values.size <= min(packed_bytes, run_bytes):
        encoding, payload = pb.MASK_ENCODING_RAW, [np.ascontiguousarray(values).tobytes()]
    elif packed_bytes < run_bytes:
        encoding = pb.MASK_ENCODING_BIT_PACKED
        payload = [np.packbits(values == i).tobytes() for i in range(1, num_classes + 1)]
    else:
        encoding, payload = pb.MASK_ENCODING_RUN_LENGTH, runs
    return pb.LabelMap(
        height=values.shape[0],
        width=values.shape[1],
        num_classes=num_classes,
        encoding=encoding,
        payload=payload,
    )


def decode_label_map(message: pb.LabelMap, *, field: str = "label_map") -> UInt8Array:
    """Message to (H, W) uint8 labels.

    Raises:
        InvalidRequestError: the payload does not fit height, width and number of classes.
    """
    height, width, count = message.height, message.width, message.num_classes
    size = height * width
    if size == 0 or size > MAX_ELEMENTS or count > 255:
        raise InvalidRequestError(
            f"{field}: {height} x {width} with {count} classes, expected at least one pixel, "
            f"at most {MAX_ELEMENTS}, and at most 255 classes",
            field=field,
        )
    raw = message.encoding == pb.MASK_ENCODING_RAW
    if len(message.payload) != (1 if raw else count):
        raise InvalidRequestError(
            f"{field}.payload: {len(message.payload)} parts, expected {1 if raw else count}",
            field=f"{field}.payload",
        )
    if raw:
        if len(message.payload[0]) != size:
            raise _payload_error(field, len(message.payload[0]), size)
        labels = np.frombuffer(message.payload[0], dtype=np.uint8).reshape(height, width)
        if labels.max() > count:
            raise InvalidRequestError(
                f"{field}: label {labels.max()}, expected 0..{count}", field=field
            )
        return labels
    flat = np.zeros(size, dtype=np.uint8)
    for index, payload in enumerate(message.payload):
        flat[_decode_mask(payload, message.encoding, size, field)] = index + 1
    return flat.reshape(height, width)


def _decode_mask(
    payload: bytes, encoding: pb.MaskEncoding, size: int, field: str
) -> npt.NDArray[np.bool_]:
    if encoding == pb.MASK_ENCODING_BIT_PACKED:
        expected = math.ceil(size / 8)
        if len(payload) != expected:
            raise _payload_error(field, len(payload), expected)
        bits = np.unpackbits(np.frombuffer(payload, dtype=np.uint8), count=size)
        return bits.astype(bool)
    if encoding == pb.MASK_ENCODING_RUN_LENGTH:
        mask = np.zeros(size, dtype=bool)
        position, value = 0, False
        for length in _varints(payload, field):
            if length > size - position:
                raise _payload_error(field, position + length, size)
            mask[position : position + length] = value
            position, value = position + length, not value
        if position != size:
            raise _payload_error(field, position, size)
        return mask
    raise InvalidRequestError(
        f"{field}.encoding: {encoding}, expected RAW, BIT_PACKED or RUN_LENGTH",
        field=f"{field}.encoding",
    )


def _payload_error(field: str, got: int, expected: int) -> InvalidRequestError:
    return InvalidRequestError(
        f"{field}.payload: covers {got}, expected {expected}", field=f"{field}.payload"
    )


def _encode_runs(mask: npt.NDArray[np.bool_]) -> bytes:
    flat = mask.reshape(-1)
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    bounds = np.concatenate(([0], changes, [flat.size]))
    lengths = np.diff(bounds).tolist()
    if flat[0]:
        lengths.insert(0, 0)
    out = bytearray()
    for length in lengths:
        remaining = int(length)
        while remaining >= 0x80:
            out.append((remaining & 0x7F) | 0x80)
            remaining >>= 7
        out.append(remaining)
    return bytes(out)


def _varints(data: bytes, field: str) -> Iterator[int]:
    value, shift = 0, 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        if byte & 0x80:
            shift += 7
            if shift > 35:
                raise InvalidRequestError(
                    f"{field}.payload: a run length is longer than 5 bytes",
                    field=f"{field}.payload",
                )
            continue
        yield value
        value, shift = 0, 0
    if shift:
        raise InvalidRequestError(
            f"{field}.payload: ends in the middle of a run length", field=f"{field}.payload"
        )


def image_digest(image: AnyArray | bytes) -> str:
    """Reference of an image: sha256 as the contract's ``ImageRef`` defines it."""
    if isinstance(image, bytes):
        return hashlib.sha256(image).hexdigest()
    header = f"{image.dtype.name}:{','.join(map(str, image.shape))}:"
    state = hashlib.sha256(header.encode())
    state.update(np.ascontiguousarray(image, dtype=image.dtype.newbyteorder("<")).tobytes())
    return state.hexdigest()


def volume_digest(digests: Iterable[str]) -> str:
    """Reference of a volume, from those of its slices: as the contract's ``VolumeRef`` says."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()
