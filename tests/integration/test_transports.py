"""The same answer over every way in, and the contract's errors, against a real server."""

from __future__ import annotations

import asyncio
import base64
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import grpc
import httpx
import nibabel as nib
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from PIL import Image

from support import CLASSES, RunningServer, engine_of, picture, running
from vessa.v1 import pseudo_label_pb2 as pb
from vessa.v1 import pseudo_label_pb2_grpc as pb_grpc
from vessa_client import (
    AnyArray,
    AsyncVessaClient,
    AuthenticationError,
    Box,
    ClientOptions,
    ImageReference,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    Point,
    SegmentationRequest,
    SegmentationResult,
    VessaClient,
    VessaError,
    VolumeRequest,
    convert,
)
from vessa_server.cache import open_cache
from vessa_server.engine_settings import EngineSettings

IMAGE, LABELS = picture(0)


def png(array: AnyArray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, format="PNG")
    return stream.getvalue()


def read_png(data: bytes) -> AnyArray:
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.fixture(params=["none", "disk", "redis"])
def cached_server(
    request: pytest.FixtureRequest, tmp_path: Path, redis_url: str
) -> Iterator[RunningServer]:
    address = {"none": "none", "disk": str(tmp_path / "cache"), "redis": redis_url}[request.param]
    with running(engine_of(tmp_path / "s", cache=open_cache(address, 1 << 30))) as server:
        yield server


@pytest.mark.parametrize(
    ("student", "slices"),
    [(None, 0), (LABELS, 0), (LABELS, 2)],
    ids=["one-shot", "student", "student and volume"],
)
def test_every_way_in_gives_the_same_answer_bit_for_bit(
    cached_server: RunningServer, tmp_path: Path, student: AnyArray | None, slices: int
) -> None:
    data = png(IMAGE)
    volume = tuple(png(picture(i)[0]) for i in range(slices))
    request = SegmentationRequest(image=data, student_mask=student, volume=volume, request_id="r")
    expected = engine_of(tmp_path / "reference").segment(request)
    with VessaClient(cached_server.grpc) as client:
        found = [client.segment(request), *client.segment_stream([request])]
    for result in found:
        assert isinstance(result, SegmentationResult)
        assert result.request_id == "r"
        assert np.array_equal(result.labels, expected.labels)
        assert np.array_equal(result.confidence, expected.confidence)
        assert result.image_sha256 == expected.image_sha256
        for one, other in zip(result.classes, expected.classes, strict=True):
            assert np.float32(one.predicted_iou) == np.float32(other.predicted_iou)
    upload = [("image", data), *(("volume", slice_) for slice_ in volume)]
    if student is not None:
        upload.append(("student_mask", png(student)))
    url = f"{cached_server.http}/pseudolabel"
    json = httpx.post(url, files=upload).raise_for_status().json()
    labels = read_png(base64.b64decode(json["labels_png"]))
    assert np.array_equal(labels, expected.labels)
    confidence = read_png(base64.b64decode(json["confidence_png"]))
    assert np.array_equal(confidence, expected.confidence)
    assert [c["class_name"] for c in json["classes"]] == ["disc", "bar"]
    for one, other in zip(json["classes"], expected.classes, strict=True):
        assert np.float32(one["predicted_iou"]) == np.float32(other.predicted_iou)
    body: dict[str, Any] = {
        "image": base64.b64encode(data).decode(),
        "volume": [base64.b64encode(slice_).decode() for slice_ in volume],
    }
    if student is not None:
        body["student_mask"] = base64.b64encode(png(student)).decode()
    answer = httpx.post(url, json=body, headers={"Accept": "image/png"}).raise_for_status()
    assert np.array_equal(read_png(answer.content), expected.labels)


def by_slice(answers: Iterable[SegmentationResult | VessaError]) -> list[AnyArray]:
    """Labels of the slices of a volume, in their order."""
    found = [answer for answer in answers if isinstance(answer, SegmentationResult)]
    return [answer.labels for answer in sorted(found, key=lambda answer: answer.slice_index)]


