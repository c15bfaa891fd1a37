"""Files from outside: every kind decodes, every damage is refused, limits come first."""

from __future__ import annotations

import contextlib
import gzip
import io
import struct
import zlib
from typing import Literal

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from support import picture
from vessa_client import AnyArray, InvalidRequestError, OverloadedError, VessaError
from vessa_server.api.settings import ServerSettings
from vessa_server.cases.images import MAX_FILE_OVERHEAD, ImageLimits, ImageStore, decode

LIMITS = ImageLimits(max_bytes=1 << 20, max_side=128)
PIXELS, LABELS = picture(0)


def _encoded(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, format=kind)
    return stream.getvalue()


def _nifti(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> bytes:
    return bytes(nib.Nifti1Image(array, np.diag([1.5, 2.0, 3.0, 1.0])).to_bytes())


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_lossless_kinds_decode_exactly(kind: str) -> None:
    assert np.array_equal(decode(_encoded(kind), LIMITS)[0], PIXELS)


@pytest.mark.parametrize("packed", [False, True])
def test_nifti_slices_decode_with_their_geometry(packed: bool) -> None:
    data = _nifti(PIXELS[..., None].astype(np.int16))
    pixels, geometry = decode(gzip.compress(data) if packed else data, LIMITS)
    assert np.array_equal(pixels, PIXELS)
    assert geometry is not None
    assert geometry.shape == (*PIXELS.shape, 1)
    assert np.array_equal(geometry.affine, np.diag([1.5, 2.0, 3.0, 1.0]))


def test_palette_pictures_are_labels_only_where_labels_are_meant() -> None:
    stream = io.BytesIO()
    paletted = Image.fromarray(LABELS, mode="P")
    paletted.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0] + [0] * 759)
    paletted.save(stream, format="PNG")
    assert np.array_equal(decode(stream.getvalue(), LIMITS, labels=True)[0], LABELS)
    assert decode(stream.getvalue(), LIMITS)[0].shape == (*LABELS.shape, 3)


@given(st.sampled_from(["PNG", "TIFF", "NIfTI"]), st.floats(0, 0.99))
def test_truncated_files_are_refused(kind: str, part: float) -> None:
    whole = _nifti(PIXELS[..., None]) if kind == "NIfTI" else _encoded(kind)
    data = whole[: int(part * len(whole) * 0.9)]
    with pytest.raises(InvalidRequestError) as caught:
        decode(data, LIMITS)
    assert caught.value.field == "image.encoded"


@given(st.binary(max_size=600))
def test_any_bytes_decode_or_are_refused(data: bytes) -> None:
    with contextlib.suppress(VessaError):
        assert decode(data, LIMITS)[0].ndim in (2, 3)


def test_volumes_are_refused_with_what_takes_them() -> None:
    with pytest.raises(InvalidRequestError, match="POST /pseudolabel/volume"):
        decode(_nifti(np.zeros((20, 20, 3), np.uint8)), LIMITS)


def test_limits_are_checked_before_pixels_are_read() -> None:
    stream = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(stream, format="PNG")
    with pytest.raises(OverloadedError, match="at most 128"):
        decode(stream.getvalue(), LIMITS)
    with pytest.raises(OverloadedError, match="VESSA_MAX_IMAGE_BYTES"):
        ImageStore(LIMITS, 1 << 20).resolve(b"x" * (LIMITS.max_bytes + MAX_FILE_OVERHEAD + 1))


@pytest.mark.parametrize("kind", ["NIfTI-1", "NIfTI-2", "TIFF"])
def test_the_largest_image_may_come_in_a_file(kind: str) -> None:
    pixels = np.random.default_rng(0).random((128, 128), np.float32)
    limits = ImageLimits(max_bytes=pixels.nbytes, max_side=128)
    if kind == "TIFF":
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, format="TIFF", tiffinfo={278: 1})  # a strip each row
        data = stream.getvalue()
    else:
        data = (nib.Nifti1Image if kind == "NIfTI-1" else nib.Nifti2Image)(pixels, None).to_bytes()
    assert len(data) > limits.max_bytes
    assert np.array_equal(ImageStore(limits, 1 << 20).resolve(data).pixels, pixels)
    with pytest.raises(OverloadedError, match="VESSA_MAX_IMAGE_BYTES"):
        ImageStore(limits, 1 << 20).resolve(pixels.astype(np.float64))


