from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vessa.v1 import pseudo_label_pb2 as pb
from vessa_client import InvalidRequestError, UInt8Array, wire

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