def test_points_and_boxes_mean_the_same_by_every_way_in(tmp_path: Path) -> None:
    points = (Point(row=2, column=3, class_name="bar"), Point(row=50, column=20))
    boxes = (Box(top=10, left=8, height=30, width=20, class_name="disc"),)
    request = SegmentationRequest(image=IMAGE, points=points, boxes=boxes)
    expected = engine_of(tmp_path / "reference").segment(request).labels
    assert expected[2, 3] == 2
    outside = np.ones(IMAGE.shape, bool)
    outside[10:40, 8:28] = False
    other = picture(9)[0]
    volume = VolumeRequest(slices=(other, IMAGE), points={1: points}, boxes={1: boxes})
    with running(engine_of(tmp_path / "s")) as server, VessaClient(server.grpc) as client:
        assert np.array_equal(client.segment(request).labels, expected)
        plain, *_ = by_slice(client.segment_volume(replace(volume, points={}, boxes={})))
        for _ in range(2):  # the second time by reference
            first, second = by_slice(client.segment_volume(volume))
            assert (second[2, 3], second[50, 20]) == (2, 0)
            assert not (second[outside] == 1).any()
            assert np.array_equal(first, plain)
        body: dict[str, Any] = {
            "image": base64.b64encode(png(IMAGE)).decode(),
            "points": [asdict(point) for point in points],
            "boxes": [asdict(box) for box in boxes],
        }
        url = f"{server.http}/pseudolabel"
        answer = httpx.post(url, json=body, headers={"Accept": "image/png"}).raise_for_status()
        assert np.array_equal(read_png(answer.content), expected)
        for change, said in (
            ({"points": [{"row": 99, "column": 0}]}, "points: row 99, column 0"),
            ({"points": [{"row": 1}]}, "points.0.column"),
            ({"points": [{"row": True, "column": "1"}]}, "points.0.row"),
            ({"boxes": [{**body["boxes"][0], "class_name": "heart"}]}, "boxes: class 'heart'"),
        ):
            refused = httpx.post(url, json=body | change)
            assert refused.status_code == 422
            assert said in refused.json()["error"]["message"]


def test_a_second_request_by_reference_only_decodes(client: VessaClient) -> None:
    first = client.segment(SegmentationRequest(image=IMAGE))
    client.segment(SegmentationRequest(image=IMAGE, student_mask=LABELS))  # its window may be new
    second = client.segment(SegmentationRequest(image=IMAGE, student_mask=LABELS))
    assert not first.image_features_cached
    assert second.image_features_cached
    assert second.template_features_cached
    assert set(second.stage_ms) == {"decode_image", "decode_mask", "restore"}


def test_an_evicted_image_is_sent_again_by_itself(tmp_path: Path) -> None:
    settings = EngineSettings(image_store_bytes=IMAGE.nbytes + 10)
    with (
        running(engine_of(tmp_path, settings=settings)) as server,
        VessaClient(server.grpc) as client,
    ):
        one, other = (SegmentationRequest(image=picture(i)[0]) for i in range(2))
        expected = [client.segment(r).labels for r in (one, other)]
        assert np.array_equal(client.segment(one).labels, expected[0])
        results = list(client.segment_stream([one, other, one, other], window=1))
        assert all(isinstance(r, SegmentationResult) for r in results)
        with pytest.raises(NotFoundError):
            client.segment(SegmentationRequest(image=ImageReference("f" * 64)))


def test_a_volume_is_sent_once_and_again_after_it_was_evicted(tmp_path: Path) -> None:
    images = tuple(picture(i)[0] for i in range(3))
    requests = [SegmentationRequest(image=image, volume=images) for image in images]
    expected = [engine_of(tmp_path / "a").segment(request).labels for request in requests]
    with running(engine_of(tmp_path / "b")) as server, VessaClient(server.grpc) as client:
        sizes = []
        for request, labels in zip(requests, expected, strict=True):
            assert np.array_equal(client.segment(request).labels, labels)
            light = client._references.by_reference(request)
            sizes.append(convert.request_to_message(light).ByteSize())
        assert max(sizes) < IMAGE.nbytes / 4, "only digests are sent from the second time on"
    # One image fits: every request names some that are gone.
    settings = EngineSettings(image_store_bytes=IMAGE.nbytes + 10)
    with (
        running(engine_of(tmp_path / "c", settings=settings)) as server,
        VessaClient(server.grpc) as client,
    ):
        for _ in range(2):
            for request, labels in zip(requests, expected, strict=True):
                assert np.array_equal(client.segment(request).labels, labels)
        named = [replace(r, request_id=str(i)) for i, r in enumerate(requests * 2)]
        for result in client.segment_stream(named, window=1):
            assert isinstance(result, SegmentationResult)
            assert np.array_equal(result.labels, expected[int(result.request_id) % 3])
        lost = SegmentationRequest(image=images[0], volume=(ImageReference("f" * 64),))
        with pytest.raises(NotFoundError):
            client.segment(lost)
        assert [type(item) for item in client.segment_stream([lost])] == [NotFoundError]