def test_the_default_limit_is_of_the_largest_side_in_float32() -> None:
    settings = ServerSettings()
    assert settings.max_image_bytes == 4 * settings.max_image_side**2


# --- TIFF


def _tiff(
    pixels: AnyArray, *, order: Literal["<", ">"] = "<", offset: int = 8, parts: int = 1
) -> bytes:
    """A TIFF of one strip, written by hand: Pillow writes no big-endian ones."""
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    height, width = pixels.shape
    many = struct.pack(f"{order}{parts}L", *[offset] * parts)
    where = 8 + len(data)
    entries = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 1, 8 * pixels.itemsize),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (273, 4, parts, offset if parts == 1 else where),
        (278, 4, 1, height),
        (279, 4, parts, len(data) if parts == 1 else where),
    ]
    packed = b"".join(
        struct.pack(f"{order}HHL", tag, kind, count)
        + (
            struct.pack(f"{order}HH", value, 0)
            if (kind, count) == (3, 1)
            else struct.pack(f"{order}L", value)
        )
        for tag, kind, count, value in entries
    )
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HL", 42, where + 4 * parts)
    directory = struct.pack(f"{order}H", len(entries)) + packed + struct.pack(f"{order}L", 0)
    return head + data + many + directory


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiffs_of_either_byte_order_decode_exactly(order: Literal["<", ">"], dtype: type) -> None:
    pixels: AnyArray = PIXELS.astype(dtype) * np.array(257 if dtype is np.uint16 else 1, dtype)
    found, _ = decode(_tiff(pixels, order=order), LIMITS)
    assert np.array_equal(found, pixels)
    assert found.dtype == np.dtype(dtype)
    assert found.dtype.isnative


@pytest.mark.parametrize("offset", [0x80000040, 0xFFFFFFFF, 0x7FFFFFFF, 1 << 20])
def test_a_strip_beyond_the_file_is_a_damage(offset: int) -> None:
    with pytest.raises(InvalidRequestError, match="damaged"):
        decode(_tiff(PIXELS, offset=offset), LIMITS)


def test_a_tiff_of_very_many_strips_is_refused_before_they_are_listed() -> None:
    with pytest.raises(OverloadedError, match="strips or tiles"):
        decode(_tiff(PIXELS, parts=1 << 17), LIMITS)


@pytest.mark.parametrize("kind", ["TIFF", "PNG"])
def test_which_of_several_pages_is_meant_is_not_guessed(kind: str) -> None:
    stream = io.BytesIO()
    pages = [Image.fromarray(picture(seed)[0]) for seed in range(3)]
    pages[0].save(stream, format=kind, save_all=True, append_images=pages[1:])
    with pytest.raises(InvalidRequestError, match="several pages"):
        decode(stream.getvalue(), LIMITS)


# --- JPEG and PNG


def test_a_jpeg_of_very_many_scans_is_refused() -> None:
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, format="JPEG", progressive=True)
    whole = stream.getvalue()
    assert decode(whole, LIMITS)[0].shape == PIXELS.shape
    scan = whole[whole.rfind(b"\xff\xda") : -2]
    with pytest.raises(OverloadedError, match="scans"):
        decode(whole[:-2] + scan * 1000 + whole[-2:], LIMITS)


