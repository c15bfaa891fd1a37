from __future__ import annotations

import hashlib
import math
import tracemalloc
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vessa.v1 import pseudo_label_pb2 as pb
from vessa_client import AnyArray, InvalidRequestError, UInt8Array, _runs, wire

DTYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float16", "float32", "float64"]
shapes = hnp.array_shapes(min_dims=2, max_dims=2, max_side=40)


@given(st.data())
def test_tensors_come_back_bit_for_bit(data: st.DataObject) -> None:
    dtype = np.dtype(data.draw(st.sampled_from(DTYPES)))
    array = data.draw(hnp.arrays(dtype, hnp.array_shapes(max_dims=3)))
    if data.draw(st.booleans()):
        array = array.astype(dtype.newbyteorder(">"))
    back = wire.decode_tensor(wire.encode_tensor(array))
    assert back.dtype == dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.astype(dtype).tobytes()


@given(st.integers(1, 5), st.data())
def test_label_maps_come_back_whatever_the_encoding(classes: int, data: st.DataObject) -> None:
    elements = st.integers(0, classes)
    labels = data.draw(hnp.arrays(np.uint8, shapes, elements=elements, fill=st.just(0)))
    message = wire.encode_label_map(labels, classes)
    assert np.array_equal(wire.decode_label_map(message), labels)
    packed = classes * math.ceil(labels.size / 8)
    assert sum(map(len, message.payload)) <= min(labels.size, packed)


def test_each_encoding_is_chosen_where_it_is_smallest() -> None:
    rng = np.random.default_rng(0)
    blob = np.zeros((64, 64), dtype=np.uint8)
    blob[10:20, 10:30] = 1
    noise = rng.integers(0, 2, (64, 64), dtype=np.uint8)
    many = rng.integers(0, 30, (64, 64), dtype=np.uint8)
    assert wire.encode_label_map(blob, 1).encoding == pb.MASK_ENCODING_RUN_LENGTH
    assert wire.encode_label_map(noise, 1).encoding == pb.MASK_ENCODING_BIT_PACKED
    assert wire.encode_label_map(many, 30).encoding == pb.MASK_ENCODING_RAW


def test_run_lengths_follow_the_contract() -> None:
    labels = np.zeros((2, 200), dtype=np.uint8)
    labels[0, :3] = 1
    message = wire.encode_label_map(labels, 1)
    # Runs of 0, 3 ones, 397 zeros; 397 = 0b11_0001101 in LEB128.
    assert list(message.payload[0]) == [0, 3, 0x8D, 0x03]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"payload": [b"\x05"]}, "payload"),
        ({"payload": [b"\xff\xff\xff\xff\xff\xff\x01"]}, "payload"),
        ({"payload": [b"\x80"]}, "payload"),
        ({"payload": []}, "payload"),
        ({"height": 0}, "label_map"),
        ({"height": 1 << 31, "width": 1 << 31}, "label_map"),
        ({"encoding": 0}, "encoding"),
        ({"num_classes": 300}, "label_map"),
        ({"encoding": pb.MASK_ENCODING_RAW, "payload": [b"\x02" * 16]}, "label_map"),
        ({"encoding": pb.MASK_ENCODING_BIT_PACKED, "payload": [b"\x02"]}, "payload"),
    ],
)
def test_malformed_label_maps_are_refused(change: dict[str, object], field: str) -> None:
    good: dict[str, object] = {
        "height": 4,
        "width": 4,
        "num_classes": 1,
        "encoding": pb.MASK_ENCODING_RUN_LENGTH,
        "payload": [b"\x10"],
    }
    message = pb.LabelMap(**{**good, **change})  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError) as caught:
        wire.decode_label_map(message)
    assert field in caught.value.field


@given(st.binary(max_size=40), st.integers(0, 4))
def test_random_payloads_decode_or_are_refused(payload: bytes, encoding: int) -> None:
    message = pb.LabelMap(
        height=5, width=7, num_classes=1, payload=[payload], encoding=pb.MaskEncoding.Name(0)
    )
    message.encoding = encoding  # type: ignore[assignment]
    try:
        labels: UInt8Array = wire.decode_label_map(message)
    except InvalidRequestError:
        return
    assert labels.shape == (5, 7)
    assert labels.max() <= 1


def varint(number: int, padding: int = 0) -> bytes:
    """LEB128 of a number, the slow way; with padding in more bytes than it needs."""
    out = []
    while number >= 0x80 or padding:
        padding -= number < 0x80
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def slow_payload(mask: list[bool]) -> bytes:
    """Run lengths of one class, pixel by pixel."""
    lengths, inside = [0], False
    for pixel in mask:
        if pixel != inside:
            lengths.append(0)
            inside = pixel
        lengths[-1] += 1
    return b"".join(map(varint, lengths))


