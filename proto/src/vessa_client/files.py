"""Image and label files of users: pictures and NIfTI volumes, with their geometry kept.

Axes: H W space, Z slices.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

from vessa_client._types import AnyArray, UInt8Array

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
NIFTI_SUFFIXES = (".nii.gz", ".nii")
SUFFIXES = PICTURE_SUFFIXES + NIFTI_SUFFIXES
LABEL_SUFFIX = "_gt"
# Angle from which a volume's axes are said to be oblique.
OBLIQUE_DEGREES = 0.05


class FileError(ValueError):
    """A file cannot be read, or is not what was expected; the message names it."""


@dataclass(frozen=True)
class ImageFile:
    """A picture, which is one slice, or a volume.

    Attributes:
        path: where it is.
        pixels: (H, W) or (H, W, 3) of a picture; a volume with axes to the right, to the front
            and up, as far as its file says how it lies.
        axis: axis along which a volume is sliced; None for a picture.
        nifti: the volume in that orientation, for its geometry.
        stored: the volume as it is in the file.
    """

    path: Path
    pixels: AnyArray
    axis: int | None
    nifti: nib.Nifti1Image | None
    stored: nib.Nifti1Image | None = None

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


def stem(path: Path) -> str:
    """File name without ``.nii.gz`` and the like."""
    for suffix in SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.stem


def is_image(path: Path) -> bool:
    """Whether the file name says that it is an image."""
    return path.is_file() and path.name.lower().endswith(SUFFIXES)


def is_volume(path: Path) -> bool:
    """Whether the file name says that it is a volume."""
    return path.name.lower().endswith(NIFTI_SUFFIXES)


def find_images(folder: Path) -> list[Path]:
    """Images of a folder without the label files ``*_gt.*``, sorted.

    Raises:
        FileError: the folder is missing.
    """
    if not folder.is_dir():
        raise FileError(f"{folder}: no such folder")
    return sorted(
        f for f in folder.rglob("*") if is_image(f) and not stem(f).endswith(LABEL_SUFFIX)
    )


def find_inputs(folder: Path, *outs: Path, endings: tuple[str, ...]) -> list[Path]:
    """Images of a folder that are no results of an earlier call.

    Args:
        folder: of the images.
        outs: folders of results; nothing below them is an image, unless the images lie there too.
        endings: of the results' names; where the images lie in a folder of results, names tell.

    Raises:
        FileError: the folder is missing, or there are no images.
    """
    source, places = folder.resolve(), [out.resolve() for out in outs]
    shared = any(source.is_relative_to(place) for place in places)
    apart = [place for place in places if not source.is_relative_to(place)]
    found = []
    for image in find_images(folder):
        lies = source / image.relative_to(folder)
        is_result = any(lies.is_relative_to(place) for place in apart)
        if not is_result and not (shared and stem(image).endswith(endings)):
            found.append(image)
    if not found:
        raise FileError(f"{folder}: no images ({', '.join(SUFFIXES)})")
    return found


def find_label(image: Path) -> Path | None:
    """The label file beside an image: ``name_gt`` with the same or another suffix."""
    for suffix in SUFFIXES:
        candidate = image.with_name(stem(image) + LABEL_SUFFIX + suffix)
        if candidate.is_file():
            return candidate
    return None


def read(
    path: Path, *, axis: int | None = None, labels: bool = False, channel: int | None = None
) -> ImageFile:
    """Read an image or a label file.

    Args:
        path: PNG, JPEG, TIFF or NIfTI.
        axis: slicing axis of a volume, 0 from left to right, 1 from back to front, 2 upwards (as
            stored, where the file does not say how it lies); by default the one along which it
            was acquired.
        labels: keep the values of a palette picture instead of its colours, and return
            integers.
        channel: which volume of those along a fourth axis, if there is one; without, such a file
            is refused.

    Raises:
        FileError: missing, damaged, or of another kind.
    """
    if not path.is_file():
        raise FileError(f"{path}: no such file")
    with reading(path):
        if is_volume(path):
            return _read_nifti(path, axis, labels, channel)
        with Image.open(path) as picture:
            pixels = np.asarray(_plain(picture, labels=labels))
    return ImageFile(path, _integers(path, pixels) if labels else pixels, None, None)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever is raised while a file is read into a FileError that names it.

    Decoders raise what they like: nibabel a plain Exception, zlib an error of its own.
    """
    try:
        yield
    except FileError:
        raise
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise FileError(f"{path}: cannot be read ({reason})") from error


def _plain(picture: Image.Image, *, labels: bool) -> Image.Image:
    if picture.mode in ("L", "RGB", "I", "I;16", "F") or (labels and picture.mode == "P"):
        return picture
    return picture.convert("L" if picture.mode == "1" else "RGB")


def _read_nifti(path: Path, axis: int | None, labels: bool, channel: int | None) -> ImageFile:
    image = nib.load(path)
    if not isinstance(image, nib.Nifti1Image):
        raise FileError(f"{path}: expected NIfTI")
    if channel is not None and image.ndim == 4 and image.shape[3] > 1:
        if channel >= image.shape[3]:
            raise FileError(
                f"{path}: {image.shape[3]} channels, expected more than the channel's number, "
                f"{channel}"
            )
        image = image.slicer[..., channel]
    return from_nifti(path, image, axis=axis, labels=labels)


