"""DICOM from outside: sizes are checked before any pixel is decoded."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from vessa_client import InvalidRequestError, OverloadedError, VessaError

ZIP_MAGIC, _MAGIC, _MAGIC_AT = b"PK\x03\x04", b"DICM", 128
# Bytes of a voxel in memory, at most.
VOXEL_BYTES = 8
# Of a zip: where its entries are listed is at its end, before a comment of at most 64 KiB.
_END, _END_BYTES, MAX_LIST_BYTES = b"PK\x05\x06", 22, 4 << 20
# Transfer syntaxes whose whole data set is packed, and unpacks to anything.
_DEFLATED = (b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.8.1", b"1.2.840.10008.1.2.4.95")
_TAGS = ["Rows", "Columns", "NumberOfFrames", "SamplesPerPixel"]


def is_zip(start: bytes) -> bool:
    """Whether a file that begins so is a zip."""
    return start.startswith(ZIP_MAGIC)


def is_dicom(start: bytes) -> bool:
    """Whether a file that begins so is DICOM."""
    return start[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] == _MAGIC


def check(path: Path, field: str, max_bytes: int) -> None:
    """Check a file, a folder or a zip before it is read.

    Args:
        path: a DICOM file, or a folder or zip of such.
        field: named in errors.
        max_bytes: most bytes of all voxels in memory, and of all files of a zip.

    Raises:
        InvalidRequestError: it is damaged, packed as a whole, or has a link in it.
        OverloadedError: it is too large.
    """
    voxels = 0
    try:
        for name, content in _contents(path, field, max_bytes):
            voxels += _voxels(name, content, field)
            if voxels * VOXEL_BYTES > max_bytes:
                raise OverloadedError(
                    f"{field}: DICOM of {voxels} voxels and more, {voxels * VOXEL_BYTES} bytes in "
                    f"memory, expected at most {max_bytes}",
                    field=field,
                )
    except VessaError:
        raise
    except Exception as error:  # zipfile and pydicom raise many kinds
        raise InvalidRequestError(
            f"{field}: DICOM or zip is damaged ({error}), expected whole files", field=field
        ) from error


def _contents(path: Path, field: str, max_bytes: int) -> Iterator[tuple[str, bytes]]:
    if path.is_dir():
        for file in sorted(path.iterdir()):
            if file.is_symlink():
                raise InvalidRequestError(
                    f"{field}: {file.name} is a link, expected files", field=field
                )
            if file.is_file():
                yield file.name[:80], file.read_bytes()
        return
    with path.open("rb") as stream:
        if not is_zip(stream.read(4)):
            stream.seek(0)
            yield field, stream.read()
            return
        check_list(stream, field)
        with zipfile.ZipFile(stream) as archive:
            entries = archive.infolist()
            unpacked = sum(entry.file_size for entry in entries)
            if unpacked > max_bytes:
                raise OverloadedError(
                    f"{field}: a zip that unpacks to {unpacked} bytes, expected at most "
                    f"{max_bytes}",
                    field=field,
                )
            for entry in entries:
                yield entry.filename[:80], archive.read(entry)


def check_list(stream: BinaryIO, field: str) -> None:
    """Refuse a zip of very many entries: each takes far more memory than its line in the list.

    Raises:
        InvalidRequestError: it is of too many, or damaged.
    """
    size = stream.seek(0, io.SEEK_END)
    stream.seek(max(0, size - _END_BYTES - (1 << 16)))
    tail = stream.read()
    at = tail.rfind(_END)
    length = struct.unpack_from("<L", tail, at + 12)[0] if 0 <= at <= len(tail) - 22 else None
    if length is None or length > MAX_LIST_BYTES:
        raise InvalidRequestError(
            f"{field}: a zip that is damaged or of too many files, expected one series of DICOM",
            field=field,
        )
    stream.seek(0)


def _voxels(name: str, content: bytes, field: str) -> int:
    """How many a file says it has; none where it is not DICOM."""
    import pydicom

    if not is_dicom(content[: _MAGIC_AT + 4]):
        return 0
    if any(syntax in content for syntax in _DEFLATED):
        raise InvalidRequestError(
            f"{field}: {name} is deflated DICOM, expected another transfer syntax", field=field
        )
    header = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True, specific_tags=_TAGS)
    rows, columns, frames, samples = (int(header.get(tag) or 1) for tag in _TAGS)
    return rows * columns * max(1, frames) * max(1, samples)