def test_one_bad_request_of_a_stream_fails_alone(client: VessaClient) -> None:
    requests = [SegmentationRequest(image=picture(i)[0], request_id=str(i)) for i in range(6)]
    requests[2] = SegmentationRequest(image=IMAGE, class_names=("liver",), request_id="2")
    requests[3] = SegmentationRequest(image=np.zeros(3, np.complex64), request_id="3")
    requests[4] = SegmentationRequest(image=b"no image", request_id="4")
    outcomes = {item.request_id: item for item in client.segment_stream(requests, window=3)}
    assert set(outcomes) == {str(i) for i in range(6)}
    for index in ("0", "1", "5"):
        assert isinstance(outcomes[index], SegmentationResult)
    assert isinstance(outcomes["2"], NotFoundError)
    assert isinstance(outcomes["3"], InvalidRequestError)
    assert isinstance(outcomes["4"], InvalidRequestError)
    assert outcomes["4"].field == "image.encoded"


def test_streams_keep_to_their_window(client: VessaClient) -> None:
    asked = 0

    def requests() -> Iterator[SegmentationRequest]:
        nonlocal asked
        for index in range(12):
            asked += 1
            yield SegmentationRequest(image=picture(index)[0], request_id=str(index))

    answered = 0
    for _ in client.segment_stream(requests(), window=3):
        answered += 1
        assert asked - answered <= 3
    assert answered == 12


def test_request_ids_must_differ_within_the_window(client: VessaClient) -> None:
    request = SegmentationRequest(image=IMAGE, request_id="same")
    kinds = {type(item) for item in client.segment_stream([request, request], window=2)}
    assert kinds == {SegmentationResult, InvalidRequestError}


async def test_the_async_client_does_the_same(server: RunningServer) -> None:
    with VessaClient(server.grpc) as client:
        expected = client.segment(SegmentationRequest(image=IMAGE))
    async with AsyncVessaClient(server.grpc) as client_:
        assert await client_.healthy()
        assert np.array_equal(
            (await client_.segment(SegmentationRequest(image=IMAGE))).labels, expected.labels
        )
        many = [SegmentationRequest(image=picture(i)[0], request_id=str(i)) for i in range(5)]
        many.append(SegmentationRequest(image=IMAGE, class_names=("x",), request_id="bad"))
        seen = {item.request_id: item async for item in client_.segment_stream(many, window=2)}
        assert len(seen) == 6
        assert isinstance(seen["bad"], NotFoundError)
        both = await asyncio.gather(*(client_.segment(r) for r in many[:2]))
        assert np.array_equal(both[0].labels, expected.labels)
        info, created = await client_.add_template(*picture(55), CLASSES, name="new")
        assert created
        assert info in (await client_.list_templates()).templates
        content = await client_.get_template(info.template_id)
        assert np.array_equal(content.image, picture(55)[0])
        await client_.delete_template(info.template_id)
        assert (await client_.info()).num_templates == 3


