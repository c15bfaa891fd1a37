"""Scans from outside: what they unpack to is checked by their headers before they are read."""

from __future__ import annotations

import bz2
import gzip
import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

from vessa_client import InvalidRequestError, OverloadedError, VessaError, files
from vessa_client.files import FileError, ImageFile
from vessa_server.cases import nifti

NRRD_SUFFIXES = (".nrrd",)
# Of one file: longest header, and most that may follow the voxels.
MAX_HEADER_BYTES = 1 << 20
CHUNK_BYTES = 1 << 20
# What a pixel of DICOM takes in memory once it is in its unit.
DICOM_PIXEL_BYTES = 4
DEFLATED = "1.2.840.10008.1.2.1.99"
DICOM_TAGS = ["Rows", "Columns", "NumberOfFrames", "SamplesPerPixel"]


def read(path: Path, field: str, max_bytes: int, *, labels: bool = False) -> ImageFile:
    """Read a volume: NIfTI, NRRD, or a DICOM file or folder.

    Args:
        path: of it.
        field: named in errors.
        max_bytes: most bytes of voxels, as they are in memory.
        labels: its values are labels.

    Raises:
        InvalidRequestError: it is damaged, or no volume.
        OverloadedError: it has too many voxels.
    """
    with as_requests(path, field):
        check(path, field, max_bytes)
        return files.read(path, labels=labels)


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
    elif path.is_file() and name.endswith(NRRD_SUFFIXES):
        _check_nrrd(path, field, max_bytes)
    elif files.is_dicom(path):
        _check_dicom(path, field, max_bytes)
    else:
        raise InvalidRequestError(
            f"{field}: {path.name[-80:]!r}, expected .nii, .nii.gz, .nrrd or DICOM", field=field
        )


def _check_nrrd(path: Path, field: str, max_bytes: int) -> None:
    try:
        with path.open("rb") as stream:
            header, start = _nrrd_header(stream)
            _check_nrrd_header(header, field, max_bytes)
            stream.seek(start)
            _check_packed(stream, str(header["encoding"]), field, max_bytes)
    except VessaError:
        raise
    except Exception as error:  # pynrrd and the decoders raise many kinds
        raise InvalidRequestError(
            f"{field}: NRRD is damaged or truncated ({error}), expected a whole file", field=field
        ) from error


def _nrrd_header(stream: BinaryIO) -> tuple[dict[str, Any], int]:
    """The header, and where the voxels begin."""
    import nrrd  # type: ignore[import-untyped]

    start = stream.read(MAX_HEADER_BYTES)
    ends = [start.find(end) + len(end) for end in (b"\n\n", b"\r\n\r\n") if end in start]
    if not ends:
        raise ValueError("its header does not end")
    return nrrd.read_header(io.BytesIO(start[: min(ends)])), min(ends)


def _check_nrrd_header(header: dict[str, Any], field: str, max_bytes: int) -> None:
    if {"data file", "datafile"} & set(header):
        raise InvalidRequestError(
            f"{field}: NRRD with its voxels in another file, expected them in it", field=field
        )
    from nrrd.reader import _determine_datatype

    sizes = [int(n) for n in header["sizes"]]
    if min(sizes) < 1:
        raise InvalidRequestError(f"{field}: NRRD of sizes {sizes}, expected voxels", field=field)
    held = math.prod(sizes) * _determine_datatype(header).itemsize
    if held > max_bytes:
        raise too_large(field, f"{held} bytes of voxels", max_bytes)


def _check_packed(stream: BinaryIO, encoding: str, field: str, max_bytes: int) -> None:
    """Unpack to the end, where the checksum is, keeping nothing."""
    unpacked: Any
    if encoding in ("gzip", "gz"):
        unpacked = gzip.GzipFile(fileobj=stream, mode="rb")
    elif encoding in ("bzip2", "bz2"):
        unpacked = bz2.BZ2File(stream)
    else:
        return
    left = max_bytes + CHUNK_BYTES
    while chunk := unpacked.read(CHUNK_BYTES):
        left -= len(chunk)
        if left < 0:
            raise too_large(field, "unpacks to more", max_bytes)


def _check_dicom(path: Path, field: str, max_bytes: int) -> None:
    import pydicom
    from pydicom.filereader import read_file_meta_info

    inside = sorted(path.iterdir()) if path.is_dir() else [path]
    held = 0
    for file in inside:
        if file.is_symlink():
            raise InvalidRequestError(
                f"{field}: {file.name} is a link, expected files", field=field
            )
        if not files.is_dicom(file) or file.is_dir():
            continue
        try:
            if str(read_file_meta_info(file).get("TransferSyntaxUID", "")) == DEFLATED:
                raise InvalidRequestError(
                    f"{field}: {file.name} is deflated DICOM, expected another transfer syntax",
                    field=field,
                )
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=DICOM_TAGS)
            counts = [int(cast("Any", header.get(tag)) or 1) for tag in DICOM_TAGS]
        except VessaError:
            raise
        except Exception as error:  # pydicom raises many kinds
            raise InvalidRequestError(
                f"{field}: {file.name}: cannot be read as DICOM ({error})", field=field
            ) from error
        held += DICOM_PIXEL_BYTES * math.prod(counts)
        if held > max_bytes:
            raise too_large(field, "more pixels", max_bytes)


def too_large(field: str, what: str, max_bytes: int) -> OverloadedError:
    """The error of what is over the limit of bodies."""
    return OverloadedError(
        f"{field}: {what}, expected at most {max_bytes} bytes (VESSA_MAX_QUEUE_BYTES)", field=field
    )
