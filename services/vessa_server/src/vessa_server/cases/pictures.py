"""Pictures from outside: PNG, JPEG and TIFF, checked before their pixels are decoded."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from vessa_client import AnyArray, InvalidRequestError, OverloadedError, VessaError

FORMATS = ("PNG", "JPEG", "TIFF")
# Each scan of a JPEG goes over all of its pixels, and Pillow takes a step for each strip or tile
# of a TIFF: small files of very many would take hours, or all memory.
MAX_JPEG_SCANS, MAX_TIFF_PARTS = 128, 1 << 16
_JPEG_SCAN = b"\xff\xda"
_STRIP_OFFSETS, _TILE_OFFSETS = 273, 324
# Of these modes the values are kept; others become RGB.
_GREY_MODES = ("L", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True)
class _Directory:
    """What a TIFF says of its first page: how many strips or tiles, and whether others follow."""

    parts: int = 1
    is_last: bool = True


def decode(data: bytes, field: str, max_side: int, *, labels: bool) -> AnyArray:
    """Decode a picture.

    Args:
        data: the file.
        field: named in errors.
        max_side: most pixels along a side.
        labels: the file is a label map, so a palette picture holds labels and not colours.

    Raises:
        InvalidRequestError: not a picture of these kinds, or damaged.
        OverloadedError: over a limit.
    """
    try:
        page = _first_page(data)
        _check_page(page, field)
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            check_side((picture.height, picture.width), max_side, field)
            if picture.format == "PNG" and getattr(picture, "n_frames", 1) > 1:
                raise _several(field)
            if "jpeg" in f"{picture.format} {picture.info.get('compression')}".lower():
                _check_scans(data, page, field)
            picture.load()
            pixels = np.asarray(_plain(picture, labels=labels))
    except VessaError:
        raise
    except UnidentifiedImageError:
        raise InvalidRequestError(
            f"{field}: not an image, expected PNG, JPEG, TIFF or NIfTI", field=field
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise OverloadedError(
            f"{field}: too many pixels, expected at most {max_side} a side", field=field
        ) from error
    except Exception as error:  # decoders raise many kinds, OverflowError among them
        raise InvalidRequestError(
            f"{field}: damaged or truncated ({error}), expected a whole file", field=field
        ) from error
    native = np.uint8 if pixels.dtype == np.bool_ else pixels.dtype.newbyteorder("=")
    return pixels.astype(native, copy=False)


def check_side(plane: tuple[int, ...], max_side: int, field: str) -> None:
    """Refuse an image whose rows or columns are too many.

    Raises:
        OverloadedError: they are.
    """
    if max(plane) > max_side:
        raise OverloadedError(
            f"{field}: {plane[0]} x {plane[1]} pixels, expected at most {max_side} a side "
            "(VESSA_MAX_IMAGE_SIDE)",
            field=field,
        )


def _plain(picture: Image.Image, *, labels: bool) -> Image.Image:
    """Grey values as they are, all else as colours."""
    if picture.mode in _GREY_MODES or (labels and picture.mode in ("1", "P")):
        return picture
    return picture.convert("L" if picture.mode == "1" else "RGB")


def _first_page(data: bytes) -> _Directory:
    """The first directory of a TIFF; that of other kinds is empty."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        return _Directory()
    is_big = struct.unpack_from(order + "H", data, 2)[0] == 43
    # Formats of: where the directory is, how many entries it has, an entry's tag, type and count.
    where, how_many, entry = (">Q", ">Q", ">HHQ8x") if is_big else (">L", ">H", ">HHL4x")
    where, how_many, entry = (f.replace(">", order) for f in (where, how_many, entry))
    start = struct.unpack_from(where, data, 8 if is_big else 4)[0]
    entries = struct.unpack_from(how_many, data, start)[0]
    first = start + struct.calcsize(how_many)
    last = first + entries * struct.calcsize(entry)
    counts = [
        count
        for tag, _, count in struct.iter_unpack(entry, data[first:last])
        if tag in (_STRIP_OFFSETS, _TILE_OFFSETS)
    ]
    (following,) = struct.unpack_from(where, data, last)
    return _Directory(max(counts, default=1), following == 0)


def _check_page(page: _Directory, field: str) -> None:
    if page.parts > MAX_TIFF_PARTS:
        raise OverloadedError(
            f"{field}: TIFF of {page.parts} strips or tiles, expected at most {MAX_TIFF_PARTS}",
            field=field,
        )
    if not page.is_last:
        raise _several(field)


def _several(field: str) -> InvalidRequestError:
    """Which one is meant cannot be guessed."""
    return InvalidRequestError(
        f"{field}: has several pages, expected one picture; send them slice by slice", field=field
    )


def _check_scans(data: bytes, page: _Directory, field: str) -> None:
    """Of a TIFF each strip or tile is a JPEG."""
    scans, most = data.count(_JPEG_SCAN), MAX_JPEG_SCANS + 4 * (page.parts - 1)
    if scans > most:
        raise OverloadedError(
            f"{field}: JPEG of {scans} scans, expected at most {most}", field=field
        )
