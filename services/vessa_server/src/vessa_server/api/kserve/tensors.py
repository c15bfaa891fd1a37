"""Tensors of the Open Inference Protocol, to and from arrays.

What comes from outside is checked before memory is taken for it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vessa_client import AnyArray, InvalidRequestError, OverloadedError
from vessa_client.wire import MAX_MESSAGE_BYTES
from vessa_server.api.kserve.model import ENCODED, TensorSpec

MAX_AXES: Final = 3
MAX_SIZE: Final = 1 << 31
_LENGTH: Final = struct.Struct("<I")  # before each element of raw BYTES
_DTYPES: Final[dict[str, npt.DTypeLike]] = {
    "UINT8": "<u1",
    "UINT16": "<u2",
    "INT16": "<i2",
    "INT32": "<i4",
    "FP32": "<f4",
    "FP64": "<f8",
}


@dataclass(frozen=True)
class InputTensor:
    """A tensor as it was sent.

    Attributes:
        content: raw bytes, little-endian and row-major; or a list of values, flat or (JSON)
            nested as the shape is.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    content: bytes | Sequence[Any]


@dataclass(frozen=True)
class OutputTensor:
    """A tensor to send: an array, or texts where the datatype is BYTES."""

    name: str
    datatype: str
    values: AnyArray | tuple[str, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        return (len(self.values),) if isinstance(self.values, tuple) else self.values.shape

    def raw(self) -> bytes:
        """Little-endian and row-major; a text follows its length in four bytes."""
        if isinstance(self.values, tuple):
            texts = [text.encode() for text in self.values]
            return b"".join(_LENGTH.pack(len(text)) + text for text in texts)
        return self.values.astype(_DTYPES[self.datatype], copy=False).tobytes()

    def flat(self) -> list[Any]:
        """Values one after the other, for JSON."""
        if isinstance(self.values, tuple):
            return list(self.values)
        listed: list[Any] = self.values.reshape(-1).tolist()
        return listed


def decode(
    tensor: InputTensor, spec: TensorSpec, max_bytes: int = MAX_MESSAGE_BYTES, limit: str = ""
) -> AnyArray:
    """A tensor of numbers as a read-only array.

    Args:
        tensor: as sent.
        spec: what it may be.
        max_bytes: most bytes that its array may have.
        limit: the setting that bounds it, for the message.

    Raises:
        InvalidRequestError: datatype, shape and content do not belong together.
        OverloadedError: it is over the limit.
    """
    dtype = np.dtype(_DTYPES[_datatype(tensor, spec)])
    if len(tensor.shape) > MAX_AXES or any(not 0 <= size < MAX_SIZE for size in tensor.shape):
        expected = f"at most {MAX_AXES} axes of 0..{MAX_SIZE - 1}"
        raise _wrong(tensor, f"shape {list(tensor.shape)[:8]}"[:200], expected)
    elements = math.prod(tensor.shape)
    nbytes = elements * dtype.itemsize
    if nbytes > max_bytes:
        setting = f" ({limit})" if limit else ""
        raise OverloadedError(
            f"{tensor.name}: {nbytes} bytes, expected at most {max_bytes}{setting}",
            field=tensor.name,
        )
    if isinstance(tensor.content, bytes):
        if len(tensor.content) != nbytes:
            expected = f"{nbytes} for shape {list(tensor.shape)} of {tensor.datatype}"
            raise _wrong(tensor, f"{len(tensor.content)} bytes", expected)
        array = np.frombuffer(tensor.content, dtype)
    else:
        array = _listed(tensor, elements, dtype)
    return array.reshape(tensor.shape).astype(dtype.newbyteorder("="), copy=False)


def decode_file(tensor: InputTensor) -> bytes:
    """A BYTES tensor of one element.

    Raises:
        InvalidRequestError: it is not one.
    """
    _datatype(tensor, ENCODED)
    if tensor.shape != ENCODED.shape:
        raise _wrong(tensor, f"shape {list(tensor.shape)[:8]}", f"{list(ENCODED.shape)}")
    content = tensor.content
    if isinstance(content, bytes):
        size = len(content) - _LENGTH.size
        if size < 0 or _LENGTH.unpack_from(content)[0] != size:
            expected = "one element: its length in four bytes, little-endian, and its bytes"
            raise _wrong(tensor, f"{len(content)} bytes", expected)
        return content[_LENGTH.size :]
    if len(content) != 1:
        raise _wrong(tensor, f"{len(content)} elements", "one")
    if not isinstance(content[0], bytes):
        raise _wrong(tensor, "a file in JSON", "binary data (binary_data_size)")
    return content[0]


def _datatype(tensor: InputTensor, spec: TensorSpec) -> str:
    if tensor.datatype not in spec.datatypes:
        found = f"datatype {tensor.datatype[:80]!r}"
        raise _wrong(tensor, found, f"one of {', '.join(spec.datatypes)}")
    return tensor.datatype


def _listed(tensor: InputTensor, elements: int, dtype: np.dtype[Any]) -> AnyArray:
    values = _flat(tensor)
    if len(values) != elements:
        raise _wrong(tensor, f"{len(values)} values", f"{elements} for shape {list(tensor.shape)}")
    # numpy would cut 1.5 to 1, read "1" as 1, and make long texts of all elements.
    wanted = {int, float} if dtype.kind == "f" else {int}
    if not set(map(type, values)) <= wanted:
        raise _wrong(tensor, "values of another kind", f"numbers of {tensor.datatype}")
    try:
        with np.errstate(over="ignore"):  # infinite pixels are refused with the image
            return np.array(values, dtype)
    except OverflowError:
        raise _wrong(tensor, "values out of range", f"numbers of {tensor.datatype}") from None


def _flat(tensor: InputTensor) -> Sequence[Any]:
    """The values without the nesting that JSON may have."""
    values: Sequence[Any] = tensor.content
    for size in tensor.shape[1:]:
        if not values or not isinstance(values[0], list):
            break
        if any(not isinstance(row, list) or len(row) != size for row in values):
            raise _wrong(tensor, "uneven lists", f"lists as shape {list(tensor.shape)} has them")
        values = list(chain.from_iterable(values))
    return values


def _wrong(tensor: InputTensor, found: str, expected: str) -> InvalidRequestError:
    return InvalidRequestError(f"{tensor.name}: {found}, expected {expected}", field=tensor.name)
