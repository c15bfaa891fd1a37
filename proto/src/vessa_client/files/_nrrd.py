"""NRRD, as 3D Slicer writes it.

Axes: X Y Z as the file stores them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from vessa_client._types import AnyArray
from vessa_client.files._errors import FileError
from vessa_client.files._names import NRRD_SUFFIXES

# To the axes of NIfTI: right, anterior, superior.
_SPACES = {
    "left-posterior-superior": (-1, -1, 1),
    "lps": (-1, -1, 1),
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
}
_SPATIAL = ("domain", "space")
_COLOURS = ("rgb-color", "3-color", "rgba-color", "4-color")


def recognises(path: Path) -> bool:
    """Whether a file is NRRD, by its name."""
    return path.name.lower().endswith(NRRD_SUFFIXES)


def load(path: Path, frame: int | None) -> nib.Nifti1Image:
    """A file with its geometry.

    Raises:
        FileError: it has not two or three axes of space, or no such frame.
    """
    import nrrd  # type: ignore[import-untyped]

    voxels, header = nrrd.read(str(path))
    spatial = _spatial_axes(header, voxels.ndim)
    others = [axis for axis in range(voxels.ndim) if axis not in spatial]
    if len(spatial) not in (2, 3) or len(others) > 1:
        raise FileError(f"{path}: shape {voxels.shape}, expected two or three axes of space")
    voxels = np.moveaxis(voxels, others, [-1] * len(others)) if others else voxels
    if len(spatial) == 2:
        voxels = voxels[:, :, None]
    if others:
        voxels = _frame(path, voxels, _kind(header, others[0]), frame)
    return nib.Nifti1Image(voxels, _affine(path, header, spatial), dtype=voxels.dtype)


def save(path: Path, image: nib.Nifti1Image, *, packed: bool = True) -> None:
    """Write a volume, in the axes of DICOM as Slicer does; OHIF reads it faster unpacked."""
    import nrrd

    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine
    header = {
        "space": "left-posterior-superior",
        "space directions": lps[:3, :3].T,
        "space origin": lps[:3, 3],
        "kinds": ["domain"] * 3,
        "encoding": "gzip" if packed else "raw",
    }
    nrrd.write(str(path), np.asarray(image.dataobj), header)


def _kind(header: dict[str, Any], axis: int) -> str:
    kinds = header.get("kinds") or []
    return str(kinds[axis]).lower() if axis < len(kinds) else ""


def _spatial_axes(header: dict[str, Any], count: int) -> list[int]:
    directions = header.get("space directions")
    if directions is not None:
        return [
            axis
            for axis, row in enumerate(directions)
            if row is not None and np.isfinite(row).all()
        ]
    kinds = [_kind(header, axis) for axis in range(count)]
    return [axis for axis, kind in enumerate(kinds) if kind in ("", "???", *_SPATIAL)]


def _frame(path: Path, voxels: AnyArray, kind: str, frame: int | None) -> AnyArray:
    """What of a fourth axis is wanted; colours become NIfTI's dtype of three bytes."""
    count = voxels.shape[-1]
    if kind in _COLOURS and voxels.dtype == np.uint8:
        rgb = np.ascontiguousarray(voxels[..., :3])
        return rgb.view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    if count > 1 and frame is None:
        raise FileError(f"{path}: {count} frames, choose one with --frame 0..{count - 1}")
    if (frame or 0) >= count:
        raise FileError(f"{path}: {count} frames or channels, expected more than {frame}")
    chosen: AnyArray = voxels[..., frame or 0]
    return chosen


def _affine(path: Path, header: dict[str, Any], spatial: list[int]) -> AnyArray:
    affine = np.eye(4)
    directions = header.get("space directions")
    if directions is None:
        spacings = header.get("spacings")
        if spacings is not None:
            for column, axis in enumerate(spatial):
                affine[column, column] = spacings[axis] if np.isfinite(spacings[axis]) else 1.0
        return affine
    space = str(header.get("space", "")).lower()
    if space not in _SPACES:
        raise FileError(f"{path}: space {space or 'not given'}, expected {', '.join(_SPACES)}")
    for column, axis in enumerate(spatial):
        affine[:3, column] = directions[axis]
    if len(spatial) == 2:
        affine[:3, 2] = np.cross(affine[:3, 0], affine[:3, 1])
        affine[:3, 2] /= np.linalg.norm(affine[:3, 2])
    affine[:3, 3] = header.get("space origin", (0, 0, 0))
    return np.diag([*_SPACES[space], 1]) @ affine
