"""Images from outside: limits first, then decoding, then checks of their content."""

from __future__ import annotations

import gzip
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from vessa_client import (
    AnyArray,
    ImageReference,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
)
from vessa_client.wire import IMAGE_REF_FIELD, MAX_VOLUME_SLICES, image_digest
from vessa_server.features.lru import ByteLru

FORMATS = ("PNG", "JPEG", "TIFF")
GZIP_MAGIC = b"\x1f\x8b"
MIN_SIDE = 8


@dataclass(frozen=True)
class NiftiGeometry:
    """What a mask needs to go out as it came in: header with affine, and the slice's shape."""

    header: nib.Nifti1Header
    affine: npt.NDArray[np.float64]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class StoredImage:
    """A checked image, (H, W) or (H, W, 3), with its digest and, of NIfTI, its geometry."""

    sha256: str
    pixels: AnyArray
    geometry: NiftiGeometry | None = None


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """Largest image: bytes as sent, and pixels along a side."""

    max_bytes: int
    max_side: int


class ImageStore:
    """Decodes images and keeps them, so that they can be named by reference."""

    def __init__(self, limits: ImageLimits, max_bytes: int) -> None:
        self.limits = limits
        self._kept: ByteLru[StoredImage] = ByteLru(max_bytes)

    def resolve(self, image: AnyArray | bytes | ImageReference) -> StoredImage:
        """Decode and check an image, or find one by reference.

        Raises:
            InvalidRequestError: not an image, or dtype, rank, size or values are wrong.
            OverloadedError: over a limit.
            NotFoundError: the reference is unknown or was evicted.
        """
        if isinstance(image, ImageReference):
            stored = self._kept.get(image.sha256)
            if stored is None:
                raise NotFoundError(
                    f"{IMAGE_REF_FIELD}: {image.sha256[:12]}... is not held (any more), "
                    "send the image itself",
                    field=IMAGE_REF_FIELD,
                )
            return stored
        size = len(image) if isinstance(image, bytes) else image.nbytes
        if size > self.limits.max_bytes:
            raise OverloadedError(
                f"image: {size} bytes, expected at most {self.limits.max_bytes} "
                "(VESSA_MAX_IMAGE_BYTES)",
                field="image",
            )
        digest = image_digest(image)
        known = self._kept.get(digest)
        if known is not None:
            return known
        geometry = None
        if isinstance(image, bytes):
            pixels, geometry = decode(image, self.limits)
        else:
            pixels = image
        check(pixels, self.limits)
        stored = StoredImage(digest, pixels, geometry)
        self._kept.put(digest, stored, pixels.nbytes)
        return stored

    def resolve_volume(
        self, images: Sequence[AnyArray | bytes | ImageReference], image: StoredImage
    ) -> tuple[StoredImage, ...]:
        """The same for slices of the volume that ``image`` is a slice of.

        Raises:
            InvalidRequestError: too many, or not of the image's size.
        """
        if len(images) > MAX_VOLUME_SLICES:
            raise InvalidRequestError(
                f"volume: {len(images)} slices, expected at most {MAX_VOLUME_SLICES}; "
                "some evenly spread ones will do",
                field="volume",
            )
        volume = tuple(self.resolve(other) for other in images)
        for other in volume:
            if other.pixels.shape != image.pixels.shape:
                raise InvalidRequestError(
                    f"volume: a slice of shape {other.pixels.shape}, expected "
                    f"{image.pixels.shape} as the image",
                    field="volume",
                )
        return volume

    @property
    def bytes(self) -> int:
        """Bytes held now."""
        return self._kept.bytes


