"""Synthetic tasks: random label maps, random intensities, images of one task by deformation.

In the spirit of SynthSeg (Billot et al., 2023), SynthMorph (Hoffmann et al., 2022) and
UniverSeg's synthetic tasks (Butoi et al., 2023).
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from vessa_client import UInt8Array
from vessa_server.training.tasks import ClassText, LabelledImage

FloatArray = npt.NDArray[np.float32]
SIZE = 128
FAMILIES = ("noise", "blobs", "crescent", "nested")
FAMILY_SHARE = (0.15, 0.2, 0.15, 0.5)
MAX_CLASSES = 3
# Region numbers: background below SHAPE, drawn shapes from there on, and small pieces that look
# like a ring but belong to its cavity.
MAX_REGIONS, SHAPE, MUSCLE = 16, 10, 15
NAMELESS = tuple(ClassText(name=f"structure {letter}") for letter in "ABC")
# Structures whose names say how they lie to each other; an unseen organ may be built alike.
CAVITY = ClassText(name="cavity", description="Inside the ring.")
RING = ClassText(name="ring", description="Around the cavity.")
NEIGHBOUR = ClassText(name="side cavity", description="Leans on the ring from outside.")
TEXTS = (*NAMELESS, CAVITY, RING, NEIGHBOUR)


@cache
def _spline_basis(coarse: int, size: int) -> FloatArray:
    """Values of the ``coarse + 3`` cubic B-splines at ``size`` positions, (size, coarse + 3)."""
    position = (np.arange(size, dtype=np.float32) + 0.5) * coarse / size
    cell = np.floor(position).astype(np.intp)
    u = position - cell
    weights = (
        (1 - u) ** 3 / 6,
        (3 * u**3 - 6 * u**2 + 4) / 6,
        (-3 * u**3 + 3 * u**2 + 3 * u + 1) / 6,
        u**3 / 6,
    )
    basis = np.zeros((size, coarse + 3), dtype=np.float32)
    for offset, weight in enumerate(weights):
        basis[np.arange(size), cell + offset] = weight
    return basis


def smooth_noise(rng: np.random.Generator, size: int, cells: float) -> FloatArray:
    """Noise with about ``cells`` bumps along each side, zero mean and unit deviation."""
    coarse = max(2, round(cells))
    knots = rng.standard_normal((coarse + 3, coarse + 3)).astype(np.float32)
    basis = _spline_basis(coarse, size)
    out = basis @ knots @ basis.T
    scaled: FloatArray = (out - out.mean()) / (out.std() + np.float32(1e-6))
    return scaled


class SyntheticSource:
    """An endless source of made-up tasks with up to three annotated structures."""

    name = "synthetic"
    mirror = True
    named = True

    def sample(
        self, rng: np.random.Generator, count: int
    ) -> tuple[list[LabelledImage], list[ClassText]]:
        """See :class:`vessa_server.training.sources.TaskSource`."""
        family = str(rng.choice(FAMILIES, p=FAMILY_SHARE))
        scene = _Scene(rng, family)
        means = rng.uniform(0.05, 0.95, MAX_REGIONS)
        means[MUSCLE] = means[scene.innermost - 1]
        if rng.uniform() < 0.4:  # both cavities hold the same blood
            means[SHAPE + 3] = means[scene.innermost]
        deviations = rng.uniform(0.01, 0.12, MAX_REGIONS)
        spread = rng.uniform(0.0, 0.1)
        strength = rng.uniform(1.5, 7.0)
        values, texts = scene.annotated(rng)
        images = []
        for _ in range(count):
            regions = _warp(scene.draw(rng), rng, strength)
            lookup = np.zeros(MAX_REGIONS, dtype=np.uint8)
            lookup[values] = np.arange(1, len(values) + 1)
            lookup[MUSCLE] = lookup[scene.innermost]
            image = _paint(regions, means + rng.normal(0, spread, MAX_REGIONS), deviations, rng)
            images.append(LabelledImage(image, lookup[regions]))
        return images, texts


class _Scene:
    """What the images of one task share: background, shapes, and how they may vary."""

    def __init__(self, rng: np.random.Generator, family: str) -> None:
        self.family = family
        self.fields = (int(rng.integers(2, 8)), float(rng.uniform(2, 7)))
        self.background = _noise_regions(rng, *self.fields)
        self.changes_background = family != "noise" and bool(rng.uniform() < 0.4)
        self.wobble = 0.15 * smooth_noise(rng, SIZE, rng.uniform(2, 4)) * rng.uniform(0, 1)
        self.rows, self.columns = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) / SIZE - 0.5
        self.blobs = [_Ellipse(rng, 0.35) for _ in range(int(rng.integers(1, 4)))]
        self.body = _Ellipse(rng, 0.15)
        # Radii of the rings as shares of the body's, outermost first.
        self.limits = np.sort(rng.uniform(0.4, 1.6, int(rng.integers(2, 4))))[::-1]
        self.innermost = SHAPE + len(self.limits) - 1
        self.offset = (rng.uniform(0, 2 * np.pi), rng.uniform(0.6, 1.4))
        self.has_neighbour = bool(rng.uniform() < 0.8)
        self.neighbour = _Ellipse(rng, 0.0, scale=rng.uniform(0.6, 1.3) * self.body.mean_radius)
        self.has_muscles = bool(rng.uniform() < 0.4)

    def draw(self, rng: np.random.Generator) -> UInt8Array:
        """Region numbers of one image: shapes grow, shrink and move against each other."""
        if self.changes_background:
            regions = _noise_regions(rng, *self.fields)
        else:
            regions = self.background.copy()
        if self.family == "noise":
            return regions
        if self.family == "blobs":
            for index, blob in enumerate(self.blobs):
                distance = blob.distance(self.rows, self.columns) + self.wobble
                regions[distance < rng.uniform(0.8, 1.2)] = SHAPE + index
            return regions
        size = rng.uniform(0.65, 1.3)
        distance = self.body.distance(self.rows, self.columns) / size + self.wobble
        angle = self.offset[0] + rng.normal(0, 0.2)
        reach = self.body.mean_radius * self.limits[0] * size * self.offset[1]
        if self.family == "crescent":
            reach *= 0.4
        row, column = reach * np.sin(angle), reach * np.cos(angle)
        centre = self.body.centre
        beside = self.neighbour.distance(
            self.rows - centre[0] - row, self.columns - centre[1] - column
        ) / rng.uniform(0.7, 1.3)
        if self.family == "crescent":
            regions[distance < 1.5] = SHAPE
            regions[beside + self.wobble < 1] = SHAPE + 1
            return regions
        if self.has_neighbour:
            regions[beside + self.wobble < 1] = SHAPE + 3
        # The inner radii change on their own: walls get thicker and thinner.
        inner = self.limits * np.concatenate([[1.0], rng.uniform(0.75, 1.15, len(self.limits) - 1)])
        for index, limit in enumerate(inner):
            regions[distance < limit] = SHAPE + index
        if self.has_muscles:
            for _ in range(2):
                self._add_muscle(regions, distance, float(inner[-1]), rng)
        return regions

    def annotated(self, rng: np.random.Generator) -> tuple[list[int], list[ClassText]]:
        """Region numbers of the annotated structures, and their texts."""
        if self.family == "nested":
            values, texts = [self.innermost, self.innermost - 1], [CAVITY, RING]
            if self.has_neighbour:
                values, texts = [*values, SHAPE + 3], [*texts, NEIGHBOUR]
        else:
            found = np.unique(self.draw(rng))
            shapes = [int(v) for v in found if v >= SHAPE]
            values = shapes or [int(v) for v in rng.permutation(found)[:MAX_CLASSES]]
            texts = list(NAMELESS[: len(values)])
        order = rng.permutation(len(values))[: int(rng.integers(1, len(values) + 1))]
        return [values[i] for i in order], [texts[i] for i in order]

    def _add_muscle(
        self, regions: UInt8Array, distance: FloatArray, limit: float, rng: np.random.Generator
    ) -> None:
        """A small piece of the ring's tissue inside the cavity; it belongs to the cavity."""
        inside = np.flatnonzero(distance < 0.8 * limit)
        if not inside.size:
            return
        row, column = divmod(int(rng.choice(inside)), SIZE)
        radius = rng.uniform(0.1, 0.25) * limit * self.body.mean_radius * SIZE
        near = (self.rows * SIZE + SIZE / 2 - row) ** 2 + (
            self.columns * SIZE + SIZE / 2 - column
        ) ** 2
        regions[(near < radius**2) & (regions == self.innermost)] = MUSCLE


