"""Files from outside: every kind decodes, every damage is told, limits come first."""

from __future__ import annotations

import contextlib
import gzip
import io

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from support import picture
from vessa_client import InvalidRequestError, OverloadedError, VessaError
from vessa_server.cases.images import ImageLimits, ImageStore, decode

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


def test_volumes_are_refused_with_the_command_that_does_them() -> None:
    with pytest.raises(InvalidRequestError, match="vessa label"):
        decode(_nifti(np.zeros((20, 20, 3), np.uint8)), LIMITS)


def test_limits_are_checked_before_pixels_are_read() -> None:
    bomb = gzip.compress(b"\0" * (1 << 26))
    assert len(bomb) < LIMITS.max_bytes
    with pytest.raises(VessaError, match=r"unpacks|damaged"):
        decode(bomb, LIMITS)
    stream = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(stream, format="PNG")
    with pytest.raises(OverloadedError, match="at most 128"):
        decode(stream.getvalue(), LIMITS)
    with pytest.raises(OverloadedError, match="VESSA_MAX_IMAGE_BYTES"):
        ImageStore(LIMITS, 1 << 20).resolve(b"x" * (LIMITS.max_bytes + 1))