def slow_labels(payloads: list[bytes], size: int) -> list[int] | None:
    """Labels of run lengths, byte by byte; None where they are malformed."""
    labels = [0] * size
    for label, payload in enumerate(payloads, start=1):
        lengths, number, shift = [], 0, 0
        for byte in payload:
            number |= (byte & 0x7F) << shift
            shift += 7
            if shift > 35:
                return None
            if byte < 0x80:
                lengths.append(number)
                number, shift = 0, 0
        if shift or sum(lengths) != size or len(lengths) > size + 1:
            return None
        position = 0
        for index, length in enumerate(lengths):
            for pixel in range(position, position + length) if index % 2 else ():
                if labels[pixel]:
                    return None
                labels[pixel] = label
            position += length
    return labels


@st.composite
def scenes(draw: st.DrawFn) -> tuple[UInt8Array, int]:
    """Label maps of long runs or of noise, and their number of classes."""
    classes = draw(st.integers(0, 9))
    labels = draw(st.integers(0, classes))
    runs = draw(st.lists(st.tuples(st.integers(1, 700), st.integers(0, classes)), max_size=20))
    flat = np.repeat([label for _, label in runs] + [labels], [n for n, _ in runs] + [1])
    noise = draw(st.booleans())
    if noise:
        rng = np.random.default_rng(draw(st.integers(0, 99)))
        flat = rng.integers(0, classes + 1, len(flat))
    return flat.astype(np.uint8).reshape(1, -1), classes


@given(scenes())
def test_label_maps_are_encoded_as_the_slow_way_does(scene: tuple[UInt8Array, int]) -> None:
    labels, classes = scene
    message = wire.encode_label_map(labels, classes)
    slow = [slow_payload((labels[0] == i).tolist()) for i in range(1, classes + 1)]
    sizes = [labels.size, classes * math.ceil(labels.size / 8), sum(map(len, slow))]
    assert sum(map(len, message.payload)) == min(sizes)
    if message.encoding == pb.MASK_ENCODING_RUN_LENGTH:
        assert list(message.payload) == slow
    unlimited = _runs.encode(labels[0], classes, limit=1 << 40)
    assert unlimited == slow
    assert np.array_equal(wire.decode_label_map(message), labels)


@given(scenes(), st.sampled_from([6, 50, 1 << 20]))
def test_run_lengths_are_decoded_some_at_a_time(scene: tuple[UInt8Array, int], size: int) -> None:
    labels, classes = scene
    payloads = [slow_payload((labels[0] == i).tolist()) for i in range(1, classes + 1)]
    with mock.patch.object(_runs, "CHUNK_BYTES", size):
        assert np.array_equal(_runs.decode(payloads, labels.size, "label_map"), labels[0])


