"""What goes to Triton and comes back: JSON beside flat tensors.

Both directions have the same four tensors, of which only the first is always there. Each has the
shape (1, n): shapes of arrays are in the JSON. So requests of any sizes fit into one batch, and
no tensor is of type BYTES, whose Python objects are slow and depend on the version of numpy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from vessa_server.runtime.protocol import (
    Bools,
    Floats,
    HandleLostError,
    RuntimeUnavailableError,
)

# Changes with every change of an operation's fields or arrays.
PROTOCOL: Final = 1
MESSAGE, FLOATS, MASKS, TENSORS = "message", "floats", "masks", "tensors"
NAMES: Final = (MESSAGE, FLOATS, MASKS, TENSORS)
MAX_JSON_BYTES: Final = 1 << 20
# Errors of a runtime, which an answer names; any other is Triton's to report.
ERRORS: Final[dict[str, type[Exception]]] = {
    error.__name__: error
    for error in (HandleLostError, RuntimeUnavailableError, KeyError, TypeError)
}

T = TypeVar("T")
Arrays = dict[str, npt.NDArray[Any]]


class MessageError(ValueError):
    """A message does not have what its operation needs; names the field."""


@dataclass(frozen=True)
class Message:
    """A request or an answer.

    Attributes:
        fields: for JSON.
        floats: arrays in float32.
        masks: arrays of booleans.
        tensors: a safetensors file.
    """

    fields: Mapping[str, Any]
    floats: Sequence[Floats] = ()
    masks: Sequence[Bools] = ()
    tensors: bytes = b""

    def get(self, name: str, kind: type[T]) -> T:
        """A field.

        Raises:
            MessageError: it is missing, or of another kind.
        """
        value = self.fields.get(name)
        if not isinstance(value, kind):
            raise MessageError(f"{name}: {type(value).__name__}, expected {kind.__name__}")
        return value

    def to_arrays(self) -> Arrays:
        """The tensors of this message by name, (1, n) each; those without values are left out."""
        shapes = {
            FLOATS: [array.shape for array in self.floats],
            MASKS: [array.shape for array in self.masks],
        }
        text = json.dumps({**self.fields, "shapes": shapes}).encode()
        arrays: Arrays = {
            MESSAGE: np.frombuffer(text, np.uint8),
            FLOATS: _flat(self.floats, np.float32),
            MASKS: _flat(self.masks, np.bool_),
            TENSORS: np.frombuffer(self.tensors, np.uint8),
        }
        return {name: array.reshape(1, -1) for name, array in arrays.items() if array.size}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Message:
        """Inverse of :meth:`to_arrays`; arrays are views.

        Raises:
            MessageError: it is no JSON object, or sizes and shapes do not agree.
        """
        text = arrays[MESSAGE]
        if text.size > MAX_JSON_BYTES:
            raise MessageError(f"message: {text.size} bytes, expected at most {MAX_JSON_BYTES}")
        try:
            fields = json.loads(text.tobytes())
            shapes = {name: list(fields["shapes"][name]) for name in (FLOATS, MASKS)}
        except (ValueError, KeyError, TypeError, RecursionError):
            raise MessageError("message: expected a JSON object with shapes") from None
        tensors = arrays.get(TENSORS)
        return cls(
            fields,
            floats=_split(FLOATS, arrays.get(FLOATS), np.float32, shapes[FLOATS]),
            masks=_split(MASKS, arrays.get(MASKS), np.bool_, shapes[MASKS]),
            tensors=b"" if tensors is None else tensors.tobytes(),
        )


def _flat(arrays: Sequence[npt.NDArray[Any]], dtype: type) -> npt.NDArray[Any]:
    flat: list[npt.NDArray[Any]] = [
        np.ascontiguousarray(array, dtype).reshape(-1) for array in arrays
    ]
    # No copy of a single image.
    return flat[0] if len(flat) == 1 else np.concatenate([np.empty(0, dtype), *flat])


def _split(
    name: str, array: npt.NDArray[Any] | None, dtype: type, shapes: Sequence[Any]
) -> list[npt.NDArray[Any]]:
    """Arrays of these shapes, one after another."""
    flat = np.empty(0, dtype) if array is None else array.reshape(-1)
    if flat.dtype != dtype:
        raise MessageError(f"{name}: {flat.dtype}, expected {np.dtype(dtype)}")
    for shape in shapes:
        if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
            raise MessageError(f"{name}: expected shapes of numbers")
    sizes = [math.prod(shape) for shape in shapes]
    if sum(sizes) != flat.size:
        raise MessageError(f"{name}: {flat.size} values, expected {sum(sizes)}")
    ends = np.cumsum(sizes)
    return [
        flat[end - size : end].reshape(shape)
        for end, size, shape in zip(ends, sizes, shapes, strict=True)
    ]