def check(pixels: AnyArray, limits: ImageLimits) -> None:
    """Check rank, dtype, size and values.

    Raises:
        InvalidRequestError: names what was expected.
        OverloadedError: a side is over the limit.
    """
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise InvalidRequestError(
            f"image: shape {pixels.shape}, expected (H, W) or (H, W, 3); "
            "send a volume slice by slice",
            field="image",
        )
    if pixels.dtype.kind not in "uif":
        raise InvalidRequestError(
            f"image: dtype {pixels.dtype}, expected integers or floats", field="image"
        )
    height, width = pixels.shape[:2]
    if max(height, width) > limits.max_side:
        raise OverloadedError(
            f"image: {height} x {width} pixels, expected at most {limits.max_side} a side "
            "(VESSA_MAX_IMAGE_SIDE)",
            field="image",
        )
    if min(height, width) < MIN_SIDE:
        raise InvalidRequestError(
            f"image: {height} x {width} pixels, expected at least {MIN_SIDE} a side",
            field="image",
        )
    if pixels.dtype.kind == "f" and not bool(np.isfinite(pixels).all()):
        raise InvalidRequestError("image: has NaN or infinite values", field="image")


def decode(
    data: bytes, limits: ImageLimits, *, field: str = "image.encoded", labels: bool = False
) -> tuple[AnyArray, NiftiGeometry | None]:
    """Decode PNG, JPEG, TIFF or a NIfTI slice; its size is checked before its pixels are read.

    Args:
        data: the file.
        limits: what is accepted.
        field: named in errors.
        labels: the file is a label map, so a palette picture holds labels and not colours.

    Raises:
        InvalidRequestError: not an image of these kinds, or damaged.
        OverloadedError: over a limit.
    """
    if data[:2] == GZIP_MAGIC or data[344:347] in (b"n+1", b"ni1") or data[4:7] == b"n+2":
        return _decode_nifti(data, limits, field)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters is whether the pixels load
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
                _check_side(picture.size, limits, field)
                picture.load()
                return np.asarray(_plain(picture, labels=labels)), None
    except OverloadedError:
        raise
    except UnidentifiedImageError:
        raise InvalidRequestError(
            f"{field}: not an image, expected PNG, JPEG, TIFF or NIfTI", field=field
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise OverloadedError(
            f"{field}: too many pixels, expected at most {limits.max_side} a side", field=field
        ) from error
    except (OSError, ValueError, SyntaxError) as error:
        raise InvalidRequestError(
            f"{field}: damaged or truncated ({error}), expected a whole file", field=field
        ) from error


def _plain(picture: Image.Image, *, labels: bool) -> Image.Image:
    if picture.mode == "1":
        return picture.convert("L")
    if picture.mode in ("P", "RGBA", "CMYK", "YCbCr", "LA", "PA") and not (
        labels and picture.mode == "P"
    ):
        return picture.convert("RGB")
    return picture


def _check_side(size: tuple[int, int], limits: ImageLimits, field: str) -> None:
    if max(size) > limits.max_side:
        raise OverloadedError(
            f"{field}: {size[1]} x {size[0]} pixels, expected at most {limits.max_side} "
            "a side (VESSA_MAX_IMAGE_SIDE)",
            field=field,
        )


def _decode_nifti(data: bytes, limits: ImageLimits, field: str) -> tuple[AnyArray, NiftiGeometry]:
    try:
        if data[:2] == GZIP_MAGIC:
            # A small file can unpack to a large one: read no more than the limits allow.
            most = limits.max_side**2 * 8 * 3 + 4096
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
                data = stream.read(most + 1)
            if len(data) > most:
                raise OverloadedError(
                    f"{field}: unpacks to more than {most} bytes, expected one slice",
                    field=field,
                )
        image = nib.Nifti1Image.from_bytes(data)
        shape = tuple(int(n) for n in image.shape)
        plane = [n for n in shape if n != 1]
        if len(plane) != 2:
            raise InvalidRequestError(
                f"{field}: NIfTI of shape {shape}, expected one slice; `vessa label` does volumes",
                field=field,
            )
        _check_side((plane[1], plane[0]), limits, field)
        pixels = np.asarray(image.dataobj).reshape(plane)
    except (InvalidRequestError, OverloadedError):
        raise
    except Exception as error:  # nibabel and gzip raise many kinds
        raise InvalidRequestError(
            f"{field}: NIfTI is damaged or truncated ({error}), expected a whole file",
            field=field,
        ) from error
    return pixels, NiftiGeometry(image.header.copy(), np.asarray(image.affine), shape)