def _noise_regions(rng: np.random.Generator, count: int, cells: float) -> UInt8Array:
    fields = np.stack([smooth_noise(rng, SIZE, cells) for _ in range(count)])
    regions: UInt8Array = fields.argmax(axis=0).astype(np.uint8)
    return regions


class _Ellipse:
    """A random ellipse in coordinates from -0.5 to 0.5."""

    def __init__(self, rng: np.random.Generator, reach: float, *, scale: float = 0.0) -> None:
        self.centre = rng.uniform(-reach, reach, 2)
        self.angle = rng.uniform(0, np.pi)
        self.mean_radius = scale or float(rng.uniform(0.06, 0.22))
        self.radii = self.mean_radius * rng.uniform(0.7, 1.4, 2)

    def distance(self, rows: FloatArray, columns: FloatArray) -> FloatArray:
        """Normalised radius: 1 on the border."""
        y, x = rows - self.centre[0], columns - self.centre[1]
        u = (np.cos(self.angle) * y + np.sin(self.angle) * x) / self.radii[0]
        v = (-np.sin(self.angle) * y + np.cos(self.angle) * x) / self.radii[1]
        radius: FloatArray = np.sqrt(u**2 + v**2).astype(np.float32)
        return radius


def _warp(regions: UInt8Array, rng: np.random.Generator, strength: float) -> UInt8Array:
    rows, columns = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    rows = rows + strength * smooth_noise(rng, SIZE, rng.uniform(2, 5))
    columns = columns + strength * smooth_noise(rng, SIZE, rng.uniform(2, 5))
    where = (
        np.clip(np.rint(rows), 0, SIZE - 1).astype(np.intp),
        np.clip(np.rint(columns), 0, SIZE - 1).astype(np.intp),
    )
    warped: UInt8Array = regions[where]
    return warped


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
