"""Files are written whole, or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
from PIL import Image

from vessa_client._types import AnyArray, UInt8Array
from vessa_client.files import _dicom_seg, _nrrd
from vessa_client.files._errors import FileError
from vessa_client.files._image import ImageFile
from vessa_client.files._volumes import as_stored, to_nifti

FORMS = {".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF"}


def write_labels(
    path: Path, labels: list[UInt8Array], like: ImageFile, *, packed: bool = True
) -> None:
    """Write label maps with the geometry of ``like``: NIfTI or NRRD of volumes, PNG of pictures.

    ``packed`` is of NRRD; of NIfTI the suffix says it.
    """
    if like.nifti is None:
        write_picture(path, labels[0])
        return
    image = to_nifti(labels, like)
    if _nrrd.recognises(path):
        _atomically(path, lambda file: _nrrd.save(file, image, packed=packed))
    else:
        _atomically(path, lambda file: nib.save(image, file))


def write_segmentation(
    path: Path,
    labels: list[UInt8Array],
    like: ImageFile,
    classes: Sequence[str],
    *,
    model: str,
    corrected: bool = False,
) -> None:
    """Write label maps of a DICOM series as a DICOM segmentation object.

    Args:
        path: file to write.
        labels: of each slice of ``like``.
        like: the series that was labelled, whose images are named as sources.
        classes: names of the labels 1, 2, ...
        model: who made them.
        corrected: a person has changed them.

    Raises:
        FileError: the series is gone, or lacks what a segmentation object refers to.
    """
    _atomically(
        path,
        lambda file: _dicom_seg.save(file, labels, like, classes, model=model, corrected=corrected),
    )


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


def write_image(path: Path, image: ImageFile) -> None:
    """Write an image as it lies in its file: NIfTI of a volume, PNG or TIFF of a picture.

    Values of more than four bytes become float32.
    """
    if image.stored is None:
        write_picture(path, image.pixels)
        return
    volume = as_stored(image)
    _atomically(path, lambda file: nib.save(volume, file))


def write_picture(path: Path, pixels: AnyArray) -> None:
    """Write a PNG or a TIFF, as the name ends; floating point goes into a TIFF alone.

    Raises:
        FileError: the name ends otherwise.
    """
    form = FORMS.get(path.suffix.lower())
    if form is None:
        raise FileError(f"{path}: expected a name that ends in {', '.join(FORMS)}")
    picture = Image.fromarray(pixels)
    _atomically(path, lambda file: picture.save(file, format=form))


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to write into, whose content is at ``path`` when it is left without an error.

    Raises:
        FileError: it is there already, and not empty.
    """
    path = path.absolute()
    there = path.exists()  # and maybe a mounted volume, or the working folder: it stays
    if there and (not path.is_dir() or any(path.iterdir())):
        raise FileError(f"{path}: is there already, expected a new folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path if there else path.parent, prefix=".") as scratch:
        partial = Path(scratch) / path.name
        partial.mkdir()
        yield partial
        for whole in sorted(partial.iterdir()) if there else [partial]:
            os.replace(whole, path / whole.name if there else path)


def check_writable(folder: Path) -> None:
    """Whether files can be written into a folder, which may be made: before the work is done.

    Raises:
        FileError: this user has no right to, or it is a file.
    """
    there = next(
        place for place in (folder.absolute(), *folder.absolute().parents) if place.exists()
    )
    if not there.is_dir():
        raise FileError(f"{folder}: {there} is a file, expected a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise FileError(
            f"{folder}: user {os.getuid()} may not write there; give another place or the right "
            "to, in containers another VESSA_USER"
        )


def write_text(path: Path, text: str) -> None:
    """Write a text file."""
    _atomically(path, lambda file: file.write_text(text, newline=""))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a binary file."""
    _atomically(path, lambda file: file.write_bytes(data))


def _atomically(path: Path, save: Callable[[Path], object]) -> None:
    """Let ``save`` write a temporary file of the same suffix, sync it, and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        partial = Path(scratch) / path.name
        save(partial)
        with partial.open("rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(partial, path)