def test_templates_are_kept_over_both_transports(
    server: RunningServer, client: VessaClient
) -> None:
    before = client.list_templates()
    info, created = client.add_template(*picture(50), CLASSES, name="fifty")
    assert created
    assert not client.add_template(*picture(50), CLASSES)[1]
    shown = httpx.get(f"{server.http}/templates").raise_for_status().json()
    assert info.template_id in {t["template_id"] for t in shown["templates"]}
    overlay = httpx.get(f"{server.http}/templates/{info.template_id}/overlay.png")
    assert read_png(overlay.raise_for_status().content).shape == (60, 52, 3)
    httpx.delete(f"{server.http}/templates/{info.template_id}").raise_for_status()
    assert client.list_templates() == before
    image, labels = picture(51)
    added = httpx.post(
        f"{server.http}/templates",
        files={"image": png(image), "labels": png(labels)},
        data={"class_names": "disc, bar", "descriptions": "One.; Two.", "name": "n"},
    )
    assert added.status_code == 201
    assert added.json()["class_names"] == ["disc", "bar"]
    client.delete_template(added.json()["template_id"])
    with pytest.raises(NotFoundError):
        client.delete_template("nothing")


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_a_template_comes_back_as_it_was_added(client: VessaClient, dtype: type) -> None:
    image, labels = picture(52)
    image = (image.astype(np.int32) * (1 if dtype is np.uint8 else -7)).astype(dtype)
    only_bar = np.where(labels == 2, 2, 0).astype(np.uint8)
    info, _ = client.add_template(image, only_bar, CLASSES, name="fifty-two", bank="own")
    content = client.get_template(info.template_id, bank="own")
    assert content.info == info
    assert info.class_names == ("bar",)
    assert np.array_equal(content.image, image)
    assert np.array_equal(content.labels == 1, labels == 2)
    for bank, wrong in (("own", "0" * 16), ("", info.template_id)):
        with pytest.raises(NotFoundError, match="vessa templates list"):
            client.get_template(wrong, bank=bank)


def test_nifti_goes_out_with_the_geometry_it_came_in_with(server: RunningServer) -> None:
    affine = np.array([[0, -1.4, 0, 90], [1.6, 0, 0, -70], [0, 0, 8.0, 5], [0, 0, 0, 1.0]])
    source = nib.Nifti1Image(IMAGE[:, None, :].astype(np.int16), affine)
    source.header.set_xyzt_units("mm")
    answer = httpx.post(
        f"{server.http}/pseudolabel",
        files={"image": ("slice.nii", source.to_bytes())},
        headers={"Accept": "application/x-nifti"},
    ).raise_for_status()
    labels = nib.Nifti1Image.from_bytes(answer.content)
    assert labels.shape == source.shape
    assert np.allclose(labels.affine, affine)
    assert labels.header.get_zooms() == source.header.get_zooms()
    assert labels.header.get_xyzt_units() == source.header.get_xyzt_units()
    assert labels.get_data_dtype() == np.uint8


def test_health_reflection_info_and_documents(server: RunningServer, client: VessaClient) -> None:
    with grpc.insecure_channel(server.grpc) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", "vessa.v1.PseudoLabelService", "inference.GRPCInferenceService"):
            status = stub.Check(health_pb2.HealthCheckRequest(service=name)).status
            assert status == health_pb2.HealthCheckResponse.SERVING
        services = ProtoReflectionDescriptorDatabase(channel).get_services()
        assert "vessa.v1.PseudoLabelService" in list(services)
    info = client.info()
    assert info.num_templates == 3
    assert info.model_name == "tiny"
    assert info.cache_backend == "none"
    assert info.limits.max_image_side == 4096
    assert httpx.get(f"{server.http}/health/live").json() == {"status": "live"}
    assert httpx.get(f"{server.http}/health/ready").json() == {"status": "ready"}
    paths = httpx.get(f"{server.http}/openapi.json").json()["paths"]
    assert {"/pseudolabel", "/templates", "/info", "/metrics"} <= set(paths)
    assert 'id="bank"' in httpx.get(server.http).text


def test_metrics_count_what_happened(server: RunningServer, client: VessaClient) -> None:
    for _ in range(2):
        client.segment(SegmentationRequest(image=IMAGE))
    with pytest.raises(NotFoundError):
        client.segment(SegmentationRequest(image=IMAGE, class_names=("x",)))
    text = httpx.get(f"{server.http}/metrics").text
    assert 'vessa_requests_total{code="OK",method="Segment",transport="grpc"} 2.0' in text
    assert 'code="NOT_FOUND",method="Segment",transport="grpc"} 1.0' in text
    assert 'vessa_image_features_total{state="hit"} 1.0' in text
    assert 'vessa_stage_seconds_count{stage="encode_image"} 1.0' in text
    assert 'vessa_templates{bank="default"} 3.0' in text


