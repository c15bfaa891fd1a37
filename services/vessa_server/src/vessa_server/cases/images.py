"""Images from outside: limits first, then decoding, then checks of their content."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vessa_client import (
    AnyArray,
    ImageReference,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    VolumeReference,
)
from vessa_client.wire import (
    IMAGE_REF_FIELD,
    MAX_VOLUME_SLICES,
    VOLUME_REF_FIELD,
    image_digest,
    volume_digest,
)
from vessa_server.cases import nifti, pictures
from vessa_server.cases.nifti import NiftiGeometry
from vessa_server.features.lru import ByteLru

MIN_SIDE = 8
# What a file may have beside its pixels, such as a header, or where each row is.
MAX_FILE_OVERHEAD = 1 << 16
VOLUME_NAMES_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True)
class StoredImage:
    """A checked image, (H, W) or (H, W, 3), with its digest and, of NIfTI, its geometry."""

    sha256: str
    pixels: AnyArray
    geometry: NiftiGeometry | None = None


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """Largest image: bytes of its pixels as sent, and pixels along a side."""

    max_bytes: int
    max_side: int


class ImageStore:
    """Decodes images and keeps them, so that they can be named by reference."""

    def __init__(self, limits: ImageLimits, max_bytes: int) -> None:
        self.limits = limits
        self._kept: ByteLru[StoredImage] = ByteLru(max_bytes)
        self._volumes: ByteLru[tuple[str, ...]] = ByteLru(VOLUME_NAMES_BYTES)

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
        if isinstance(image, bytes):
            size, beside = len(image), MAX_FILE_OVERHEAD
        else:
            size, beside = image.nbytes, 0
        if size > self.limits.max_bytes + beside:
            raise OverloadedError(
                f"image: {size} bytes, expected at most {self.limits.max_bytes} of pixels "
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
            check_same_size(other, image)
        return volume

    def keep_volume(self, slices: Sequence[StoredImage]) -> str:
        """Keep which images, in order, a volume consists of; returns its digest."""
        digest = volume_digest(slice_.sha256 for slice_ in slices)
        self._volumes.put(digest, tuple(s.sha256 for s in slices), 96 * len(slices))
        for slice_ in slices:
            self._kept.put(slice_.sha256, slice_, slice_.pixels.nbytes)
        return digest

    def volume(self, reference: VolumeReference) -> tuple[StoredImage, ...]:
        """All slices of a volume that was kept.

        Raises:
            NotFoundError: it is unknown, or some of its images were evicted.
        """
        digests = self._volumes.get(reference.sha256) or ()
        slices = tuple(image for image in map(self._kept.get, digests) if image is not None)
        if not slices or len(slices) < len(digests):
            raise NotFoundError(
                f"{VOLUME_REF_FIELD}: {reference.sha256[:12]}... is not held (any more), "
                "send the volume itself",
                field=VOLUME_REF_FIELD,
            )
        return slices

    @property
    def bytes(self) -> int:
        """Bytes held now."""
        return self._kept.bytes


def check_same_size(slice_: StoredImage, image: StoredImage) -> None:
    """Slices of a volume are of one size.

    Raises:
        InvalidRequestError: they are not.
    """
    if slice_.pixels.shape != image.pixels.shape:
        raise InvalidRequestError(
            f"volume: a slice of shape {slice_.pixels.shape}, expected {image.pixels.shape} as "
            "the image",
            field="volume",
        )


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
    if pixels.dtype.kind == "f" and not math.isfinite(float(pixels.max()) - float(pixels.min())):
        raise InvalidRequestError(
            "image: has NaN or infinite values, or a range beyond float64; expected finite pixels",
            field="image",
        )


def check_template(pixels: AnyArray) -> None:
    """Check that an image can be kept as a template: of floats 32 bits are.

    Raises:
        InvalidRequestError: nothing would be left of its values.
    """
    if pixels.dtype.kind != "f" or pixels.dtype.itemsize <= 4:
        return
    low, high = float(pixels.min()), float(pixels.max())
    limits = np.finfo(np.float32)
    largest = max(-low, high)
    if largest > float(limits.max) or 0 < largest < float(limits.tiny):
        raise InvalidRequestError(
            f"image: values {low:.3g}..{high:.3g}, expected a range that float32 holds; "
            "another unit will do",
            field="image",
        )


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
    if nifti.is_nifti(data[:348]):
        return nifti.read_slice(
            data, field, lambda plane: pictures.check_side(plane, limits.max_side, field)
        )
    return pictures.decode(data, field, limits.max_side, labels=labels), None
