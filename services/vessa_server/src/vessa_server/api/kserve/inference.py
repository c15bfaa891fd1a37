"""One inference, whatever the transport: tensors and parameters in, tensors out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from vessa_client import (
    AnyArray,
    InvalidRequestError,
    SegmentationRequest,
    SegmentationResult,
)
from vessa_server.api.kserve import model, parameters, tensors
from vessa_server.api.kserve.parameters import Options, Parameter
from vessa_server.api.kserve.tensors import InputTensor, OutputTensor
from vessa_server.api.service import Caller, Service
from vessa_server.scheduler.scheduler import Ticket


@dataclass(frozen=True, kw_only=True)
class InferRequest:
    """A request as it was sent.

    Attributes:
        outputs: names of the tensors that are asked for; empty for the usual ones.
    """

    id: str
    inputs: tuple[InputTensor, ...]
    outputs: tuple[str, ...]
    parameters: Mapping[str, Parameter]


@dataclass(frozen=True, kw_only=True)
class InferAnswer:
    """The tensors that were asked for.

    Attributes:
        parameters: what made them: weights and bank.
    """

    outputs: tuple[OutputTensor, ...]
    parameters: Mapping[str, str]


R = TypeVar("R", bound=InferRequest)
T = TypeVar("T")


async def infer(
    service: Service, read: Callable[[], R], render: Callable[[R, InferAnswer], T], caller: Caller
) -> T:
    """Segment one image.

    Args:
        service: that segments.
        read: takes the payload apart; runs in the service's pool.
        render: makes the payload of the answer; runs there, too.
        caller: who asks; the parameter ``timeout`` may end his patience earlier.

    Raises:
        VessaError: the request is wrong, refused, or out of time.
    """
    service.lanes.bounds.check(Ticket())
    asked = await service.work(read)
    options = parameters.read(asked.parameters)
    outputs = wanted_outputs(asked.outputs, options)

    def parse() -> SegmentationRequest:
        return segmentation_request(asked, options, outputs, service.settings.max_image_bytes)

    def rendered(result: SegmentationResult) -> T:
        return render(asked, infer_answer(result, outputs))

    return await service.segment(parse, rendered, _until(caller, options.timeout))


def wanted_outputs(asked: Sequence[str], options: Options) -> tuple[str, ...]:
    """Names of the outputs to give.

    Raises:
        InvalidRequestError: there is none of a name, or it is asked for twice.
    """
    known = [spec.name for spec in model.OUTPUTS]
    _check_names("outputs", asked, known)
    if asked:
        return tuple(asked)
    added = (
        (model.PROBABILITIES.name, options.return_probabilities),
        (model.EXPLANATIONS.name, options.explain),
    )
    usual = [spec.name for spec in model.DEFAULT_OUTPUTS]
    return (*usual, *(name for name, given in added if given))


def segmentation_request(
    asked: InferRequest, options: Options, outputs: Sequence[str], max_image_bytes: int
) -> SegmentationRequest:
    """The same in our words; work that no output shows is not asked for.

    Raises:
        InvalidRequestError: an input is unknown, missing, or malformed.
        OverloadedError: the image is over ``max_image_bytes``.
    """
    _check_names(
        "inputs", [tensor.name for tensor in asked.inputs], [spec.name for spec in model.INPUTS]
    )
    inputs = {tensor.name: tensor for tensor in asked.inputs}
    student = inputs.get(model.STUDENT_MASK.name)
    return SegmentationRequest(
        image=_image(inputs, max_image_bytes),
        student_mask=None if student is None else tensors.decode(student, model.STUDENT_MASK),
        class_names=options.class_names,
        text=options.text,
        top_k=options.top_k,
        template_ids=options.template_ids,
        return_probabilities=model.PROBABILITIES.name in outputs,
        explain=model.EXPLANATIONS.name in outputs,
        bank=options.bank,
        policy_off=options.policy_off,
        priority=options.priority,
        request_id=asked.id,
    )


def infer_answer(result: SegmentationResult, outputs: Sequence[str]) -> InferAnswer:
    """The tensors of ``outputs``, in that order."""
    values: dict[str, AnyArray | tuple[str, ...]] = {
        "labels": result.labels,
        "confidence": result.confidence,
        "predicted_iou": np.array([c.predicted_iou for c in result.classes], np.float32),
        "class_names": tuple(c.class_name for c in result.classes),
        "explanations": tuple(c.explanation for c in result.classes),
    }
    if result.probabilities is not None:
        values["probabilities"] = result.probabilities
    datatypes = {spec.name: spec.datatypes[0] for spec in model.OUTPUTS}
    return InferAnswer(
        outputs=tuple(OutputTensor(name, datatypes[name], values[name]) for name in outputs),
        parameters={"model_digest": result.model_digest, "bank_version": result.bank_version},
    )


def _image(inputs: Mapping[str, InputTensor], max_bytes: int) -> AnyArray | bytes:
    pixels, encoded = inputs.get(model.IMAGE.name), inputs.get(model.ENCODED.name)
    if (pixels is None) == (encoded is None):
        found = "missing" if pixels is None else "both"
        raise InvalidRequestError(
            f"inputs: {model.IMAGE.name} or {model.ENCODED.name}: {found}, expected one of them",
            field="inputs",
        )
    if encoded is not None:
        return tensors.decode_file(encoded)
    assert pixels is not None
    return tensors.decode(pixels, model.IMAGE, max_bytes, "VESSA_MAX_IMAGE_BYTES")


def _check_names(field: str, names: Sequence[str], known: Sequence[str]) -> None:
    for index, name in enumerate(names):
        if name not in known:
            raise InvalidRequestError(
                f"{field}: {name[:80]!r} is unknown, expected some of {', '.join(known)}",
                field=field,
            )
        if name in names[:index]:
            raise InvalidRequestError(f"{field}: {name} twice, expected once", field=field)


def _until(caller: Caller, timeout: float | None) -> Caller:
    """The caller, whose patience may end earlier."""
    if timeout is None:
        return caller
    ends = [end for end in (caller.deadline, time.monotonic() + timeout) if end is not None]
    return replace(caller, deadline=min(ends))
