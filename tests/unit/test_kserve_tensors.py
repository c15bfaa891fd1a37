"""Tensors and parameters of the Open Inference Protocol, as tritonclient makes and reads them."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np
import pytest
import tritonclient.http
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import np_to_triton_dtype

from vessa_client import (
    AnyArray,
    ClassResult,
    InvalidRequestError,
    OverloadedError,
    SegmentationRequest,
    SegmentationResult,
    VessaError,
)
from vessa_client._types import Priority
from vessa_server.api.kserve import inference, messages, model, parameters, rest_body, tensors
from vessa_server.api.kserve.tensors import InputTensor

DTYPES = ("uint8", "uint16", "int16", "int32", "float32", "float64")
CONTENTS = {
    "uint8": "uint_contents",
    "uint16": "uint_contents",
    "int16": "int_contents",
    "int32": "int_contents",
    "float32": "fp32_contents",
    "float64": "fp64_contents",
}
IMAGES = st.sampled_from(DTYPES).flatmap(
    lambda name: arrays.arrays(
        np.dtype(name),
        st.one_of(
            st.tuples(st.integers(1, 9), st.integers(1, 9)),
            st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3)),
        ),
        elements={"allow_nan": False} if name.startswith("f") else None,
    )
)


def assert_decoded(found: inference.InferRequest, image: AnyArray) -> None:
    decoded = tensors.decode(found.inputs[0], model.IMAGE)
    assert decoded.dtype == image.dtype
    assert np.array_equal(decoded, image)


@given(image=IMAGES, typed=st.booleans())
def test_grpc_tensors_arrive_as_they_were(image: AnyArray, typed: bool) -> None:
    message = pb.ModelInferRequest(model_name="vessa")
    name = np_to_triton_dtype(image.dtype)
    tensor = message.inputs.add(name="image", datatype=name, shape=image.shape)
    if typed:
        getattr(tensor.contents, CONTENTS[image.dtype.name]).extend(image.reshape(-1).tolist())
    else:
        message.raw_input_contents.append(image.tobytes())
    assert_decoded(messages.read(message), image)


@given(image=IMAGES, binary=st.booleans(), nested=st.booleans())
def test_rest_tensors_arrive_as_they_were(image: AnyArray, binary: bool, nested: bool) -> None:
    datatype = np_to_triton_dtype(image.dtype)
    if nested and not binary:
        tensor = {"name": "image", "shape": image.shape, "datatype": datatype}
        body = json.dumps({"inputs": [{**tensor, "data": image.tolist()}]}).encode()
        size = None
    else:
        given_ = tritonclient.http.InferInput("image", image.shape, datatype)
        given_.set_data_from_numpy(image, binary_data=binary)
        body, size = tritonclient.http.InferenceServerClient.generate_request_body([given_])
    assert_decoded(rest_body.read(body, None if size is None else str(size)), image)


@given(
    labels=arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9))),
    names=st.lists(st.text(st.characters(codec="utf-8")), max_size=4),
    binary=st.booleans(),
)
def test_rest_answers_arrive_as_they_were(labels: AnyArray, names: list[str], binary: bool) -> None:
    result = SegmentationResult(
        request_id="",
        labels=labels.astype(np.uint8),
        confidence=255 - labels.astype(np.uint8),
        classes=tuple(
            ClassResult(class_name=n, predicted_iou=1 / (i + 3)) for i, n in enumerate(names)
        ),
        templates=(),
        stage_ms={},
        model_digest="d",
        bank_version="v",
        image_features_cached=False,
        template_features_cached=False,
        image_sha256="",
    )
    body = {"inputs": [], "parameters": {"binary_data_output": binary}}
    asked = rest_body.read(json.dumps(body).encode(), None)
    outputs = [spec.name for spec in model.DEFAULT_OUTPUTS]
    response = rest_body.render(asked, inference.infer_answer(result, outputs))
    length = response.headers.get(rest_body.HEADER_LENGTH)
    assert (length is not None) == binary
    answer = tritonclient.http.InferenceServerClient.parse_response_body(
        bytes(response.body), header_length=None if length is None else int(length)
    )
    assert np.array_equal(answer.as_numpy("labels"), result.labels)
    assert np.array_equal(answer.as_numpy("confidence"), result.confidence)
    scores = np.array([c.predicted_iou for c in result.classes], np.float32)
    assert np.array_equal(answer.as_numpy("predicted_iou"), scores)
    found = answer.as_numpy("class_names").tolist()
    assert found == ([name.encode() for name in names] if binary else names)


ASKED: dict[str, Any] = {
    "class_names": "bar,disc",
    "text": "short axis",
    "top_k": 3,
    "template_ids": "a, b",
    "bank": "heart",
    "policy_off": "turns",
    "explain": True,
    "return_probabilities": True,
}
IMAGE = np.arange(64, dtype=np.uint8).reshape(8, 8)


@pytest.mark.parametrize("over_grpc", [True, False], ids=["grpc", "rest"])
@pytest.mark.parametrize(("priority", "expected"), [(0, ""), (1, "interactive"), (2, "bulk")])
def test_every_parameter_reaches_the_request(
    over_grpc: bool, priority: int, expected: Priority
) -> None:
    if over_grpc:
        message = pb.ModelInferRequest(
            model_name="vessa", id="7", raw_input_contents=[IMAGE.tobytes(), IMAGE.tobytes()]
        )
        for name in ("image", "student_mask"):
            message.inputs.add(name=name, datatype="UINT8", shape=IMAGE.shape)
        for name, value in ASKED.items():
            kind = {str: "string_param", int: "int64_param", bool: "bool_param"}[type(value)]
            setattr(message.parameters[name], kind, value)
        message.parameters["priority"].uint64_param = priority
        message.parameters["timeout"].int64_param = 1_500_000
        asked = messages.read(message)
    else:
        inputs = [
            tritonclient.http.InferInput(name, IMAGE.shape, "UINT8").set_data_from_numpy(IMAGE)
            for name in ("image", "student_mask")
        ]
        body, size = tritonclient.http.InferenceServerClient.generate_request_body(
            inputs, request_id="7", priority=priority, timeout=1_500_000, parameters=ASKED
        )
        asked = rest_body.read(body, str(size))
    options = parameters.read(asked.parameters)
    assert options.timeout == 1.5
    outputs = inference.wanted_outputs(asked.outputs, options)
    request = inference.segmentation_request(asked, options, outputs, IMAGE.nbytes)
    for name in ("image", "student_mask"):
        assert np.array_equal(getattr(request, name), IMAGE)
    assert request == SegmentationRequest(
        image=request.image,
        student_mask=request.student_mask,
        class_names=("bar", "disc"),
        text="short axis",
        top_k=3,
        template_ids=("a", "b"),
        return_probabilities=True,
        explain=True,
        bank="heart",
        policy_off=("turns",),
        priority=expected,
        request_id="7",
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("text", 3),
        ("top_k", -1),
        ("top_k", True),
        ("top_k", 1.5),
        ("top_k", 1 << 63),
        ("explain", 1),
        ("priority", "high"),
        ("priority", True),
        ("timeout", -1),
        ("timeout", 10**400),
    ],
)
def test_parameters_of_a_wrong_kind_are_refused_by_name(
    name: str, value: parameters.Parameter
) -> None:
    with pytest.raises(InvalidRequestError, match=f"parameters.{name}: .*expected"):
        parameters.read({name: value})


@pytest.mark.parametrize(
    ("datatype", "shape", "content"),
    [
        ("UINT8", (2, 2), b"abc"),
        ("UINT8", (2, 2), b"abcde"),
        ("UINT16", (2, 2), b"abcd"),
        ("UINT8", (-2, -2), b"abcd"),
        ("UINT8", (1 << 31, 1), b""),
        ("UINT8", (10**4000, 1, 2), b""),
        ("UINT8", (1, 1, 2, 2), b"abcd"),
        ("BYTES", (2, 2), b"abcd"),
        ("UINT8", (2, 2), [1, 2, 3]),
        ("UINT8", (2, 2), [[1, 2], [3]]),
        ("UINT8", (2, 2), [[1, 2], 3]),
        ("UINT8", (2, 2), [[1, 2, 3], [4]]),
        ("UINT8", (2, 2), [[[1], [2]], [[3], [4]]]),
        ("UINT8", (2, 2), [1, 2, 3, 256]),
        ("UINT8", (2, 2), [1, 2, 3, -1]),
        ("UINT8", (2, 2), [1, 2, 3, 4.5]),
        ("UINT8", (2, 2), [1, 2, 3, True]),
        ("UINT8", (2, 2), [1, 2, 3, None]),
        ("UINT8", (2, 2), [1, 2, 3, "4"]),
        ("FP32", (2, 2), [1, 2, 3, "4"]),
        ("FP32", (2, 2), [1, 2, 3, 10**400]),
    ],
)
def test_contents_that_do_not_fit_are_refused(
    datatype: str, shape: tuple[int, ...], content: Any
) -> None:
    with pytest.raises(InvalidRequestError, match=r"^image: .*expected"):
        tensors.decode(InputTensor("image", datatype, shape, content), model.IMAGE)


def test_size_is_checked_before_an_array_is_made() -> None:
    tensor = InputTensor("image", "FP64", (1 << 20, 1 << 20), [0])
    with pytest.raises(OverloadedError, match=r"expected at most 1000 \(LIMIT\)"):
        tensors.decode(tensor, model.IMAGE, 1000, "LIMIT")


@pytest.mark.parametrize(
    ("datatype", "shape", "content"),
    [
        ("UINT8", (1,), b"\x01\x00\x00\x00x"),
        ("BYTES", (2,), b"\x01\x00\x00\x00x\x01\x00\x00\x00x"),
        ("BYTES", (1,), b"\x02\x00\x00\x00x"),
        ("BYTES", (1,), b"\x00\x00\x00\x00x"),
        ("BYTES", (1,), b"\x00"),
        ("BYTES", (1,), b""),
        ("BYTES", (1,), []),
        ("BYTES", (1,), [b"a", b"b"]),
        ("BYTES", (1,), ["a text"]),
        ("BYTES", (1,), [7]),
    ],
)
def test_files_that_are_not_one_element_are_refused(
    datatype: str, shape: tuple[int, ...], content: Any
) -> None:
    with pytest.raises(InvalidRequestError, match=r"^encoded: .*expected"):
        tensors.decode_file(InputTensor("encoded", datatype, shape, content))


def test_a_file_in_typed_contents_is_taken() -> None:
    message = pb.ModelInferRequest(model_name="vessa")
    tensor = message.inputs.add(name="encoded", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(b"file")
    assert tensors.decode_file(messages.read(message).inputs[0]) == b"file"


def _mixed() -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="vessa", raw_input_contents=[b"x"])
    message.inputs.add(name="image", datatype="UINT8", shape=[1]).contents.uint_contents.append(1)
    return message


def _too_few() -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="vessa", raw_input_contents=[b"x"])
    for name in ("image", "student_mask"):
        message.inputs.add(name=name, datatype="UINT8", shape=[1])
    return message


def _other_contents() -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="vessa")
    message.inputs.add(name="image", datatype="UINT8", shape=[1]).contents.int_contents.append(1)
    return message


def _empty_parameter() -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="vessa")
    message.parameters["text"].SetInParent()
    return message


@pytest.mark.parametrize("make", [_mixed, _too_few, _other_contents, _empty_parameter])
def test_messages_that_contradict_themselves_are_refused(make: Any) -> None:
    with pytest.raises(InvalidRequestError, match="expected"):
        messages.read(make())


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)
TENSORS = st.fixed_dictionaries(
    {"name": st.sampled_from(["image", "encoded", "student_mask"]) | VALUES},
    optional={
        "datatype": st.sampled_from(["UINT8", "FP32", "BYTES"]) | VALUES,
        "shape": st.lists(st.integers(-1, 9), max_size=4) | VALUES,
        "data": VALUES,
        "parameters": st.just({"binary_data_size": 4}) | VALUES,
    },
)


@given(
    body=st.fixed_dictionaries(
        {"inputs": st.lists(TENSORS, max_size=3) | VALUES},
        optional={"id": VALUES, "outputs": VALUES, "parameters": VALUES},
    ),
    tail=st.binary(max_size=8),
)
def test_whatever_a_body_holds_it_is_read_or_refused(body: Any, tail: bytes) -> None:
    head = json.dumps(body).encode()
    with contextlib.suppress(VessaError):
        asked = rest_body.read(head + tail, str(len(head)))
        options = parameters.read(asked.parameters)
        outputs = inference.wanted_outputs(asked.outputs, options)
        inference.segmentation_request(asked, options, outputs, 1000)
