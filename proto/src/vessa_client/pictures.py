"""Pictures to look at: images with coloured labels side by side. Axes: H W space."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from vessa_client._types import AnyArray, UInt8Array

COLOURS = np.array(
    [
        (0, 0, 0), (230, 60, 60), (60, 200, 90), (70, 110, 240), (240, 200, 50),
        (200, 80, 220), (60, 210, 220), (250, 140, 40), (160, 160, 160),
    ],
    dtype=np.uint8,
)  # fmt: skip
OVERLAY_WEIGHT = 0.45
TITLE_HEIGHT = 16
# Of a panel: strips of a few rows would be enlarged to hundreds of megabytes.
MAX_ASPECT = 4


def colour(labels: AnyArray) -> UInt8Array:
    """(H, W, 3) colours of labels; they repeat after the eighth class."""
    values = labels.astype(int)
    return COLOURS[np.where(values == 0, 0, (values - 1) % (len(COLOURS) - 1) + 1)]


def hex_colour(label: int) -> str:
    """The colour of a label, as web pages have it."""
    red, green, blue = (int(v) for v in colour(np.array(label)))
    return f"#{red:02x}{green:02x}{blue:02x}"


def grey(image: AnyArray) -> UInt8Array:
    """(H, W, 3) uint8 of any image, scaled by robust percentiles."""
    array = image.astype(np.float32)
    low, high = np.percentile(array, [0.5, 99.5])
    scaled = np.clip((array - low) / (float(high - low) or 1.0), 0, 1) * 255
    out = scaled.round().astype(np.uint8)
    return np.repeat(out[..., None], 3, axis=2) if out.ndim == 2 else out


def overlay(image: AnyArray, labels: AnyArray) -> UInt8Array:
    """(H, W, 3) picture of the image with coloured labels."""
    weight = OVERLAY_WEIGHT * (np.asarray(labels, dtype=np.uint8) > 0)[..., None]
    blended = grey(image) * (1 - weight) + colour(labels) * weight
    out: UInt8Array = blended.round().astype(np.uint8)
    return out


def panels(pictures: list[tuple[str, UInt8Array]], height: int = 224) -> UInt8Array:
    """Pictures of the same height in a row, each with its title above."""
    columns = []
    for title, pixels in pictures:
        scale = min(height / pixels.shape[0], MAX_ASPECT * height / pixels.shape[1])
        tall, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
        picture = Image.new("RGB", (width + 4, height + TITLE_HEIGHT), "black")
        picture.paste(
            Image.fromarray(pixels).resize((width, tall), Image.Resampling.NEAREST),
            (2, TITLE_HEIGHT),
        )
        ImageDraw.Draw(picture).text((4, 2), title, fill="white")
        columns.append(np.asarray(picture))
    return np.concatenate(columns, axis=1)


def montage(
    images: Sequence[tuple[str, AnyArray]], labels: Sequence[UInt8Array], height: int = 160
) -> UInt8Array:
    """Titled slices in a row, and below each the same with its labels."""
    above = panels([(title, grey(image)) for title, image in images], height)
    overlays = [
        ("", overlay(image, found)) for (_, image), found in zip(images, labels, strict=True)
    ]
    return rows([above, panels(overlays, height)])


def legend(names: Sequence[str]) -> UInt8Array:
    """One line with the colour of each class."""
    width = sum(_legend_width(name) for name in names)
    picture = Image.new("RGB", (max(1, width), TITLE_HEIGHT + 4), "black")
    draw, left = ImageDraw.Draw(picture), 4
    for label, name in enumerate(names, start=1):
        shade = tuple(int(v) for v in colour(np.array(label)))
        draw.rectangle((left, 4, left + 10, 14), fill=shade)
        draw.text((left + 15, 4), name, fill="white")
        left += _legend_width(name)
    return np.asarray(picture)


def _legend_width(name: str) -> int:
    return 28 + round(ImageDraw.Draw(Image.new("L", (1, 1))).textlength(name))


def rows(pictures: list[UInt8Array]) -> UInt8Array:
    """Pictures below each other, padded to the widest."""
    width = max(p.shape[1] for p in pictures)
    padded = [np.pad(p, ((0, 0), (0, width - p.shape[1]), (0, 0))) for p in pictures]
    return np.concatenate(padded, axis=0)
