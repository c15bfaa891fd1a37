"""Payloads of enemies and of mistaken users: refused by name, alone, and fast."""

from __future__ import annotations

import contextlib
import gzip
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import grpc
import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support import CLASSES, RunningServer, engine_of, picture, running
from support_files import nifti, picture_file, png
from vessa.v1 import pseudo_label_pb2 as pb
from vessa.v1 import pseudo_label_pb2_grpc as pb_grpc
from vessa_client import (
    AnyArray,
    InvalidRequestError,
    OverloadedError,
    SegmentationRequest,
    SegmentationResult,
    VessaClient,
    convert,
    wire,
)

IMAGE, LABELS = picture(0)
RUNS = pb.MASK_ENCODING_RUN_LENGTH
HARMLESS: Final = ("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED")
# What gRPC lets through of trailing metadata is 8 KiB; some of it is its own.
MOST_METADATA = 6000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running(engine_of(tmp_path_factory.mktemp("attacked"))) as started:
        yield started


@pytest.fixture(scope="module")
def channel(server: RunningServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.grpc) as opened:
        yield opened


@pytest.fixture
def stub(channel: grpc.Channel) -> Any:
    return pb_grpc.PseudoLabelServiceStub(channel)


@dataclass(frozen=True)
class Refusal:
    """Why a call was refused."""

    code: str
    message: str
    field: str