@pytest.mark.parametrize("mode", ["RGBA", "CMYK", "P", "LA", "1", "YCbCr", "LAB"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_other_modes_become_grey_or_colour(mode: str, kind: str) -> None:
    stream = io.BytesIO()
    try:
        source = Image.new(mode, (20, 10))
        source.save(stream, format=kind)
    except (OSError, ValueError):
        pytest.skip(f"{kind} has no {mode}")
    found, _ = decode(stream.getvalue(), LIMITS)
    assert found.shape in ((10, 20), (10, 20, 3))
    assert found.dtype == np.uint8


def test_a_mask_of_one_bit_holds_labels() -> None:
    stream = io.BytesIO()
    Image.fromarray(LABELS == 1).save(stream, format="PNG")
    assert np.array_equal(decode(stream.getvalue(), LIMITS, labels=True)[0], LABELS == 1)
    assert decode(stream.getvalue(), LIMITS)[0].max() == 255


def test_text_that_unpacks_to_very_much_is_refused() -> None:
    whole = _encoded("PNG")
    at = whole.find(b"IDAT") - 4
    packed = b"key\0\0" + zlib.compress(b"\0" * (1 << 28))
    chunk = struct.pack(">I", len(packed)) + b"zTXt" + packed
    chunk += struct.pack(">I", zlib.crc32(b"zTXt" + packed))
    with contextlib.suppress(VessaError):
        assert np.array_equal(decode(whole[:at] + chunk + whole[at:], LIMITS)[0], PIXELS)


# --- NIfTI


def _with(data: bytes, form: str, at: int, value: float) -> bytes:
    return data[:at] + struct.pack(form, value) + data[at + struct.calcsize(form) :]


def test_no_more_is_unpacked_than_the_header_announces() -> None:
    whole = _nifti(PIXELS[..., None])
    zeros = gzip.compress(whole + b"\0" * (1 << 26))
    assert len(zeros) < LIMITS.max_bytes
    with pytest.raises(InvalidRequestError, match="goes on after"):
        decode(zeros, LIMITS)
    assert np.array_equal(decode(gzip.compress(whole + b"\0" * 100), LIMITS)[0], PIXELS)


@pytest.mark.parametrize("value", [1e9, 1e30, -1e9, 0.0, float("nan"), float("inf")])
@pytest.mark.parametrize("packed", [False, True])
def test_voxels_begin_soon_after_the_header(value: float, packed: bool) -> None:
    data = _with(_nifti(PIXELS[..., None]), "<f", 108, value)
    with pytest.raises(InvalidRequestError):
        decode(gzip.compress(data) if packed else data, LIMITS)


@pytest.mark.parametrize("sides", [(-5, 5, 5), (0, 5, 5), (32767, 32767, 1), (20, 20, 32767)])
def test_impossible_shapes_are_refused(sides: tuple[int, int, int]) -> None:
    data = _nifti(PIXELS[..., None])
    for axis, side in enumerate(sides, start=1):
        data = _with(data, "<h", 40 + 2 * axis, side)
    with pytest.raises(VessaError):
        decode(data, LIMITS)


@pytest.mark.parametrize("datatype", [0, 1, 32, 128, 1792, 9999])
def test_other_datatypes_are_refused(datatype: int) -> None:
    data = _with(_nifti(PIXELS[..., None]), "<h", 70, datatype)
    with pytest.raises(InvalidRequestError):
        decode(data, LIMITS)


def test_a_flipped_bit_in_a_packed_file_is_noticed() -> None:
    packed = bytearray(gzip.compress(_nifti(PIXELS[..., None]), compresslevel=0))
    packed[len(packed) // 2] ^= 4
    with pytest.raises(InvalidRequestError, match="damaged"):
        decode(bytes(packed), LIMITS)


@given(st.data(), st.sampled_from(["PNG", "TIFF", "JPEG", "NIfTI", "NIfTI packed"]))
def test_any_damage_is_noticed_or_harmless(data: st.DataObject, kind: str) -> None:
    whole = bytearray(_nifti(PIXELS[..., None]) if "NIfTI" in kind else _encoded(kind))
    if kind == "NIfTI packed":
        whole = bytearray(gzip.compress(bytes(whole)))
    head = st.integers(0, min(400, len(whole) - 1))
    places = st.lists(head | st.integers(0, len(whole) - 1), min_size=1, max_size=8)
    for place in data.draw(places):
        whole[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(VessaError):
        ImageStore(LIMITS, 1 << 20).resolve(bytes(whole))
