"""The protocol's gRPC messages, to and from what :mod:`inference` takes and gives."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any, Final

from tritonclient.grpc import service_pb2 as pb

from vessa_client import InvalidRequestError
from vessa_server.api.kserve import model
from vessa_server.api.kserve.inference import InferAnswer, InferRequest
from vessa_server.api.kserve.parameters import Parameter
from vessa_server.api.kserve.tensors import InputTensor

# Where a message has the values of a datatype, if they are not raw.
_CONTENTS: Final = {
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def read(message: pb.ModelInferRequest) -> InferRequest:
    """Take a request apart; tensors stay as they were sent.

    Raises:
        InvalidRequestError: raw contents and inputs do not belong together, or a parameter of a
            tensor is not offered.
        NotFoundError: the model is not served.
    """
    model.check_model(message.model_name, message.model_version)
    for tensor in (*message.inputs, *message.outputs):
        for name in tensor.parameters:
            raise InvalidRequestError(
                f"{tensor.name[:80]}.parameters: {name[:80]!r} is not offered, expected none",
                field="parameters",
            )
    return InferRequest(
        id=message.id,
        inputs=_inputs(message),
        outputs=tuple(output.name for output in message.outputs),
        parameters={name: _parameter(name, value) for name, value in message.parameters.items()},
    )


def render(asked: InferRequest, answer: InferAnswer) -> pb.ModelInferResponse:
    """The answer as a message, with raw contents."""
    message = pb.ModelInferResponse(
        model_name=model.MODEL,
        model_version=model.VERSION,
        id=asked.id,
        outputs=[
            pb.ModelInferResponse.InferOutputTensor(
                name=output.name, datatype=output.datatype, shape=output.shape
            )
            for output in answer.outputs
        ],
        raw_output_contents=[output.raw() for output in answer.outputs],
    )
    for name, value in answer.parameters.items():
        message.parameters[name].string_param = value
    return message


def server_metadata() -> pb.ServerMetadataResponse:
    """Name, version, and which extensions are offered."""
    return pb.ServerMetadataResponse(
        name=model.SERVER, version=version("vessa-server"), extensions=model.EXTENSIONS
    )


def model_metadata() -> pb.ModelMetadataResponse:
    """The model's tensors."""
    return pb.ModelMetadataResponse(
        name=model.MODEL,
        versions=[model.VERSION],
        platform=model.PLATFORM,
        inputs=_specs(model.INPUTS),
        outputs=_specs(model.OUTPUTS),
    )


def _specs(specs: Iterable[model.TensorSpec]) -> list[Any]:
    return [
        pb.ModelMetadataResponse.TensorMetadata(
            name=spec.name, datatype=spec.datatypes[0], shape=spec.shape
        )
        for spec in specs
    ]


def _inputs(message: pb.ModelInferRequest) -> tuple[InputTensor, ...]:
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise InvalidRequestError(
            f"raw_input_contents: {len(raw)}, expected {len(message.inputs)}, one for each input",
            field="raw_input_contents",
        )
    return tuple(
        InputTensor(
            name=tensor.name,
            datatype=tensor.datatype,
            shape=tuple(tensor.shape),
            content=_raw(tensor, raw[index]) if raw else _typed(tensor),
        )
        for index, tensor in enumerate(message.inputs)
    )


def _raw(tensor: Any, content: bytes) -> bytes:
    if tensor.HasField("contents"):
        raise InvalidRequestError(
            f"{tensor.name[:80]}: contents and raw_input_contents, expected one of them",
            field="raw_input_contents",
        )
    return content


def _typed(tensor: Any) -> Sequence[Any]:
    expected = _CONTENTS.get(tensor.datatype)
    filled = [field.name for field, _ in tensor.contents.ListFields()]
    if expected is not None and filled not in ([expected], []):
        raise InvalidRequestError(
            f"{tensor.name[:80]}.contents: {', '.join(filled)}, expected {expected} for "
            f"{tensor.datatype}",
            field="contents",
        )
    values: Sequence[Any] = [] if expected is None else getattr(tensor.contents, expected)
    return values


def _parameter(name: str, message: pb.InferParameter) -> Parameter:
    choice = message.WhichOneof("parameter_choice")
    if choice is None:
        raise InvalidRequestError(
            f"parameters: {name[:80]!r} has no value, expected one", field="parameters"
        )
    value: Parameter = getattr(message, choice)
    return value
