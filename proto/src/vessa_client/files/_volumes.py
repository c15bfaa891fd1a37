"""Volumes in memory: in one orientation, and back as they are stored.

Axes: X Y Z as a file stores them, or to the right, to the front and up.
"""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from vessa_client._types import AnyArray, UInt8Array
from vessa_client.files._errors import FileError
from vessa_client.files._image import ImageFile, slice_axis
from vessa_client.files._labels import integers


def from_nifti(
    path: Path,
    image: nib.Nifti1Image,
    *,
    axis: int | None = None,
    labels: bool = False,
    frame: int | None = None,
) -> ImageFile:
    """A volume that is in memory as one that was read; ``path`` names it.

    Args:
        path: where it came from.
        image: three axes, or more of which the others have one entry; colours are a dtype of
            three bytes.
        axis: slicing axis; by default the one along which the volume was acquired.
        labels: its values are labels.
        frame: which volume of the file it is, if there are several.

    Raises:
        FileError: it has not three axes, or is no label map.
    """
    pixels = np.asanyarray(image.dataobj)
    while pixels.ndim > 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3:
        raise FileError(
            f"{path}: shape {pixels.shape}, expected a volume of three axes; choose one along the "
            "fourth with --frame"
        )
    if pixels.dtype.kind not in "biufV":
        raise FileError(f"{path}: values of type {pixels.dtype}, expected numbers or colours")
    if labels:
        pixels = integers(path, pixels)
    order = nib.orientations.io_orientation(image.affine)
    affine = image.affine
    if not np.isnan(order).any():  # an axis of no extent: the file does not say how it lies
        affine = affine @ nib.orientations.inv_ornt_aff(order, pixels.shape)
        pixels = nib.orientations.apply_orientation(pixels, order)
    nothing = np.broadcast_to(np.uint8(0), pixels.shape)
    grid = nib.Nifti1Image(nothing, affine, image.header, dtype=np.uint8)
    zooms = tuple(float(z) for z in grid.header.get_zooms()[:3])
    chosen = slice_axis(pixels.shape, zooms) if axis is None else axis
    return ImageFile(path, _colours(pixels), chosen, grid, image, frame)


def to_nifti(labels: list[UInt8Array], like: ImageFile) -> nib.Nifti1Image:
    """Label maps of the slices of ``like``, a volume, as it is stored."""
    assert like.stored is not None
    assert like.axis is not None
    volume = np.stack(labels, axis=like.axis)
    order = nib.orientations.io_orientation(like.stored.affine)
    if not np.isnan(order).any():
        back = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), order)
        volume = nib.orientations.apply_orientation(volume, back)
    header = like.stored.header.copy()
    header.set_data_dtype(np.uint8)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0
    return nib.Nifti1Image(volume.reshape(like.stored.shape), like.stored.affine, header)


def as_stored(image: ImageFile) -> nib.Nifti1Image:
    """A volume as it is stored, its values in its unit, of four bytes at most."""
    assert image.stored is not None
    values = np.asanyarray(image.stored.dataobj)
    if values.dtype.itemsize > 4:
        values = values.astype(np.float32)
    header = image.stored.header.copy()
    header.set_data_dtype(values.dtype)
    header.set_slope_inter(1, 0)
    return nib.Nifti1Image(values, image.stored.affine, header)


def _colours(pixels: AnyArray) -> AnyArray:
    """Colours of a dtype of several bytes as a last axis of three."""
    if pixels.dtype.names is None:
        return pixels
    return np.ascontiguousarray(pixels).view(np.uint8).reshape(*pixels.shape, -1)[..., :3]
