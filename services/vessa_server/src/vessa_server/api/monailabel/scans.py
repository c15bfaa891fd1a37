"""Scans from outside: what they unpack to is checked by their headers before they are read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from vessa_client import InvalidRequestError, OverloadedError, files
from vessa_client.files import FileError, ImageFile
from vessa_server.cases import dicom, nifti, nrrd


def read(path: Path, field: str, max_bytes: int) -> ImageFile:
    """Read a volume: NIfTI, NRRD, or a DICOM file or folder.

    Args:
        path: of it.
        field: named in errors.
        max_bytes: most bytes of voxels, as they are in memory.

    Raises:
        InvalidRequestError: it is damaged, or no volume.
        OverloadedError: it has too many voxels.
    """
    with as_requests(path, field):
        check(path, field, max_bytes)
        return files.read(path)


@contextmanager
def as_requests(path: Path, field: str) -> Iterator[None]:
    """Turn errors of files into those of requests, which do not say where files are."""
    try:
        yield
    except FileError as error:
        message = str(error).replace(f"{path.parent}/", "")
        raise InvalidRequestError(f"{field}: {message}", field=field) from error


def check(path: Path, field: str, max_bytes: int) -> None:
    """Check size and kind of a volume without unpacking more than it may have.

    Raises:
        InvalidRequestError: it is damaged, or of another kind.
        OverloadedError: it has too many voxels.
    """
    name = path.name.lower()
    if path.is_file() and name.endswith(files.NIFTI_SUFFIXES):
        with path.open("rb") as stream:
            nifti.read(stream, field, max_bytes, partial(nifti.check_axes, field=field))
    elif path.is_file() and name.endswith(".nrrd"):
        nrrd.check(path, field, max_bytes)
    elif files.is_dicom(path):
        dicom.check(path, field, max_bytes)
    else:
        raise InvalidRequestError(
            f"{field}: {path.name[-80:]!r}, expected .nii, .nii.gz, .nrrd or DICOM", field=field
        )


def too_large(field: str, what: str, max_bytes: int) -> OverloadedError:
    """The error of what is over the limit of bodies."""
    return OverloadedError(
        f"{field}: {what}, expected at most {max_bytes} bytes (VESSA_MAX_QUEUE_BYTES)", field=field
    )