def from_nifti(
    path: Path, image: nib.Nifti1Image, *, axis: int | None = None, labels: bool = False
) -> ImageFile:
    """The same of a volume that is in memory; ``path`` names it.

    Raises:
        FileError: it has not three axes, or is no label map.
    """
    pixels = np.asanyarray(image.dataobj)
    if pixels.ndim == 4 and pixels.shape[3] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3:
        raise FileError(f"{path}: shape {pixels.shape}, expected a volume of three axes")
    if labels:
        pixels = _integers(path, pixels)
    upright = _upright(nib.Nifti1Image(pixels, image.affine, image.header))
    pixels = np.asanyarray(upright.dataobj)
    zooms = tuple(float(z) for z in upright.header.get_zooms()[:3])
    chosen = slice_axis(pixels.shape, zooms) if axis is None else axis
    return ImageFile(path, pixels, chosen, upright, image)


def _upright(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """With axes to the right, to the front and up; no value is changed."""
    order = nib.orientations.io_orientation(image.affine)
    if np.isnan(order).any():  # an axis of no extent: the file does not say how it lies
        return image
    return image.as_reoriented(order)


def _as_stored(volume_XYZ: UInt8Array, like: ImageFile) -> UInt8Array:
    """A volume in the orientation of ``like``, as it would be in its file."""
    assert like.stored is not None
    order = nib.orientations.io_orientation(like.stored.affine)
    if np.isnan(order).any():
        return volume_XYZ
    back = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), order)
    stored: UInt8Array = nib.orientations.apply_orientation(volume_XYZ, back)
    return stored


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


def acquired_axis(path: Path) -> int | None:
    """Slicing axis that :func:`read` takes for a volume, by its header; None of a picture.

    Raises:
        FileError: it cannot be read.
    """
    if not is_volume(path):
        return None
    with reading(path):
        image = nib.load(path)
    if not isinstance(image, nib.Nifti1Image):
        raise FileError(f"{path}: expected NIfTI")
    shape = (*image.shape, 1, 1)[:3]
    zooms = (*(float(z) for z in image.header.get_zooms()), 1.0, 1.0)[:3]
    order = nib.orientations.io_orientation(image.affine)
    if not np.isnan(order).any():
        stored = np.argsort(order[:, 0])
        shape, zooms = tuple(shape[i] for i in stored), tuple(zooms[i] for i in stored)
    return slice_axis(shape, zooms)


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


def _integers(path: Path, pixels: AnyArray) -> AnyArray:
    if pixels.ndim == 3 and pixels.shape[2] == 3 and path.suffix.lower() in PICTURE_SUFFIXES:
        raise FileError(f"{path}: a colour picture, expected labels 0, 1, 2, ... in one channel")
    rounded = np.rint(pixels)
    if not np.array_equal(rounded, pixels) or rounded.min() < 0 or rounded.max() > 255:
        raise FileError(f"{path}: expected integer labels in 0..255")
    return rounded.astype(np.uint8)


def write_labels(path: Path, labels: list[UInt8Array], like: ImageFile) -> None:
    """Write label maps with the geometry of ``like``: NIfTI for volumes, PNG for pictures."""
    if like.nifti is None:
        picture = Image.fromarray(labels[0])
        _atomically(path, lambda file: picture.save(file, format="PNG"))
        return
    image = to_nifti(labels, like)
    _atomically(path, lambda file: nib.save(image, file))


def to_nifti(labels: list[UInt8Array], like: ImageFile) -> nib.Nifti1Image:
    """Label maps of the slices of ``like``, a volume, as it is stored."""
    assert like.nifti is not None
    assert like.axis is not None
    stored = like.stored or like.nifti
    volume = np.stack(labels, axis=like.axis)
    if like.stored is not None:
        volume = _as_stored(volume, like)
    volume = volume.reshape(stored.shape)
    header = stored.header.copy()
    header.set_data_dtype(np.uint8)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0
    return nib.Nifti1Image(volume, stored.affine, header)


def write_volume(
    path: Path, volume_XYZ: AnyArray, affine: AnyArray, *, scaling: tuple[float, float] = (1.0, 0.0)
) -> None:
    """Write a NIfTI volume with an affine of its own, in mm.

    Args:
        path: file to write.
        volume_XYZ: voxels as they are stored.
        affine: from voxels to mm.
        scaling: slope and intercept by which a stored voxel is read.
    """
    image = nib.Nifti1Image(volume_XYZ, affine)
    image.header.set_xyzt_units("mm")
    image.header.set_slope_inter(*scaling)
    _atomically(path, lambda file: nib.save(image, file))


def write_picture(path: Path, pixels: UInt8Array) -> None:
    """Write a PNG."""
    picture = Image.fromarray(pixels)
    _atomically(path, lambda file: picture.save(file, format="PNG"))


def write_text(path: Path, text: str) -> None:
    """Write a text file."""
    _atomically(path, lambda file: file.write_text(text, newline=""))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a binary file."""
    _atomically(path, lambda file: file.write_bytes(data))


def output_path(folder: Path, image: Path, ending: str) -> Path:
    """``folder/stem + ending + suffix`` with the suffix that fits the image."""
    suffix = ".png"
    if is_volume(image):
        suffix = ".nii" if image.name.lower().endswith(".nii") else ".nii.gz"
    return folder / (own_stem(image) + ending + suffix)


def own_stem(image: Path) -> str:
    """What tells an image from the others of its folder: the stem, if need be with the suffix."""
    plain = stem(image)
    for suffix in SUFFIXES:
        for name in (plain + suffix, plain + suffix.upper()):
            other = image.with_name(name)
            # Some file systems do not tell .png from .PNG.
            if name != image.name and other.is_file() and not other.samefile(image):
                return image.name
    return plain


def _atomically(path: Path, save: Callable[[Path], object]) -> None:
    """Let ``save`` write a temporary file of the same suffix, sync it, and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        partial = Path(scratch) / path.name
        save(partial)
        with partial.open("rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(partial, path)
