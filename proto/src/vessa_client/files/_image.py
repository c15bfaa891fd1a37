"""An image of a user: a picture or a volume, in one orientation, with its geometry.

Axes: H W space, X to the right, Y to the front, Z up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from vessa_client._types import AnyArray, Window
from vessa_client.files._errors import FileError
from vessa_client.files._names import stem

# Angle from which a volume's axes are said to be oblique.
OBLIQUE_DEGREES = 0.05


@dataclass(frozen=True)
class ImageFile:
    """A picture, which is one slice, or a volume.

    Attributes:
        path: where it is.
        pixels: (H, W) or (H, W, 3) of a picture; a volume with axes to the right, to the front
            and up, as far as its file says how it lies.
        axis: axis along which a volume is sliced; None for a picture.
        nifti: an image of that orientation and geometry, without its values.
        stored: the volume as it is in the file.
        frame: which volume of several in the file.
        window: intensities that are seen; None for percentiles of each slice.
        modality: that DICOM says, such as CT; None where nothing does.
    """

    path: Path
    pixels: AnyArray
    axis: int | None
    nifti: nib.Nifti1Image | None
    stored: nib.Nifti1Image | None = None
    frame: int | None = None
    window: Window | None = None
    modality: str | None = None

    @property
    def stem(self) -> str:
        """File name without its suffix."""
        return stem(self.path)

    @property
    def depth(self) -> int:
        """Number of slices."""
        return 1 if self.axis is None else int(self.pixels.shape[self.axis])

    def slice(self, index: int) -> AnyArray:
        """One slice, contiguous."""
        if self.axis is None:
            return np.ascontiguousarray(self.pixels)
        return np.ascontiguousarray(self.pixels.take(index, axis=self.axis))

    def place(self, voxel: Sequence[int]) -> tuple[int, int, int]:
        """Slice, row and column of a voxel, as it is stored; of a picture's column and row.

        Raises:
            ValueError: it is outside.
        """
        if self.axis is None:
            column, row = voxel
            index, shape = [0, row, column], (1, *self.pixels.shape[:2])
        else:
            assert self.nifti is not None
            assert self.stored is not None
            stored_to_seen = np.linalg.inv(self.nifti.affine) @ self.stored.affine
            seen = np.rint(stored_to_seen @ [*voxel, 1])[:3].astype(int).tolist()
            index = [seen.pop(self.axis), *seen]
            shape = (self.depth, *self.slice(0).shape[:2])
        if not all(0 <= at < most for at, most in zip(index, shape, strict=True)):
            raise ValueError(f"expected it inside of the image, {_size(self)}")
        return index[0], index[1], index[2]

    def seen(self, index: int) -> AnyArray:
        """One slice within the window, for pictures."""
        pixels = self.slice(index)
        return pixels if self.window is None else np.clip(pixels, *self.window)

    def slices(self) -> Iterator[AnyArray]:
        """All slices in order."""
        return (self.slice(index) for index in range(self.depth))

    def sample(self, most: int = 6) -> tuple[AnyArray, ...]:
        """At most ``most`` slices, evenly spread, to be named as the volume in requests.

        More than six find the structures hardly better, and take longer. Empty for a picture.
        """
        return sample((self,), most)

    def check_same_space(self, labels: ImageFile) -> None:
        """Labels have as many voxels as the image, in the same places.

        Raises:
            FileError: they lie elsewhere; says how both lie.
        """
        same_slices = self.slice(0).shape[:2] == labels.slice(0).shape[:2]
        same_grid = same_slices and self.depth == labels.depth
        if same_grid and (self.nifti is None or labels.nifti is None):
            return
        if (
            not same_grid
            or self.nifti is None
            or labels.nifti is None
            or not np.allclose(self.nifti.affine, labels.nifti.affine, rtol=1e-3, atol=1e-2)
        ):
            raise FileError(
                f"{labels.path}: {_lies(labels)}, expected the image's, {_lies(self)} "
                f"({self.path.name}); resample the labels onto the image's grid"
            )

    def same_geometry(self, other: ImageFile) -> bool:
        """Whether both are volumes whose voxels are in the same places: frames of one film."""
        if self.nifti is None or other.nifti is None:
            return False
        same_place = np.allclose(self.nifti.affine, other.nifti.affine)
        return same_place and self.axis == other.axis and self.pixels.shape == other.pixels.shape


def sample(frames: Sequence[ImageFile], most: int = 6) -> tuple[AnyArray, ...]:
    """At most ``most`` slices, evenly spread; of volumes with the same geometry two have as many.

    Those two at the same heights: more heights, of which some are near the ends, serve worse.
    """
    if frames[0].axis is None:
        return ()
    shown = [frames[index] for index in spread(len(frames), 2)]
    heights = spread(frames[0].depth, most // len(shown))
    return tuple(frame.slice(height) for frame in shown for height in heights)


def spread(count: int, most: int) -> list[int]:
    """At most ``most`` of ``count`` indices, evenly spread, the ends left out if possible."""
    wanted = min(count, most)
    return [(2 * i + 1) * count // (2 * wanted) for i in range(wanted)]


def slice_axis(shape: tuple[int, ...], zooms: tuple[float, ...]) -> int:
    """Axis along which a volume was acquired.

    A flat one where there is one; else the one whose spacing differs from the others'; else the
    one with far fewer slices than the others have pixels; else upwards.
    """
    if 1 in shape:
        return shape.index(1) if shape[2] != 1 else 2
    logs = np.log(zooms)
    others = [np.delete(logs, axis) for axis in range(3)]
    apart = [abs(logs[k] - o.mean()) - abs(o[0] - o[1]) for k, o in enumerate(others)]
    if max(apart) > np.log(1.2):
        return int(np.argmax(apart))
    shortest = int(np.argmin(shape))
    return shortest if 2 * shape[shortest] <= np.partition(shape, 1)[1] else 2


def _lies(image: ImageFile) -> str:
    """Size, spacing, origin and oblique angle, for people."""
    size = " x ".join(map(str, image.pixels.shape))
    if image.nifti is None:
        return f"{size} pixels"
    affine = image.nifti.affine
    zooms = np.linalg.norm(affine[:3, :3], axis=0)
    spacing = " x ".join(f"{float(z):.3g}" for z in zooms)
    origin = ", ".join(f"{float(v):.1f}" for v in affine[:3, 3])
    cosine = (np.trace(affine[:3, :3] / np.maximum(zooms, 1e-9)) - 1) / 2
    degrees = float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
    oblique = f", oblique by {degrees:.1f} degrees" if degrees > OBLIQUE_DEGREES else ""
    return f"{size} voxels of {spacing} mm from ({origin}){oblique}"


def _size(image: ImageFile) -> str:
    """As files and viewers say it."""
    if image.stored is None:
        return f"{image.pixels.shape[1]} x {image.pixels.shape[0]} pixels"
    return " x ".join(str(n) for n in image.stored.shape[:3]) + " voxels"