@st.composite
def suspect_payloads(draw: st.DrawFn) -> tuple[list[bytes], int]:
    """Run lengths that may be malformed in many ways, and a number of pixels."""
    size = draw(st.sampled_from([1, 2, 30, 400]))
    payloads = []
    for _ in range(draw(st.integers(1, 3))):
        lengths = draw(st.lists(st.integers(0, max(1, size // 3)), max_size=6))
        lengths.append(max(0, size - sum(lengths)) if draw(st.booleans()) else 3)
        padding = draw(st.integers(0, 5)) if draw(st.booleans()) else 0
        payload = b"".join(varint(length, padding) for length in lengths)
        payloads.append(payload + draw(st.sampled_from([b"", b"", b"\x00", b"\x80", b"\x01"])))
    return payloads, size


@given(suspect_payloads(), st.sampled_from([6, 1 << 20]))
def test_run_lengths_decode_as_the_slow_way_does_or_are_refused(
    suspect: tuple[list[bytes], int], chunk: int
) -> None:
    payloads, size = suspect
    message = pb.LabelMap(
        height=1,
        width=size,
        num_classes=len(payloads),
        encoding=pb.MASK_ENCODING_RUN_LENGTH,
        payload=payloads,
    )
    expected = slow_labels(payloads, size)
    with mock.patch.object(_runs, "CHUNK_BYTES", chunk):
        if expected is None:
            with pytest.raises(InvalidRequestError) as caught:
                wire.decode_label_map(message)
            assert caught.value.field == "label_map.payload"
        else:
            assert wire.decode_label_map(message).tolist() == [expected]


def test_classes_that_overlap_are_refused() -> None:
    mask = np.zeros(800, bool)
    mask[100:300] = True
    payloads = {
        pb.MASK_ENCODING_RUN_LENGTH: slow_payload(mask.tolist()),
        pb.MASK_ENCODING_BIT_PACKED: np.packbits(mask).tobytes(),
    }
    for encoding, payload in payloads.items():
        message = pb.LabelMap(
            height=1, width=800, num_classes=2, encoding=encoding, payload=[payload] * 2
        )
        with pytest.raises(InvalidRequestError, match="overlap"):
            wire.decode_label_map(message)


def peak_bytes(message: pb.LabelMap, expected: tuple[int, int] | None, payload: str = "") -> int:
    """Most memory that is taken at a time; the message is refused where ``payload`` says why."""
    tracemalloc.start()
    try:
        if payload:
            with pytest.raises(InvalidRequestError, match=payload):
                wire.decode_label_map(message, expected=expected)
        else:
            assert not wire.decode_label_map(message, expected=expected).any()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_few_bytes_do_not_take_much_memory() -> None:
    def empty(side: int) -> pb.LabelMap:
        return wire_message(side, [varint(side * side)] * 40)

    assert empty(16384).ByteSize() < 300
    assert peak_bytes(empty(16384), (512, 512), "16384 x 16384, expected 512 x 512") < 100_000
    assert peak_bytes(empty(2048), None) < 2048 * 2048 + 100_000


def test_endless_empty_runs_are_refused_before_they_are_decoded() -> None:
    long = wire_message(64, [bytes(5 * 64 * 64 + 6)])
    assert peak_bytes(long, None, "20486 bytes, expected at most 20485") < 50_000
    many = wire_message(64, [bytes(5 * 64 * 64)])
    assert peak_bytes(many, (64, 64), "covers 0 in 20480 runs") < 2_000_000


def wire_message(side: int, payloads: list[bytes]) -> pb.LabelMap:
    return pb.LabelMap(
        height=side,
        width=side,
        num_classes=len(payloads),
        encoding=pb.MASK_ENCODING_RUN_LENGTH,
        payload=payloads,
    )


def test_more_classes_than_asked_for_are_refused() -> None:
    message = wire.encode_label_map(np.zeros((4, 4), np.uint8), 3)
    assert wire.decode_label_map(message, expected=(4, 4), max_classes=3).shape == (4, 4)
    with pytest.raises(InvalidRequestError, match="at most 2 classes"):
        wire.decode_label_map(message, max_classes=2)


@pytest.mark.parametrize("labels", [np.zeros((0, 4), int), np.array([[3]]), np.array([[-1]])])
def test_labels_outside_of_the_classes_are_not_encoded(labels: AnyArray) -> None:
    with pytest.raises(InvalidRequestError, match=r"expected 0\.\.2"):
        wire.encode_label_map(labels, 2)


def test_tensors_whose_size_does_not_fit_are_refused() -> None:
    message = wire.encode_tensor(np.zeros((3, 4), np.float32))
    message.shape[0] = 400_000_000
    with pytest.raises(InvalidRequestError, match="shape"):
        wire.decode_tensor(message)
    message.shape[0] = 5
    with pytest.raises(InvalidRequestError, match="80 for shape"):
        wire.decode_tensor(message)
    with pytest.raises(InvalidRequestError, match="complex"):
        wire.encode_tensor(np.zeros(3, np.complex64))


@given(st.text(max_size=200))
def test_any_text_becomes_a_template_name(text: str) -> None:
    name = wire.template_name(text)
    assert len(name) <= wire.MAX_NAME_LENGTH
    assert name.isprintable()
    if text.isprintable():
        assert name[:38] == text[:38]
        assert name[-38:] == text[-38:]


def test_digest_is_the_one_of_the_contract() -> None:
    array = np.arange(6, dtype=np.int16).reshape(2, 3)
    expected = hashlib.sha256(b"int16:2,3:" + array.astype("<i2").tobytes()).hexdigest()
    assert wire.image_digest(array) == expected
    assert wire.image_digest(array.astype(">i2")) == expected
    assert wire.image_digest(b"png") == hashlib.sha256(b"png").hexdigest()
    assert wire.image_digest(array.reshape(3, 2)) != expected


def test_a_volume_is_named_by_its_slices_in_their_order() -> None:
    digests = ["a" * 64, "b" * 64]
    expected = hashlib.sha256(b"a" * 64 + b"b" * 64).hexdigest()
    assert wire.volume_digest(digests) == expected
    assert wire.volume_digest(reversed(digests)) != expected