def refused(call: Callable[[], Any]) -> Refusal:
    """The error of a call, which every client can receive."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error: Any = caught.value
    metadata = dict(error.trailing_metadata() or ())
    found = Refusal(error.code().name, error.details() or "", metadata.get("vessa-field", ""))
    assert found.code in (*HARMLESS, "NOT_FOUND"), error
    assert found.message.isprintable()
    size = len(found.message.encode()) * 3 + sum(len(k) + len(v) for k, v in metadata.items())
    assert size < MOST_METADATA
    return found


# --- Files


def files_of_each_kind() -> dict[str, bytes]:
    packed = gzip.compress(nifti(IMAGE[..., None]))
    pictures = {kind: picture_file(IMAGE, kind) for kind in ("PNG", "TIFF", "JPEG")}
    return {**pictures, "NIfTI": nifti(IMAGE[..., None]), "packed NIfTI": packed}


@settings(max_examples=60)
@given(data=st.data(), kind=st.sampled_from(sorted(files_of_each_kind())))
def test_damaged_files_are_never_an_internal_error(
    server: RunningServer, data: st.DataObject, kind: str
) -> None:
    content = bytearray(files_of_each_kind()[kind])
    near = st.integers(0, min(400, len(content) - 1)) | st.integers(0, len(content) - 1)
    for place in data.draw(st.lists(near, min_size=1, max_size=6)):
        content[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)) | st.just(len(content)))
    damaged = bytes(content[:cut])
    answer = httpx.post(f"{server.http}/pseudolabel", files={"image": damaged})
    assert answer.status_code in (200, 413, 422)
    with VessaClient(server.grpc) as client:
        good = SegmentationRequest(image=IMAGE, request_id="good")
        bad = SegmentationRequest(image=damaged, student_mask=LABELS, request_id="bad")
        results = {item.request_id: item for item in client.segment_stream([good, bad])}
    assert isinstance(results["good"], SegmentationResult)
    expected = (SegmentationResult, InvalidRequestError, OverloadedError)
    assert isinstance(results["bad"], expected)


def test_an_overflow_in_a_decoder_fails_alone(server: RunningServer) -> None:
    bad = bytearray(picture_file(IMAGE, "TIFF"))
    directory = struct.unpack_from("<L", bad, 4)[0]
    for entry in range(struct.unpack_from("<H", bad, directory)[0]):
        at = directory + 2 + 12 * entry
        if struct.unpack_from("<H", bad, at)[0] == 273:  # where its pixels are
            struct.pack_into("<L", bad, at + 8, 0x80000040)
    requests = [SegmentationRequest(image=picture(i)[0], request_id=str(i)) for i in range(5)]
    requests.insert(2, SegmentationRequest(image=bytes(bad), request_id="bad"))
    with VessaClient(server.grpc) as client:
        results = {item.request_id: item for item in client.segment_stream(requests)}
    error = results.pop("bad")
    assert isinstance(error, InvalidRequestError)
    assert error.field == "image.encoded"
    assert all(isinstance(result, SegmentationResult) for result in results.values())


# --- Numbers

ODD_IMAGES: dict[str, AnyArray] = {
    "1e300": IMAGE.astype(np.float64) * 1e300,
    "1e-300": IMAGE.astype(np.float64) * 1e-300,
    "float16": IMAGE.astype(np.float16),
    "int8": IMAGE.astype(np.int8),
    "int32 of all values": np.where(IMAGE > 100, 2**31 - 1, -(2**31)).astype(np.int32),
    "constant": np.full((60, 52), 7.0),
    "colour": np.stack([IMAGE] * 3, axis=-1),
    "colour of 1e300": np.stack([IMAGE] * 3, axis=-1).astype(np.float64) * 1e300,
}
NO_IMAGES: dict[str, AnyArray] = {
    "beyond float64": np.where(IMAGE > 100, 1e308, -1e308),
    "NaN": np.full((60, 52), np.nan),
    "no pixels": np.zeros((0, 5), np.uint8),
    "one row": np.zeros((1, 500), np.uint8),
    "four channels": np.zeros((50, 50, 4), np.uint8),
    "a volume": np.zeros((50, 50, 50), np.uint8),
    "one axis": np.zeros(50, np.uint8),
    "no axis": np.array(3, np.uint8),
    "int64": IMAGE.astype(np.int64),
    "bool": IMAGE > 100,
    "complex": IMAGE.astype(np.complex64),
    "objects": np.full((60, 52), None),
}


@pytest.mark.parametrize("name", ODD_IMAGES)
def test_any_unit_is_answered_with_numbers(server: RunningServer, name: str) -> None:
    image = ODD_IMAGES[name]
    with VessaClient(server.grpc) as client:
        result = client.segment(SegmentationRequest(image=image, return_probabilities=True))
        assert all(0 <= c.predicted_iou <= 1 for c in result.classes)
        assert all(-1 <= t.similarity <= 1 for t in result.templates)
        with contextlib.suppress(InvalidRequestError):  # or it is a template that serves
            info, _ = client.add_template(image, LABELS, CLASSES)
            asked = SegmentationRequest(image=IMAGE, template_ids=(info.template_id,))
            served = client.segment(asked)
            client.delete_template(info.template_id)
            assert all(0 <= c.predicted_iou <= 1 for c in served.classes)
    if image.ndim == 2 and image.dtype != np.float16:
        answer = httpx.post(
            f"{server.http}/pseudolabel", files={"image": nifti(image[..., None])}
        ).raise_for_status()
        assert "NaN" not in answer.text


@pytest.mark.parametrize("name", NO_IMAGES)
def test_what_is_no_image_is_refused(server: RunningServer, name: str) -> None:
    with VessaClient(server.grpc) as client:
        before = client.list_templates()
        with pytest.raises(InvalidRequestError, match="expected"):
            client.segment(SegmentationRequest(image=NO_IMAGES[name]))
        with pytest.raises(InvalidRequestError, match="expected"):
            client.add_template(NO_IMAGES[name], LABELS, CLASSES)
        assert client.list_templates() == before


# --- Masks


def varint(number: int) -> bytes:
    data = b""
    while number > 127:
        data += bytes([number & 127 | 128])
        number >>= 7
    return data + bytes([number])


BOMBS = {
    "16384 x 16384 of 40 classes": pb.LabelMap(
        height=16384, width=16384, num_classes=40, encoding=RUNS, payload=[varint(1 << 28)] * 40
    ),
    "runs of no length": pb.LabelMap(
        height=60, width=52, num_classes=1, encoding=RUNS, payload=[b"\0" * 30_000_000]
    ),
    "64 x 64": pb.LabelMap(
        height=64, width=64, num_classes=2, encoding=RUNS, payload=[b"\xff" * 22] * 2
    ),
}


@pytest.mark.parametrize("image", ["encoded", "tensor", "ref"])
@pytest.mark.parametrize("bomb", BOMBS)
def test_masks_are_compared_with_their_image_before_they_are_decoded(
    stub: Any, image: str, bomb: str
) -> None:
    pixels = convert.image_to_message(png(IMAGE) if image == "encoded" else IMAGE)
    if image == "ref":
        pixels = pb.Image(ref=stub.Segment(pb.SegmentRequest(image=pixels)).image_ref)
    mask = pb.StudentMask(label_map=BOMBS[bomb])
    started = time.process_time()
    error = refused(lambda: stub.Segment(pb.SegmentRequest(image=pixels, student_mask=mask)))
    assert time.process_time() - started < 1
    assert error.field.startswith("student_mask.label_map")
    if image != "ref":
        refused(
            lambda: stub.AddTemplate(pb.AddTemplateRequest(image=pixels, label_map=BOMBS[bomb]))
        )


@pytest.mark.parametrize("shape", [(), (60, 52), (1, 2, 60, 52), (2, 0, 0), (3, 60, 52)])
def test_probabilities_have_three_axes(stub: Any, shape: tuple[int, ...]) -> None:
    maps = wire.encode_tensor(np.zeros(shape, np.uint8))
    request = convert.request_to_message(SegmentationRequest(image=IMAGE))
    request.student_mask.probabilities.CopyFrom(maps)
    error = refused(lambda: stub.Segment(request))
    assert error.field == "student_mask.probabilities"


# --- Texts

LONG = {
    "one": pb.SegmentRequest(class_names=["é" * 500_000]),
    "many": pb.SegmentRequest(class_names=[f"é{i}" for i in range(10_000)]),
    "control characters": pb.SegmentRequest(class_names=["a\x1b[31m\n\0b"]),
    "bank": pb.SegmentRequest(bank="é\n" * 100_000),
    "rule": pb.SegmentRequest(options=pb.SegmentOptions(policy_off=["é\x1b" * 100_000])),
    "templates": pb.SegmentRequest(options=pb.SegmentOptions(template_ids=["é\n" * 99] * 10_000)),
    "text": pb.SegmentRequest(text="x" * 100_000),
    "reference": pb.SegmentRequest(image=pb.Image(ref=pb.ImageRef(sha256="é\n" * 10_000))),
    "volume": pb.SegmentRequest(volume_ref=pb.VolumeRef(sha256="é\n" * 10_000)),
    "slices": pb.SegmentRequest(volume=[pb.Image(encoded=b"x")] * 10_000),
    "templates a class": pb.SegmentRequest(options=pb.SegmentOptions(top_k=2**32 - 1)),
}


@pytest.mark.parametrize("name", LONG)
def test_errors_fit_into_headers_whatever_they_repeat(
    stub: Any, server: RunningServer, name: str
) -> None:
    request = pb.SegmentRequest(image=convert.image_to_message(IMAGE), request_id="r")
    request.MergeFrom(LONG[name])
    refused(lambda: stub.Segment(request))
    (answer,) = stub.SegmentStream(iter([request]))
    assert answer.error.code in (*HARMLESS, "NOT_FOUND")
    assert len(answer.error.message.encode()) <= 1000


@pytest.mark.parametrize(
    "call",
    [
        lambda s: s.DeleteTemplate(pb.DeleteTemplateRequest(template_id="é\n" * 100_000)),
        lambda s: s.ListTemplates(pb.ListTemplatesRequest(bank="é\n" * 100_000)),
        lambda s: s.GetServerInfo(pb.GetServerInfoRequest(bank="../..")),
        lambda s: s.AddTemplate(added(name="é" * 100_000)),
        lambda s: s.AddTemplate(added(classes=[pb.ClassDefinition(name="é\n" * 100_000)] * 2)),
        lambda s: s.AddTemplate(added(classes=[pb.ClassDefinition(name="\x1b")] * 100_000)),
    ],
)
def test_so_do_those_of_the_bank(stub: Any, call: Callable[[Any], Any]) -> None:
    refused(lambda: call(stub))


def added(**fields: Any) -> pb.AddTemplateRequest:
    given = {"classes": [convert.class_to_message(c) for c in CLASSES], **fields}
    labels = wire.encode_label_map(LABELS, 2)
    return pb.AddTemplateRequest(image=convert.image_to_message(IMAGE), label_map=labels, **given)


@pytest.mark.parametrize("method", ["SegmentStream", "SegmentVolume"])
def test_messages_that_are_none_end_a_stream(channel: grpc.Channel, method: str) -> None:
    call: Any = channel.stream_stream(f"/vessa.v1.PseudoLabelService/{method}", bytes, bytes)
    error = refused(lambda: list(call(iter([b"\xff\xff none"]), timeout=20)))
    assert error.code == "INVALID_ARGUMENT"


@pytest.mark.parametrize("data", [b"\xff\xff none", b"\x0a\x02\xff\xfe"])
def test_messages_that_are_none_are_invalid(channel: grpc.Channel, data: bytes) -> None:
    call: Any = channel.unary_unary("/vessa.v1.PseudoLabelService/Segment", bytes, bytes)
    assert refused(lambda: call(data)).code == "INVALID_ARGUMENT"
