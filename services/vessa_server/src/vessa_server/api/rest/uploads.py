"""Files of images in forms: pictures and volumes of every format, limits before decoding."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vessa_client import InvalidRequestError, UInt8Array, files
from vessa_client.files import FileError, ImageFile
from vessa_server.api.rest.forms import Form
from vessa_server.api.service import Service
from vessa_server.cases import dicom, nifti, nrrd

VOLUME_FORMATS = "NIfTI (.nii, .nii.gz), NRRD, DICOM, or a zip of a DICOM series"
_START_BYTES = 348


def read_volume(form: Form, max_bytes: int, axis: int | None = None) -> ImageFile:
    """The volume of a form's ``image``.

    Args:
        form: with the file.
        max_bytes: most bytes of voxels, as they are in memory.
        axis: slicing axis; by default the one along which it was acquired.

    Raises:
        InvalidRequestError: missing, damaged, or no volume.
        OverloadedError: it is too large.
    """
    found = _volume(*_opened(form), max_bytes, axis)
    if found is None:
        raise InvalidRequestError(f"image: no volume, expected {VOLUME_FORMATS}", field="image")
    return found


def read_image(form: Form, service: Service) -> ImageFile:
    """The picture or volume of a form's ``image``.

    Raises:
        InvalidRequestError: missing, damaged, or of another format.
        OverloadedError: it is too large.
    """
    source, start = _opened(form)
    found = _volume(source, start, service.settings.max_queue_bytes)
    if found is not None:
        return found
    pixels = service.engine.images.resolve(source.read()).pixels
    return ImageFile(Path("image"), pixels, None, None)


@contextmanager
def dicom_scan(form: Form, max_bytes: int) -> Iterator[ImageFile]:
    """The DICOM file or series of a form's ``image``, whose files are there in the meantime.

    Raises:
        InvalidRequestError: missing, damaged, or of another format.
        OverloadedError: it is too large.
    """
    source, start = _opened(form)
    if not (dicom.is_zip(start) or dicom.is_dicom(start)):
        raise InvalidRequestError(
            "image: no DICOM, expected a DICOM file, or a zip of a series", field="image"
        )
    with _copied(source, start, max_bytes, None) as found:
        assert found is not None
        yield found


def read_labels(form: Form, name: str, like: ImageFile, max_bytes: int) -> list[UInt8Array]:
    """Label maps of the slices of ``like`` from a NIfTI file of its grid, as a form has it.

    Raises:
        InvalidRequestError: missing, damaged, no labels, or of another grid.
        OverloadedError: it is too large.
    """
    if name not in form.files:
        raise InvalidRequestError(f"{name}: missing, expected a NIfTI file", field=name)
    check = partial(nifti.check_axes, field=name)
    image = nifti.read(form.files[name][0].file, name, max_bytes, check)
    try:
        labels = files.from_nifti(Path(name), image, axis=like.axis, labels=True)
        like.check_same_space(labels)
    except FileError as error:
        raise InvalidRequestError(str(error), field=name) from error
    except Exception as error:
        raise nifti.damaged(name, error) from error
    return [plane.astype(np.uint8) for plane in labels.slices()]


def _volume(
    source: BinaryIO, start: bytes, max_bytes: int, axis: int | None = None
) -> ImageFile | None:
    """The volume of a file that begins so; None where it is none."""
    if nifti.is_nifti(start):
        return _nifti(source, max_bytes, axis)
    with _copied(source, start, max_bytes, axis) as found:
        return found


@contextmanager
def _copied(
    source: BinaryIO, start: bytes, max_bytes: int, axis: int | None
) -> Iterator[ImageFile | None]:
    """The volume of a file that readers know by its name; None where it is none."""
    for recognises, check, name in (
        (nrrd.is_nrrd, nrrd.check, "image.nrrd"),
        (dicom.is_zip, dicom.check, "image.zip"),
        (dicom.is_dicom, dicom.check, "image.dcm"),
    ):
        if recognises(start):
            with tempfile.TemporaryDirectory(prefix="vessa-") as folder:
                path = Path(folder) / name  # the user's name is not used
                with path.open("wb") as copy:
                    shutil.copyfileobj(source, copy)
                check(path, "image", max_bytes)
                yield _read(path, axis)
            return
    yield None


def _opened(form: Form) -> tuple[BinaryIO, bytes]:
    """The file, at its beginning, and how it begins."""
    if "image" not in form.files:
        raise InvalidRequestError("image: missing, expected a file", field="image")
    source = form.files["image"][0].file
    source.seek(0)
    start = source.read(_START_BYTES)
    source.seek(0)
    return source, start


def _nifti(source: BinaryIO, max_bytes: int, axis: int | None) -> ImageFile:
    image = nifti.read(source, "image", max_bytes, partial(nifti.check_axes, field="image"))
    try:
        return files.from_nifti(Path("image"), image, axis=axis)
    except FileError as error:
        raise InvalidRequestError(str(error), field="image") from error
    except Exception as error:  # such as a header whose spacing makes no sense
        raise nifti.damaged("image", error) from error


def _read(path: Path, axis: int | None) -> ImageFile:
    with as_requests(path):
        return files.read(path, axis=axis)


@contextmanager
def as_requests(path: Path) -> Iterator[None]:
    """Turn errors of the file of ``image`` into those of requests, which do not say where it is."""
    try:
        yield
    except FileError as error:
        message = str(error).replace(str(path), "image")
        raise InvalidRequestError(message, field="image") from error
