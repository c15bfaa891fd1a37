"""NIfTI."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from vessa_client.files._errors import FileError
from vessa_client.files._names import NIFTI_SUFFIXES


def recognises(path: Path) -> bool:
    """Whether a file is NIfTI, by its name."""
    return path.name.lower().endswith(NIFTI_SUFFIXES)


def load(path: Path, frame: int | None) -> nib.Nifti1Image:
    """A file as it is stored; its voxels are read when they are needed.

    Raises:
        FileError: it is something else, has no such frame, or says two things of how it lies.
    """
    image = nib.load(path)
    if not isinstance(image, nib.Nifti1Image):
        raise FileError(f"{path}: expected NIfTI")
    _check_orientation(path, image)
    if frame is not None and image.ndim == 4 and image.shape[3] > 1:
        if frame >= image.shape[3]:
            count = image.shape[3]
            raise FileError(f"{path}: {count} frames or channels, expected more than {frame}")
        image = image.slicer[..., frame]
    return image


def _check_orientation(path: Path, image: nib.Nifti1Image) -> None:
    """Both affines, where a file has two, turn it the same way: else left and right are a guess.

    Raises:
        FileError: they do not.
    """
    sform, qform = image.get_sform(coded=True)[0], image.get_qform(coded=True)[0]
    if sform is None or qform is None:
        return
    one, other = (nib.orientations.io_orientation(affine) for affine in (sform, qform))
    if not np.isnan([one, other]).any() and not np.array_equal(one, other):
        names = ["".join(nib.orientations.ornt2axcodes(order)) for order in (one, other)]
        raise FileError(
            f"{path}: sform says {names[0]}, qform {names[1]}; set the code of the wrong one to 0"
        )
