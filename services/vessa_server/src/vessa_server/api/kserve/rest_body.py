"""Bodies of the protocol's REST inference: JSON, and raw tensors behind it.

With the header ``Inference-Header-Content-Length`` so many bytes of a body are JSON; what follows
are the raw tensors of those that have a ``binary_data_size``, in their order.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

from fastapi import Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vessa_client import InvalidRequestError, OverloadedError
from vessa_server.api.kserve import model, parameters
from vessa_server.api.kserve.inference import InferAnswer, InferRequest
from vessa_server.api.kserve.parameters import Parameter
from vessa_server.api.kserve.tensors import InputTensor

HEADER_LENGTH: Final = "Inference-Header-Content-Length"
# Lists of numbers take many times their size in memory; large tensors come as binary data.
MAX_JSON_BYTES: Final = 16 << 20
BINARY_OUTPUT: Final = "binary_data_output"
_Parameters = Annotated[dict[str, Parameter], Field(default_factory=dict, max_length=32)]


class TensorJson(BaseModel):
    """An input; its values are in ``data``, flat or nested, unless they follow as binary data."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    datatype: str
    shape: Annotated[list[int], Field(max_length=8)]
    parameters: _Parameters
    data: list[Any] | None = None


class OutputJson(BaseModel):
    """An output that is asked for."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    parameters: _Parameters


class InferJson(BaseModel):
    """JSON of ``POST /v2/models/vessa/infer``."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: str = ""
    inputs: Annotated[list[TensorJson], Field(max_length=32)]
    outputs: Annotated[list[OutputJson], Field(default_factory=list, max_length=32)]
    parameters: _Parameters


@dataclass(frozen=True, kw_only=True)
class RestInferRequest(InferRequest):
    """A request that says of each output whether it is to be raw.

    Attributes:
        binary: of outputs that are named with ``binary_data``.
        binary_default: of the others.
    """

    binary: dict[str, bool]
    binary_default: bool


def read(body: bytes, header_length: str | None) -> RestInferRequest:
    """Take a body apart; tensors stay as they were sent.

    Raises:
        InvalidRequestError: it is malformed.
        OverloadedError: there is too much JSON.
    """
    split = _json_length(body, header_length)
    try:
        parsed = InferJson.model_validate_json(body[:split])
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])[:100] or "body"
        raise InvalidRequestError(f"{field}: {first['msg']}", field="body") from error
    values = dict(parsed.parameters)
    default = parameters.flag(values, BINARY_OUTPUT)
    values.pop(BINARY_OUTPUT, None)
    return RestInferRequest(
        id=parsed.id,
        inputs=_inputs(parsed.inputs, body, split),
        outputs=tuple(output.name for output in parsed.outputs),
        parameters=values,
        binary={output.name: _binary(output, default) for output in parsed.outputs},
        binary_default=default,
    )


def render(asked: RestInferRequest, answer: InferAnswer) -> Response:
    """The answer; raw tensors, where they are asked for, follow the JSON."""
    listed, raw = [], []
    for output in answer.outputs:
        described: dict[str, Any] = {
            "name": output.name,
            "datatype": output.datatype,
            "shape": list(output.shape),
        }
        if asked.binary.get(output.name, asked.binary_default):
            raw.append(output.raw())
            described["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            described["data"] = output.flat()
        listed.append(described)
    head = json.dumps(
        {
            "model_name": model.MODEL,
            "model_version": model.VERSION,
            **({"id": asked.id} if asked.id else {}),
            "parameters": dict(answer.parameters),
            "outputs": listed,
        }
    ).encode()
    if not raw:
        return Response(head, media_type="application/json")
    return Response(
        b"".join((head, *raw)),
        media_type="application/octet-stream",
        headers={HEADER_LENGTH: str(len(head))},
    )


def _json_length(body: bytes, header_length: str | None) -> int:
    """How many bytes of a body are JSON."""
    given = str(len(body)) if header_length is None else header_length
    length = int(given) if given.isascii() and given.isdecimal() and len(given) < 12 else -1
    if not 0 < length <= len(body):
        raise InvalidRequestError(
            f"{HEADER_LENGTH}: {given[:20]!r} of {len(body)} bytes, expected the length of the "
            "JSON at their beginning",
            field=HEADER_LENGTH,
        )
    if length > MAX_JSON_BYTES:
        raise OverloadedError(
            f"body: {length} bytes of JSON, expected at most {MAX_JSON_BYTES}; send tensors as "
            "binary data (binary_data_size)",
            field="body",
        )
    return length


def _inputs(given: Sequence[TensorJson], body: bytes, start: int) -> tuple[InputTensor, ...]:
    inputs = []
    for tensor in given:
        size = _binary_size(tensor)
        if (size is None) == (tensor.data is None):
            raise _wrong(tensor, "data or binary_data_size", "one of them")
        if size is not None and size > len(body) - start:
            raise _wrong(tensor, f"binary_data_size {size}", f"at most {len(body) - start} left")
        content: bytes | list[Any] = tensor.data or []
        if size is not None:
            content = body[start : start + size]
            start += size
        inputs.append(InputTensor(tensor.name, tensor.datatype, tuple(tensor.shape), content))
    if start != len(body):
        raise InvalidRequestError(
            f"body: {len(body) - start} bytes left over, expected the binary_data_size of the "
            "inputs to add up",
            field="body",
        )
    return tuple(inputs)


def _binary_size(tensor: TensorJson) -> int | None:
    _only(tensor, "binary_data_size")
    size = tensor.parameters.get("binary_data_size")
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 0):
        raise _wrong(tensor, f"binary_data_size {str(size)[:20]}", "an integer from 0")
    return size


def _binary(output: OutputJson, default: bool) -> bool:
    _only(output, "binary_data")
    asked = {"binary_data": default, **output.parameters}
    return parameters.flag(asked, "binary_data")


def _only(tensor: TensorJson | OutputJson, known: str) -> None:
    for name in tensor.parameters:
        if name != known:
            raise _wrong(tensor, f"parameter {name[:80]!r} is not offered", f"only {known}")


def _wrong(tensor: TensorJson | OutputJson, found: str, expected: str) -> InvalidRequestError:
    name = tensor.name[:80]
    return InvalidRequestError(f"{name}: {found}, expected {expected}", field="body")