@pytest.mark.parametrize(
    ("files", "data", "status", "field"),
    [
        ({"image": png(IMAGE)[:200]}, {}, 422, "image.encoded"),
        ({"image": b"text"}, {}, 422, "image.encoded"),
        ({}, {"text": "x"}, 422, "image"),
        ({"image": png(IMAGE), "other": b"x"}, {}, 422, "other"),
        ({"image": png(IMAGE)}, {"class_names": "liver"}, 404, "class_names"),
        ({"image": png(IMAGE)}, {"top_k": "x"}, 422, "top_k"),
        ({"image": png(IMAGE), "student_mask": png(LABELS[1:])}, {}, 422, "student_mask.label_map"),
        ({"image": png(IMAGE), "student_mask": b"x"}, {}, 422, "student_mask"),
        ({"image": png(np.zeros((8, 4100), np.uint8))}, {}, 413, "image.encoded"),
    ],
)
def test_rest_errors_name_the_field(
    server: RunningServer,
    files: dict[str, bytes],
    data: dict[str, str],
    status: int,
    field: str,
) -> None:
    answer = httpx.post(f"{server.http}/pseudolabel", files=files, data=data)
    assert answer.status_code == status
    assert answer.json()["error"]["field"] == field
    assert "expected" in answer.json()["error"]["message"]
    assert httpx.post(f"{server.http}/pseudolabel", files={"image": png(IMAGE)}).status_code == 200


@pytest.mark.parametrize(
    ("labels", "words"),
    [(LABELS[1:], "expected.* 60 x 52"), (np.zeros_like(LABELS), "no pixel is labelled")],
)
def test_wrong_templates_change_nothing(
    server: RunningServer, client: VessaClient, labels: AnyArray, words: str
) -> None:
    before = client.list_templates()
    with pytest.raises(InvalidRequestError, match=words) as caught:
        client.add_template(IMAGE, labels, CLASSES)
    assert caught.value.field == "label_map"
    answer = httpx.post(
        f"{server.http}/templates",
        files={"image": png(IMAGE), "labels": png(labels)},
        data={"class_names": "disc,bar"},
    )
    assert answer.status_code == 422
    assert re.search(words, answer.json()["error"]["message"])
    assert client.list_templates() == before


def test_bodies_over_the_limit_are_refused(tmp_path: Path) -> None:
    engine = engine_of(tmp_path, settings=EngineSettings(max_image_bytes=4096))
    with running(engine, max_image_bytes=4096) as server:
        big = np.random.default_rng(0).integers(0, 255, (300, 300), dtype=np.uint8)
        answer = httpx.post(f"{server.http}/pseudolabel", files={"image": png(big)})
        assert answer.status_code == 413
        answer = httpx.post(f"{server.http}/pseudolabel", files={"image": b"x" * 3_000_000})
        assert answer.status_code == 413
        assert "VESSA_MAX_IMAGE_BYTES" in answer.json()["error"]["message"]
        with VessaClient(server.grpc) as client, pytest.raises(OverloadedError, match="4096"):
            client.segment(SegmentationRequest(image=big))


def test_a_token_is_asked_for_everywhere(tmp_path: Path) -> None:
    with running(engine_of(tmp_path), token="s3cret") as server:
        for wrong in (None, "other"):
            with VessaClient(server.grpc, ClientOptions(token=wrong)) as client:
                with pytest.raises(AuthenticationError, match="VESSA_TOKEN"):
                    client.info()
                with pytest.raises(AuthenticationError):
                    list(client.segment_stream([SegmentationRequest(image=IMAGE)]))
                assert client.healthy()
        with VessaClient(server.grpc, ClientOptions(token="s3cret")) as client:
            assert client.segment(SegmentationRequest(image=IMAGE)).labels.shape == IMAGE.shape
        assert httpx.get(f"{server.http}/templates").status_code == 401
        headers = {"Authorization": "Bearer s3cret"}
        assert httpx.get(f"{server.http}/templates", headers=headers).status_code == 200
        assert httpx.get(f"{server.http}/health/ready").status_code == 200


def test_malformed_messages_are_invalid_arguments(server: RunningServer) -> None:
    with grpc.insecure_channel(server.grpc) as channel:
        stub = pb_grpc.PseudoLabelServiceStub(channel)
        for message in (
            pb.SegmentRequest(),
            pb.SegmentRequest(
                image=pb.Image(tensor=pb.Tensor(dtype=pb.DATA_TYPE_UINT8, shape=[9]))
            ),
            pb.SegmentRequest(image=pb.Image(tensor=pb.Tensor(shape=[9, 9], data=b"x" * 81))),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                stub.Segment(message)
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            metadata: Any = caught.value.trailing_metadata()
            assert dict(metadata)["vessa-field"].startswith("image")
