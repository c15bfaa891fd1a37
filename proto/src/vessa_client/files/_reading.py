"""Any image or label file, by the reader that recognises it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Protocol

import nibabel as nib
import numpy as np

from vessa_client.files import _dicom, _nifti, _nrrd, _pictures
from vessa_client.files._errors import FileError, reading
from vessa_client.files._image import ImageFile, slice_axis
from vessa_client.files._labels import integers
from vessa_client.files._volumes import from_nifti


class Reader(Protocol):
    """Of volumes of one format."""

    def recognises(self, path: Path) -> bool:
        """Whether a path is of this format."""

    def load(self, path: Path, frame: int | None) -> nib.Nifti1Image:
        """Voxels as they are stored, and where they are; of several volumes the frame's.

        Raises:
            FileError: it is not what was expected.
        """


READERS: tuple[Reader, ...] = (_nifti, _nrrd, _dicom)


def read(
    path: Path, *, axis: int | None = None, labels: bool = False, channel: int | None = None
) -> ImageFile:
    """Read an image or a label file.

    Args:
        path: PNG, JPEG, TIFF, NIfTI, NRRD, or a DICOM file, folder or zip.
        axis: slicing axis of a volume, 0 from left to right, 1 from back to front, 2 upwards (as
            stored, where the file does not say how it lies); by default the one along which it
            was acquired.
        labels: keep the values of a palette picture instead of its colours, and return
            integers.
        channel: which volume of those along a fourth axis, or page of a TIFF, if there are
            several; without, such a file is refused.

    Raises:
        FileError: missing, damaged, or of another kind.
    """
    if not path.exists():
        raise FileError(f"{path}: no such file")
    with reading(path):
        reader = _reader(path)
        if reader is not None:
            volume = reader.load(path, channel)
            image = from_nifti(path, volume, axis=axis, labels=labels, frame=channel)
            return replace(image, modality=modality(path))
        if path.is_dir():
            raise FileError(f"{path}: a folder without DICOM files, expected a file")
        pixels = _pictures.load(path, channel, labels=labels)
    if labels and pixels.ndim == 3:
        raise FileError(f"{path}: a colour picture, expected labels 0, 1, 2, ... in one channel")
    return ImageFile(path, integers(path, pixels) if labels else pixels, None, None)


def modality(path: Path) -> str | None:
    """What a DICOM series says of how it was acquired, such as CT; None of other files.

    It is also None of captures of a screen, whose values have lost the unit of the modality.

    Raises:
        FileError: it cannot be read.
    """
    if not _dicom.recognises(path):
        return None
    with reading(path):
        return _dicom.modality(path)


def acquired_axis(path: Path) -> int | None:
    """Slicing axis that :func:`read` takes for a volume, by its header; None of a picture.

    Raises:
        FileError: it cannot be read.
    """
    reader = _reader(path)
    if reader is None:
        return None
    with reading(path):
        image = reader.load(path, 0)
    shape = (*image.shape, 1, 1)[:3]
    zooms = (*(float(z) for z in image.header.get_zooms()), 1.0, 1.0)[:3]
    order = nib.orientations.io_orientation(image.affine)
    if not np.isnan(order).any():
        stored = np.argsort(order[:, 0])
        shape, zooms = tuple(shape[i] for i in stored), tuple(zooms[i] for i in stored)
    return slice_axis(shape, zooms)


def _reader(path: Path) -> Reader | None:
    return next((reader for reader in READERS if reader.recognises(path)), None)
