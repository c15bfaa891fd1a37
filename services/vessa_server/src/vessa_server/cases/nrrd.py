"""NRRD files from outside: the header is checked before any voxel is unpacked."""

from __future__ import annotations

import io
import math
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np

from vessa_client import AnyArray, InvalidRequestError, OverloadedError
from vessa_client.files import ImageFile

MAGIC = b"NRRD000"
MAX_HEADER_BYTES = 1 << 20
# Bytes of a voxel in memory, at most; a packed file may have as much beside its voxels.
VOXEL_BYTES, BESIDE = 8, 1 << 20
_CHUNK = 1 << 16
_RAW, _PACKED = ("raw",), ("gzip", "gz")
# As uploads are called.
DICOM_SUFFIXES = (".dcm", ".zip")
# Types that are sent as they are; others as float32.
_TYPES = {"u1": "uint8", "i1": "int8", "u2": "uint16", "i2": "int16", "i4": "int32"}


def is_nrrd(start: bytes) -> bool:
    """Whether a file that begins so is NRRD."""
    return start.startswith(MAGIC)


def check(path: Path, field: str, max_bytes: int) -> None:
    """Check a file before it is read: it holds its own voxels, and not too many.

    Args:
        path: the file.
        field: named in errors.
        max_bytes: most bytes of voxels in memory.

    Raises:
        InvalidRequestError: its header is damaged, or names another file.
        OverloadedError: it has, or unpacks to, too many voxels.
    """
    with path.open("rb") as stream:
        header = _header(stream, field)
        for name in ("data file", "datafile", "line skip", "lineskip", "byte skip", "byteskip"):
            if str(header.get(name, 0)) not in ("0", "-1"):
                raise InvalidRequestError(
                    f"{field}: NRRD with {name!r}, expected one file of header and voxels",
                    field=field,
                )
        encoding = str(header.get("encoding", "")).lower()
        if encoding not in _RAW + _PACKED or header.get("type") == "block":
            raise InvalidRequestError(
                f"{field}: NRRD of type {str(header.get('type'))[:20]!r}, encoding "
                f"{encoding[:20]!r}, expected numbers, raw or gzip",
                field=field,
            )
        sizes = [int(n) for n in header.get("sizes", ())]
        if not sizes or min(sizes) < 1:
            raise InvalidRequestError(
                f"{field}: NRRD of sizes {sizes[:8]}, expected at least one voxel", field=field
            )
        most = math.prod(sizes) * VOXEL_BYTES
        if most > max_bytes:
            raise OverloadedError(
                f"{field}: NRRD of sizes {sizes[:8]}, {most} bytes in memory, expected at most "
                f"{max_bytes}",
                field=field,
            )
        if encoding in _PACKED and not _unpacks_to(stream, most + BESIDE):
            raise InvalidRequestError(
                f"{field}: NRRD goes on after the voxels that its header announces, expected "
                "their end",
                field=field,
            )


def _header(stream: BinaryIO, field: str) -> dict[str, Any]:
    """Fields of the header; the stream is then where the voxels begin."""
    import nrrd  # type: ignore[import-untyped]

    start = stream.read(MAX_HEADER_BYTES)
    lines = io.BytesIO(start)
    while (line := lines.readline()).strip():
        if not line.endswith(b"\n"):
            break
    try:
        header: dict[str, Any] = nrrd.read_header(io.BytesIO(start[: lines.tell()]))
    except Exception as error:  # pynrrd raises many kinds
        raise InvalidRequestError(
            f"{field}: NRRD is damaged ({error}), expected a whole header", field=field
        ) from error
    stream.seek(lines.tell())
    return header


def _unpacks_to(stream: BinaryIO, most: int) -> bool:
    """Whether what follows unpacks to ``most`` bytes or fewer; damage shows when it is read."""
    unpacker, size = zlib.decompressobj(zlib.MAX_WBITS | 16), 0
    data = stream.read(_CHUNK)
    while data and not unpacker.eof and size <= most:
        try:
            size += len(unpacker.decompress(data, _CHUNK))
        except zlib.error:
            return True
        data = unpacker.unconsumed_tail or stream.read(_CHUNK)
    return size <= most


def encode(file: ImageFile) -> bytes:
    """An image as a raw NRRD: first axis fastest, colours before it.

    A volume has its axes to the right, to the front and up, and says in ``slice axis`` along
    which it is sliced, in ``stored ...`` how it lies in its file, in ``source`` whether that is
    DICOM, and in ``window`` which intensities are seen; a picture has columns and rows.
    """
    pixels = file.pixels
    if not pixels.flags.contiguous or pixels.dtype.byteorder == ">":
        pixels = np.asarray(pixels, dtype=pixels.dtype.newbyteorder("="))
    kind = _TYPES.get(pixels.dtype.str[1:])
    values = pixels if kind else _to_float(pixels)
    spatial = 2 if file.axis is None else 3
    colours = values.ndim > spatial
    if file.axis is None:
        values = values.swapaxes(0, 1)
    if colours:
        values = np.moveaxis(values, -1, 0)
    lines = [
        "NRRD0004",
        f"type: {kind or 'float'}",
        f"dimension: {values.ndim}",
        f"sizes: {' '.join(map(str, values.shape))}",
        f"kinds: {' '.join(['RGB-color'] * colours + ['domain'] * spatial)}",
        "endian: little",
        "encoding: raw",
    ]
    if file.axis is not None and file.nifti is not None:
        lines += _place(file.nifti.affine, colours=colours)
        lines.append(f"slice axis:={file.axis}")
        lines += _stored(file)
        if file.path.suffix in DICOM_SUFFIXES:
            lines.append("source:=DICOM")
    if file.window is not None:
        lines.append(f"window:={file.window[0]!r} {file.window[1]!r}")
    return "\n".join([*lines, "", ""]).encode() + values.tobytes(order="F")


def _to_float(pixels: AnyArray) -> AnyArray:
    with np.errstate(all="ignore"):
        return np.nan_to_num(pixels.astype(np.float32))


def _place(affine: AnyArray, *, colours: bool) -> list[str]:
    columns = [_vector(affine[:3, k]) for k in range(3)]
    return [
        "space: right-anterior-superior",
        f"space directions: {' '.join(['none'] * colours + columns)}",
        f"space origin: {_vector(affine[:3, 3])}",
    ]


def _stored(file: ImageFile) -> list[str]:
    """How the file has the volume: for who writes labels in its place.

    Its k-th axis is ``axes[k]`` of those to the right, to the front and up; where ``signs[k]`` is
    -1 it leads the other way.
    """
    if file.stored is None:
        return []
    order = nib.orientations.io_orientation(file.stored.affine)
    if np.isnan(order).any():  # the file does not say how it lies, and was left so
        order = np.array([[0, 1], [1, 1], [2, 1]])
    return [
        f"stored sizes:={' '.join(map(str, file.stored.shape))}",
        f"stored axes:={' '.join(str(int(axis)) for axis in order[:, 0])}",
        f"stored signs:={' '.join(str(int(sign)) for sign in order[:, 1])}",
        f"stored affine:={' '.join(repr(float(v)) for v in file.stored.affine[:3].ravel())}",
    ]


def _vector(values: AnyArray) -> str:
    return f"({','.join(repr(float(v)) for v in values)})"
