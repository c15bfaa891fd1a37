"""NIfTI files from outside: the header is checked before any voxel is unpacked."""

from __future__ import annotations

import gzip
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

import nibabel as nib
import numpy as np
import numpy.typing as npt

from vessa_client import AnyArray, InvalidRequestError, OverloadedError, VessaError

GZIP_MAGIC = b"\x1f\x8b"
# Headers may carry extensions, such as DICOM's; a small file can unpack to a large one.
MAX_HEADER_BYTES = 16 << 20
# What may follow the voxels; a packed file is read to its end, where its checksum is.
MAX_TRAILING_BYTES = 1 << 20
_KINDS = {nib.Nifti1Header: nib.Nifti1Image, nib.Nifti2Header: nib.Nifti2Image}
# Checks a shape before its voxels are read; raises a VessaError.
CheckShape = Callable[[tuple[int, ...]], None]


@dataclass(frozen=True)
class NiftiGeometry:
    """What a mask needs to go out as it came in: header with affine, and the slice's shape."""

    header: nib.Nifti1Header
    affine: npt.NDArray[np.float64]
    shape: tuple[int, ...]


def is_nifti(start: bytes) -> bool:
    """Whether a file that begins so may be NIfTI, packed or not."""
    return start[:2] == GZIP_MAGIC or start[344:347] == b"n+1" or start[4:7] == b"n+2"


def read(file: BinaryIO, field: str, max_bytes: int, check: CheckShape) -> nib.Nifti1Image:
    """Read a file, no more of it than its header announces.

    Args:
        file: the file, packed or not, at its beginning.
        field: named in errors.
        max_bytes: most bytes of voxels, as they are in memory.
        check: refuses shapes.

    Raises:
        InvalidRequestError: it is damaged, or its header announces something else.
        OverloadedError: it has too many voxels.
    """
    packed = file.read(2) == GZIP_MAGIC
    file.seek(0)
    try:
        stream = gzip.GzipFile(fileobj=file, mode="rb") if packed else file
        header = _header(stream)
        size = _checked_size(header, field, max_bytes, check)
        stream.seek(0)
        content = stream.read(size)
        if packed and len(stream.read(MAX_TRAILING_BYTES)) == MAX_TRAILING_BYTES:
            raise InvalidRequestError(
                f"{field}: goes on after the voxels that its header announces, expected their end",
                field=field,
            )
        return _KINDS[type(header)].from_bytes(content)
    except VessaError:
        raise
    except Exception as error:  # nibabel and gzip raise many kinds
        raise damaged(field, error) from error


def check_axes(shape: tuple[int, ...], field: str) -> None:
    """Check that a file holds one volume.

    Raises:
        InvalidRequestError: it does not.
    """
    if len(shape) not in (2, 3) and not (len(shape) == 4 and shape[3] == 1):
        raise InvalidRequestError(
            f"{field}: NIfTI of shape {shape}, expected a volume of three axes", field=field
        )


def read_slice(data: bytes, field: str, check: CheckShape) -> tuple[AnyArray, NiftiGeometry]:
    """Pixels and geometry of a file that holds one slice; ``check`` sees (rows, columns).

    Raises:
        InvalidRequestError: it is damaged, or not one slice.
        OverloadedError: it is too large.
    """

    def check_plane(shape: tuple[int, ...]) -> None:
        plane = _plane(shape)
        if len(plane) != 2:
            raise InvalidRequestError(
                f"{field}: NIfTI of shape {shape}, expected one slice; send a volume to "
                "POST /pseudolabel/volume, or label it with `vessa label`",
                field=field,
            )
        check(plane)

    image = read(io.BytesIO(data), field, 1 << 31, check_plane)
    shape = tuple(int(n) for n in image.shape)
    pixels = voxels(image, field).reshape(_plane(shape))
    return pixels, NiftiGeometry(image.header.copy(), np.asarray(image.affine), shape)


def voxels(image: nib.Nifti1Image, field: str) -> AnyArray:
    """The voxels in their unit.

    Raises:
        InvalidRequestError: there are fewer than the header announces.
    """
    try:
        with np.errstate(all="ignore"):  # what is not finite is refused later
            found = np.asarray(image.dataobj)
    except Exception as error:  # nibabel raises many kinds
        raise damaged(field, error) from error
    return found.astype(found.dtype.newbyteorder("="), copy=False)


def damaged(field: str, error: Exception) -> InvalidRequestError:
    """The error of a file that cannot be read."""
    return InvalidRequestError(
        f"{field}: NIfTI is damaged or truncated ({error}), expected a whole file", field=field
    )


def _header(stream: BinaryIO | gzip.GzipFile) -> nib.Nifti1Header:
    start = stream.read(4)
    orders = [int(np.frombuffer(start, dtype=f"{order}i4")[0]) for order in "<>"]
    kind = nib.Nifti2Header if 540 in orders else nib.Nifti1Header
    stream.seek(0)
    return kind.from_fileobj(stream)


def _checked_size(header: nib.Nifti1Header, field: str, max_bytes: int, check: CheckShape) -> int:
    """Bytes of header and voxels in the file."""
    shape = tuple(int(n) for n in header.get_data_shape())
    if not shape or min(shape) < 1:
        raise InvalidRequestError(
            f"{field}: NIfTI of shape {shape}, expected at least one voxel", field=field
        )
    dtype = header.get_data_dtype()
    if dtype.kind not in "uif":
        raise InvalidRequestError(
            f"{field}: NIfTI of {dtype}, expected integers or floats", field=field
        )
    check(shape)
    count = math.prod(shape)
    # Where there is a scale, voxels become float64.
    scaled = header.get_slope_inter() not in ((None, None), (1.0, 0.0))
    held = count * max(dtype.itemsize, 8 if scaled else 0)
    if held > max_bytes:
        raise OverloadedError(
            f"{field}: {count} voxels, {held} bytes in memory, expected at most {max_bytes}",
            field=field,
        )
    offset = int(header.get_data_offset())
    if not 0 < offset <= MAX_HEADER_BYTES:
        raise InvalidRequestError(
            f"{field}: NIfTI with voxels at byte {offset}, expected 352..{MAX_HEADER_BYTES}",
            field=field,
        )
    return offset + count * int(dtype.itemsize)


def _plane(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)
