"""Synthetic tasks: random label maps, random intensities, images of one task by deformation.

In the spirit of SynthSeg (Billot et al., 2023), SynthMorph (Hoffmann et al., 2022) and
UniverSeg's synthetic tasks (Butoi et al., 2023).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from vessa_client import UInt8Array
from vessa_server.training.sources import ClassText, LabelledImage

FloatArray = npt.NDArray[np.float32]
SIZE = 128
FAMILIES = ("noise", "nested", "crescent", "blobs")
STRUCTURE_NAMES = ("structure A", "structure B", "structure C")
MAX_CLASSES = len(STRUCTURE_NAMES)


def smooth_noise(rng: np.random.Generator, size: int, cells: float) -> FloatArray:
    """Noise with about ``cells`` bumps along each side, zero mean and unit deviation."""
    coarse = max(2, round(cells))
    field = rng.standard_normal((coarse + 3, coarse + 3)).astype(np.float32)
    zoomed = ndimage.zoom(field, size / coarse, order=3, mode="grid-constant")
    start = (zoomed.shape[0] - size) // 2
    out = zoomed[start : start + size, start : start + size]
    scaled: FloatArray = ((out - out.mean()) / (out.std() + 1e-6)).astype(np.float32)
    return scaled


class SyntheticSource:
    """An endless source of made-up tasks with up to three annotated structures."""

    name = "synthetic"
    mirror = True

    def sample(
        self, rng: np.random.Generator, count: int
    ) -> tuple[list[LabelledImage], list[ClassText]]:
        """See :class:`vessa_server.training.sources.TaskSource`."""
        regions = _random_regions(rng)
        annotated, names = _choose_structures(regions, rng)
        count_regions = int(regions.max()) + 1
        means = rng.uniform(0.05, 0.95, count_regions)
        deviations = rng.uniform(0.01, 0.12, count_regions)
        spread = rng.uniform(0.0, 0.08)
        strength = rng.uniform(2.0, 9.0)
        images = []
        for _ in range(count):
            warped = _warp(np.stack([regions, annotated]), rng, strength)
            image = _paint(warped[0], means + rng.normal(0, spread, count_regions), deviations, rng)
            images.append(LabelledImage(image, warped[1]))
        return images, [ClassText(name=name) for name in names]


def _random_regions(rng: np.random.Generator) -> UInt8Array:
    family = rng.choice(FAMILIES)
    background = _noise_regions(rng, int(rng.integers(2, 7)), rng.uniform(2, 7))
    if family == "noise":
        return background
    base = int(background.max()) + 1
    rows, columns = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) / SIZE - 0.5
    wobble = 0.15 * smooth_noise(rng, SIZE, rng.uniform(2, 4)) * rng.uniform(0, 1)
    if family == "blobs":
        for index in range(int(rng.integers(1, 4))):
            distance = _ellipse(rows, columns, rng, 0.35) + wobble
            background[distance < 1] = base + index
        return background
    distance = _ellipse(rows, columns, rng, 0.2) + wobble
    if family == "crescent":
        shift = rng.uniform(0.05, 0.14, 2) * rng.choice([-1, 1], 2)
        other = _ellipse(rows - shift[0], columns - shift[1], rng, 0.05) + wobble
        background[distance < 1.6] = base
        background[other < 1] = base + 1
        return background
    for index, limit in enumerate(np.sort(rng.uniform(0.4, 1.6, 3))[::-1]):
        background[distance < limit] = base + index
    if rng.uniform() < 0.6:  # something crescent-shaped that leans on the rings
        angle = rng.uniform(0, 2 * np.pi)
        radius = rng.uniform(0.1, 0.22)
        side = _ellipse(rows - radius * np.sin(angle), columns - radius * np.cos(angle), rng, 0.02)
        background[(side + wobble < 1) & (background < base)] = base + 3
    return background


def _noise_regions(rng: np.random.Generator, count: int, cells: float) -> UInt8Array:
    fields = np.stack([smooth_noise(rng, SIZE, cells) for _ in range(count)])
    regions: UInt8Array = fields.argmax(axis=0).astype(np.uint8)
    return regions


def _ellipse(
    rows: FloatArray, columns: FloatArray, rng: np.random.Generator, reach: float
) -> FloatArray:
    """Normalised radius of a random ellipse: 1 on its border."""
    centre = rng.uniform(-reach, reach, 2)
    angle = rng.uniform(0, np.pi)
    radii = rng.uniform(0.06, 0.22) * rng.uniform(0.7, 1.4, 2)
    y, x = rows - centre[0], columns - centre[1]
    u = (np.cos(angle) * y + np.sin(angle) * x) / radii[0]
    v = (-np.sin(angle) * y + np.cos(angle) * x) / radii[1]
    radius: FloatArray = np.sqrt(u**2 + v**2).astype(np.float32)
    return radius


def _choose_structures(
    regions: UInt8Array, rng: np.random.Generator
) -> tuple[UInt8Array, list[str]]:
    """Annotate up to three regions, the drawn shapes rather than the background."""
    present = np.unique(regions)[::-1]
    sized = [r for r in present if 0.003 < (regions == r).mean() < 0.5] or [int(present[0])]
    count = int(rng.integers(1, min(MAX_CLASSES, len(sized)) + 1))
    chosen = sized[:count] if rng.uniform() < 0.7 else list(rng.permutation(sized)[:count])
    labels = np.zeros_like(regions)
    for index, region in enumerate(chosen):
        labels[regions == region] = index + 1
    return labels, [f"{STRUCTURE_NAMES[i]}" for i in range(count)]


def _warp(maps: UInt8Array, rng: np.random.Generator, strength: float) -> UInt8Array:
    rows, columns = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    rows = rows + strength * smooth_noise(rng, SIZE, rng.uniform(2, 5))
    columns = columns + strength * smooth_noise(rng, SIZE, rng.uniform(2, 5))
    where = (
        np.clip(np.rint(rows), 0, SIZE - 1).astype(np.intp),
        np.clip(np.rint(columns), 0, SIZE - 1).astype(np.intp),
    )
    return maps[:, where[0], where[1]]


def _paint(
    regions: UInt8Array,
    means: npt.NDArray[np.float64],
    deviations: npt.NDArray[np.float64],
    rng: np.random.Generator,
) -> FloatArray:
    texture = smooth_noise(rng, SIZE, rng.uniform(8, 40))
    grain = rng.standard_normal(regions.shape).astype(np.float32)
    image = means[regions] + deviations[regions] * (0.7 * texture + 0.7 * grain)
    blurred: FloatArray = ndimage.gaussian_filter(image.astype(np.float32), rng.uniform(0.3, 1.2))
    return blurred
