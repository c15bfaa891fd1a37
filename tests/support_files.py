"""Files as users send them."""

from __future__ import annotations

import io

import nibabel as nib
import numpy as np
from PIL import Image

from vessa_client import AnyArray


def png(array: AnyArray) -> bytes:
    """A PNG file."""
    return picture_file(array, "PNG")


def picture_file(array: AnyArray, kind: str) -> bytes:
    """A file of a kind that Pillow writes."""
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, format=kind)
    return stream.getvalue()


def read_png(data: bytes) -> AnyArray:
    """The pixels of a file."""
    return np.asarray(Image.open(io.BytesIO(data)))


def nifti(array: AnyArray, affine: AnyArray | None = None) -> bytes:
    """A NIfTI file, not packed."""
    return bytes(nib.Nifti1Image(array, np.eye(4) if affine is None else affine).to_bytes())
