"""The Open Inference Protocol against a real server, with the real tritonclient."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from tritonclient.utils import InferenceServerException

from support import ROOT, RunningServer, engine_of, picture, running
from support_kserve import ONE_IMAGE, Protocol, assert_same, connected, one_file, png
from vessa_client import AnyArray, SegmentationRequest, VessaClient
from vessa_server.api.kserve import rest_body
from vessa_server.engine_settings import EngineSettings

IMAGE, LABELS = picture(0)
MAPS = np.stack([(LABELS == 1) * 200, (LABELS == 2) * 90]).astype(np.uint8)
INFER = "/v2/models/vessa/infer"


@pytest.fixture(params=["grpc", "http"])
def protocol(request: pytest.FixtureRequest, server: RunningServer) -> Iterator[Protocol]:
    found = connected(request.param, server)
    yield found
    found.client.close()


def test_health_and_metadata_say_what_is_served(protocol: Protocol) -> None:
    client = protocol.client
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("vessa")
    assert client.is_model_ready("vessa", "1")
    as_dict = {"as_json": True} if protocol.over_grpc else {}
    found = client.get_server_metadata(**as_dict)
    assert found["name"] == "vessa-server"
    assert "binary_tensor_data" in found["extensions"]
    described = client.get_model_metadata("vessa", "1", **as_dict)
    assert (described["name"], described["versions"]) == ("vessa", ["1"])
    assert described["platform"] == "vessa"
    shapes = {t["name"]: (t["datatype"], [int(n) for n in t["shape"]]) for t in described["inputs"]}
    assert shapes == {
        "image": ("UINT8", [-1, -1]),
        "encoded": ("BYTES", [1]),
        "student_mask": ("UINT8", [-1, -1]),
    }
    assert [t["name"] for t in described["outputs"]] == [
        "labels",
        "confidence",
        "predicted_iou",
        "class_names",
        "probabilities",
        "explanations",
    ]


@pytest.mark.parametrize(
    ("image", "student"),
    [
        (IMAGE, None),
        (np.stack([IMAGE, IMAGE // 2, IMAGE // 3], axis=2), None),
        (IMAGE.astype(np.uint16) * 200, LABELS),
        (IMAGE.astype(np.int16) - 128, MAPS),
        (IMAGE.astype(np.int32) * 70_000, (MAPS / 255).astype(np.float32)),
        (IMAGE.astype(np.float32) / 7, None),
        (IMAGE.astype(np.float64) / 7, LABELS),
        (png(IMAGE), LABELS),
    ],
    ids=["uint8", "colour", "uint16", "int16", "int32", "float32", "float64", "file"],
)
def test_answers_are_those_of_our_own_client(
    protocol: Protocol, client: VessaClient, image: AnyArray | bytes, student: AnyArray | None
) -> None:
    arrays = {"encoded": one_file(image)} if isinstance(image, bytes) else {"image": image}
    if student is not None:
        arrays["student_mask"] = student
    asked = {"return_probabilities": True}
    answer = protocol.infer(arrays, request_id="seven", parameters=asked)
    expected = client.segment(
        SegmentationRequest(image=image, student_mask=student, return_probabilities=True)
    )
    assert_same(answer, expected)
    assert answer.as_numpy("labels").shape == IMAGE.shape
    response = answer.get_response()
    assert (response.id if protocol.over_grpc else response["id"]) == "seven"


def test_only_outputs_that_are_asked_for_come(protocol: Protocol) -> None:
    def names(answer: Any) -> list[str]:
        response = answer.get_response()
        if protocol.over_grpc:
            return [output.name for output in response.outputs]
        return [output["name"] for output in response["outputs"]]

    usual = ["labels", "confidence", "predicted_iou", "class_names"]
    assert names(protocol.infer(ONE_IMAGE)) == usual
    one = protocol.infer(ONE_IMAGE, ["probabilities", "labels"])
    assert names(one) == ["probabilities", "labels"]
    assert one.as_numpy("probabilities").shape == (2, *IMAGE.shape)
    everything = {"return_probabilities": True, "explain": True}
    both = protocol.infer(ONE_IMAGE, parameters=everything)
    assert names(both) == [*usual, "probabilities", "explanations"]
    assert both.as_numpy("explanations").shape == (2,)


def test_classes_are_those_that_are_asked_for_in_their_order(
    protocol: Protocol, client: VessaClient
) -> None:
    answer = protocol.infer(ONE_IMAGE, parameters={"class_names": "bar, disc", "top_k": 1})
    assert answer.as_numpy("class_names").tolist() == [b"bar", b"disc"]
    assert_same(
        answer,
        client.segment(SegmentationRequest(image=IMAGE, class_names=("bar", "disc"), top_k=1)),
    )


def test_json_tensors_and_binary_tensors_give_the_same(server: RunningServer) -> None:
    http = connected("http", server)
    names = ["labels", "confidence", "predicted_iou", "class_names"]
    answers = []
    for binary in (True, False):
        inputs = [
            http.tensor("image", IMAGE, binary_data=binary),
            http.tensor("student_mask", MAPS, binary_data=True),
        ]
        outputs = [http.module.InferRequestedOutput(n, binary_data=binary) for n in names]
        answers.append(http.client.infer("vessa", inputs, outputs=outputs))
    for name in names[:3]:
        assert np.array_equal(*(answer.as_numpy(name) for answer in answers))
    assert answers[0].as_numpy("class_names").tolist() == [b"disc", b"bar"]
    assert answers[1].as_numpy("class_names").tolist() == ["disc", "bar"]  # JSON has texts
    nested = {"name": "image", "shape": IMAGE.shape, "datatype": "UINT8", "data": IMAGE.tolist()}
    found = httpx.post(f"{server.http}{INFER}", json={"inputs": [nested]}).raise_for_status()
    assert found.headers["content-type"] == "application/json"
    assert rest_body.HEADER_LENGTH not in found.headers
    body = found.json()
    assert "id" not in body
    labels = np.reshape(body["outputs"][0]["data"], body["outputs"][0]["shape"])
    plain = http.infer(ONE_IMAGE)
    assert np.array_equal(labels, plain.as_numpy("labels"))
    http.client.close()


@pytest.mark.parametrize(
    ("arrays", "options", "codes", "words"),
    [
        ({}, {}, ("INVALID_ARGUMENT", 422), "image or encoded: missing"),
        (
            {"image": IMAGE, "encoded": one_file(b"x")},
            {},
            ("INVALID_ARGUMENT", 422),
            "image or encoded: both",
        ),
        ({"pixels": IMAGE}, {}, ("INVALID_ARGUMENT", 422), "'pixels' is unknown, expected some of"),
        ({"image": IMAGE.astype(np.int64)}, {}, ("INVALID_ARGUMENT", 422), "'INT64', expected one"),
        ({"image": IMAGE[None]}, {}, ("INVALID_ARGUMENT", 422), r"expected \(H, W\) or \(H, W, 3"),
        ({"image": IMAGE[None, None]}, {}, ("INVALID_ARGUMENT", 422), "expected at most 3 axes"),
        ({"image": IMAGE[:4]}, {}, ("INVALID_ARGUMENT", 422), "expected at least 8 a side"),
        ({"encoded": one_file(b"no file")}, {}, ("INVALID_ARGUMENT", 422), "not an image"),
        (
            {"image": IMAGE, "student_mask": LABELS[1:]},
            {},
            ("INVALID_ARGUMENT", 422),
            "the image's size",
        ),
        ({"image": np.zeros((8, 4100), np.uint8)}, {}, ("RESOURCE_EXHAUSTED", 413), "4096 a side"),
        (
            {"image": IMAGE},
            {"parameters": {"class_names": "liver"}},
            ("NOT_FOUND", 404),
            "liver",
        ),
        ({"image": IMAGE}, {"parameters": {"top": 3}}, ("INVALID_ARGUMENT", 422), "'top' is unkn"),
        (
            {"image": IMAGE},
            {"parameters": {"top_k": "3"}},
            ("INVALID_ARGUMENT", 422),
            "top_k: '3', expected an integer",
        ),
        (
            {"image": IMAGE},
            {"sequence_id": 3},
            ("INVALID_ARGUMENT", 422),
            "'sequence_.*' is unknown",
        ),
        ({"image": IMAGE}, {"model_version": "2"}, ("NOT_FOUND", 404), "'2', expected 1"),
    ],
)
def test_errors_say_what_was_expected(
    protocol: Protocol,
    arrays: dict[str, AnyArray],
    options: dict[str, Any],
    codes: tuple[str, int],
    words: str,
) -> None:
    with pytest.raises(InferenceServerException, match=words) as caught:
        protocol.infer(arrays, **options)
    assert caught.value.status() == protocol.code(*codes)
    assert protocol.infer(ONE_IMAGE).as_numpy("labels").shape == IMAGE.shape


def test_there_is_one_model_and_six_calls(protocol: Protocol) -> None:
    client = protocol.client
    with pytest.raises(InferenceServerException, match="'unet', expected vessa") as caught:
        client.infer("unet", [protocol.tensor("image", IMAGE)])
    assert caught.value.status() == protocol.code("NOT_FOUND", 404)
    with pytest.raises(InferenceServerException, match="'unet', expected vessa"):
        client.get_model_metadata("unet")
    for call in (client.get_model_repository_index, client.get_inference_statistics):
        with pytest.raises(InferenceServerException) as caught:
            call()
        assert caught.value.status() == protocol.code("UNIMPLEMENTED", 404)
    with pytest.raises(InferenceServerException, match="'class_scores' is unknown"):
        protocol.infer(ONE_IMAGE, ["class_scores"])
    with pytest.raises(InferenceServerException, match="labels twice"):
        protocol.infer(ONE_IMAGE, ["labels", "labels"])
    with pytest.raises(InferenceServerException, match="image twice"):
        client.infer("vessa", [protocol.tensor("image", IMAGE)] * 2)


def test_shared_memory_is_refused_by_name(protocol: Protocol) -> None:
    tensor = protocol.module.InferInput("image", IMAGE.shape, "UINT8")
    tensor.set_shared_memory("region", IMAGE.nbytes)
    with pytest.raises(InferenceServerException, match=r"shared_memory_.*is not offered"):
        protocol.client.infer("vessa", [tensor])


@pytest.mark.parametrize(
    ("body", "headers", "words"),
    [
        (b"{", {}, "body"),
        (b"[" * 100_000, {}, "body"),
        (b"{}", {}, "inputs: Field required"),
        (b'{"inputs": [], "input": 3}', {}, "input: Extra"),
        (b'{"inputs": [{"name": "image", "shape": [8, 8]}]}', {}, "inputs.0.datatype"),
        (b"{}", {rest_body.HEADER_LENGTH: "3"}, "of 2 bytes, expected the length"),
        (b"{}", {rest_body.HEADER_LENGTH: "-1"}, "of 2 bytes, expected the length"),
        (b'{"inputs": []}xy', {rest_body.HEADER_LENGTH: "14"}, "2 bytes left over"),
        (
            b'{"inputs": [{"name": "image", "datatype": "UINT8", "shape": [9],'
            b' "parameters": {"binary_data_size": 9}}]}xy',
            {rest_body.HEADER_LENGTH: "105"},
            "image: binary_data_size 9, expected at most 2 left",
        ),
        (b"x", {"Content-Encoding": "gzip"}, "content-encoding: 'gzip', expected none"),
    ],
)
def test_bodies_that_are_not_the_protocols_are_refused_in_its_form(
    server: RunningServer, body: bytes, headers: dict[str, str], words: str
) -> None:
    answer = httpx.post(f"{server.http}{INFER}", content=body, headers=headers)
    assert answer.status_code == 422
    assert list(answer.json()) == ["error"]
    assert words in answer.json()["error"]


def test_what_is_too_large_is_refused(tmp_path: Path) -> None:
    engine = engine_of(tmp_path, settings=EngineSettings(max_image_bytes=4096))
    large = np.random.default_rng(0).integers(0, 255, (300, 300), dtype=np.uint8)
    with running(engine, max_image_bytes=4096) as server:
        for kind in ("grpc", "http"):
            protocol = connected(kind, server)
            for arrays in ({"image": large}, {"encoded": one_file(png(large))}):
                with pytest.raises(InferenceServerException, match="4096") as caught:
                    protocol.infer(arrays)
                assert caught.value.status() == protocol.code("RESOURCE_EXHAUSTED", 413)
            protocol.client.close()
        answer = httpx.post(f"{server.http}{INFER}", content=b"x" * 3_000_000)
        assert answer.status_code == 413
        assert "VESSA_MAX_IMAGE_BYTES" in answer.json()["error"]
        listed = {"name": "image", "shape": [100, 100], "datatype": "FP64", "data": [0] * 10_000}
        answer = httpx.post(f"{server.http}{INFER}", json={"inputs": [listed]})
        assert answer.status_code == 413
        assert "80000 bytes, expected at most 4096" in answer.json()["error"]


def test_lists_over_the_limit_are_to_be_sent_as_binary_data(server: RunningServer) -> None:
    body = b'{"id": "' + b"x" * rest_body.MAX_JSON_BYTES + b'", "inputs": []}'
    answer = httpx.post(f"{server.http}{INFER}", content=body)
    assert answer.status_code == 413
    assert "binary_data_size" in answer.json()["error"]


def test_the_token_is_asked_for(tmp_path: Path) -> None:
    with running(engine_of(tmp_path), token="s3cret") as server:
        for kind in ("grpc", "http"):
            protocol = connected(kind, server)
            client, inputs = protocol.client, [protocol.tensor("image", IMAGE)]
            assert client.is_server_live()
            assert client.is_server_ready()
            for headers in ({}, {"authorization": "Bearer other"}):
                with pytest.raises(InferenceServerException, match="VESSA_TOKEN") as caught:
                    client.infer("vessa", inputs, headers=headers)
                assert caught.value.status() == protocol.code("UNAUTHENTICATED", 401)
                with pytest.raises(InferenceServerException, match="VESSA_TOKEN"):
                    client.get_model_metadata("vessa", headers=headers)
            right = {"authorization": "Bearer s3cret"}
            assert client.infer("vessa", inputs, headers=right).as_numpy("labels") is not None
            client.close()


def test_requests_are_counted_once_and_the_service_is_listed(server: RunningServer) -> None:
    for kind in ("grpc", "http"):
        protocol = connected(kind, server)
        protocol.infer(ONE_IMAGE)
        protocol.client.close()
    text = httpx.get(f"{server.http}/metrics").text
    counted = [line for line in text.splitlines() if line.startswith("vessa_requests_total")]
    assert sorted(counted) == [
        'vessa_requests_total{code="200",method="POST /v2/models/{model}/infer",'
        'transport="kserve"} 1.0',
        'vessa_requests_total{code="OK",method="ModelInfer",transport="kserve"} 1.0',
    ]
    with grpc.insecure_channel(server.grpc) as channel:
        services = list(ProtoReflectionDescriptorDatabase(channel).get_services())
    assert "inference.GRPCInferenceService" in services
    paths = httpx.get(f"{server.http}/openapi.json").json()["paths"]
    assert "/v2/models/{model}/infer" in paths


def test_nobody_makes_up_counters(server: RunningServer) -> None:
    for path in ("/v2/health/live", "/v2/nothing"):
        httpx.request("BREW", f"{server.http}{path}")
    text = httpx.get(f"{server.http}/metrics").text
    assert "BREW" not in text
    assert 'method="other other",transport="kserve"} 1.0' in text


def test_headers_alone_are_those_of_the_whole_answer(server: RunningServer) -> None:
    for path, status in (("/v2/health/live", 200), ("/v2/nothing", 404)):
        bare, whole = (httpx.request(m, f"{server.http}{path}") for m in ("HEAD", "GET"))
        assert bare.status_code == whole.status_code == status
        assert (len(bare.content), bare.headers["content-length"]) == (0, str(len(whole.content)))


def test_nothing_is_ready_without_a_bank_that_can_be_read(tmp_path: Path) -> None:
    with running(engine_of(tmp_path)) as server:
        protocols = [connected(kind, server) for kind in ("grpc", "http")]
        index = tmp_path / "bank" / "index.json"
        whole = index.read_bytes()
        for content, ready in ((whole[:100], False), (whole, True)):
            index.write_bytes(content)
            for protocol in protocols:
                assert protocol.client.is_server_live()
                assert protocol.client.is_server_ready() is ready
                assert protocol.client.is_model_ready("vessa") is ready
            answer = httpx.get(f"{server.http}/v2/health/ready")
            assert answer.status_code == (200 if ready else 503)
            assert ready or "is damaged" in answer.json()["error"]
        for protocol in protocols:
            protocol.client.close()


def test_the_documents_example_runs(server: RunningServer) -> None:
    document = (ROOT / "docs" / "kserve.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```", document, re.MULTILINE | re.DOTALL)
    scope: dict[str, Any] = {}
    exec(compile(block.replace("localhost:50051", server.grpc), "kserve.md", "exec"), scope)
    assert scope["answer"].as_numpy("probabilities").shape == (2, 64, 64)
    scope["client"].close()
