"""Label maps of made-up tasks: nested rings, blobs and crescents before noise or a body.

A scene is what the images of one task share. Every drawing of it is another subject: shapes
grow, shrink, move against each other, and now and then one is not there.
"""

from __future__ import annotations

import numpy as np

from vessa_client import UInt8Array
from vessa_server.training.noise import FloatArray, smooth_noise
from vessa_server.training.tasks import ClassText

SIZE = 128
FAMILIES = ("noise", "blobs", "crescent", "nested")
FAMILY_SHARE = (0.1, 0.2, 0.15, 0.55)
MAX_CLASSES = 3
# Region numbers: background below SHAPE, drawn shapes from there on, and small pieces that look
# like a ring but belong to its cavity.
MAX_REGIONS, SHAPE, NEIGHBOUR_REGION, MUSCLE = 16, 10, 13, 15
# Regions of a body: air around it, its fat, what fills it, and from there on organs and vessels.
AIR, FAT, TISSUE, ORGAN = 0, 1, 2, 3
VESSEL = 8
NAMELESS = tuple(ClassText(name=f"structure {letter}") for letter in "ABC")
# Structures whose names say how they lie to each other; an unseen organ may be built alike.
CAVITY = ClassText(name="cavity", description="Inside the ring.")
RING = ClassText(name="ring", description="Around the cavity.")
NEIGHBOUR = ClassText(name="side cavity", description="Leans on the ring from outside.")
TEXTS = (*NAMELESS, CAVITY, RING, NEIGHBOUR)


class Ellipse:
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


class Scene:
    """What the images of one task share: background, shapes, and how they may vary."""

    def __init__(self, rng: np.random.Generator, family: str) -> None:
        self.family = family
        self.rows, self.columns = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) / SIZE - 0.5
        self.body = _Body(rng) if family != "noise" and rng.uniform() < 0.6 else None
        self.fields = (int(rng.integers(2, 8)), float(rng.uniform(2, 7)))
        self.background = _noise_regions(rng, *self.fields)
        self.changes_background = family != "noise" and bool(rng.uniform() < 0.4)
        self.wobble = 0.15 * smooth_noise(rng, SIZE, rng.uniform(2, 4)) * rng.uniform(0, 1)
        self.blobs = [Ellipse(rng, 0.35) for _ in range(int(rng.integers(1, 4)))]
        self.shape = Ellipse(rng, 0.15)
        # Radii of the rings as shares of the shape's, outermost first.
        self.limits = np.sort(rng.uniform(0.4, 1.6, int(rng.integers(2, 4))))[::-1]
        self.innermost = SHAPE + len(self.limits) - 1
        self.offset = (rng.uniform(0, 2 * np.pi), rng.uniform(0.6, 1.4))
        self.has_neighbour = bool(rng.uniform() < 0.8)
        self.neighbour = Ellipse(rng, 0.0, scale=rng.uniform(0.6, 1.3) * self.shape.mean_radius)
        self.has_muscles = bool(rng.uniform() < 0.4)
        # Subjects whose slice is beyond a structure's end, or whose ring is open.
        self.ends = float(rng.choice([0.0, 0.15]))
        self.opens = float(rng.choice([0.0, 0.3]))

    def draw(self, rng: np.random.Generator) -> UInt8Array:
        """Region numbers of one image."""
        regions = self._draw_background(rng)
        if self.family == "noise" or rng.uniform() < self.ends / 3:
            return regions
        if self.family == "blobs":
            for index, blob in enumerate(self.blobs):
                distance = blob.distance(self.rows, self.columns) + self.wobble
                regions[distance < rng.uniform(0.8, 1.2)] = SHAPE + index
            return regions
        size = rng.uniform(0.65, 1.3)
        down, right = rng.normal(0, 0.03, 2)
        rows, columns = self.rows - down, self.columns - right
        distance = self.shape.distance(rows, columns) / size + self.wobble
        angle = self.offset[0] + rng.normal(0, 0.2)
        reach = self.shape.mean_radius * self.limits[0] * size * self.offset[1]
        if self.family == "crescent":
            reach *= 0.4
        centre = self.shape.centre + reach * np.array([np.sin(angle), np.cos(angle)])
        beside = self.neighbour.distance(rows - centre[0], columns - centre[1])
        beside = beside / rng.uniform(0.7, 1.3) + self.wobble
        if self.family == "crescent":
            regions[distance < 1.5] = SHAPE
            regions[beside < 1] = SHAPE + 1
            return regions
        if self.has_neighbour and rng.uniform() > self.ends:
            regions[beside < 1] = NEIGHBOUR_REGION
        self._draw_rings(regions, distance, rng)
        return regions

    def annotated(self, rng: np.random.Generator) -> tuple[list[int], list[ClassText]]:
        """Region numbers of the annotated structures, and their texts."""
        if self.family == "nested":
            values, texts = [self.innermost, self.innermost - 1], [CAVITY, RING]
            if self.has_neighbour:
                values, texts = [*values, NEIGHBOUR_REGION], [*texts, NEIGHBOUR]
        else:
            found = np.unique(self.draw(rng))
            shapes = [int(v) for v in found if v >= SHAPE]
            values = shapes or [int(v) for v in rng.permutation(found)[:MAX_CLASSES]]
            texts = list(NAMELESS[: len(values)])
        order = rng.permutation(len(values))[: int(rng.integers(1, len(values) + 1))]
        return [values[i] for i in order], [texts[i] for i in order]

    def _draw_background(self, rng: np.random.Generator) -> UInt8Array:
        if self.body is not None:
            return self.body.draw(self.rows, self.columns, rng)
        if self.changes_background:
            return _noise_regions(rng, *self.fields)
        return self.background.copy()

    def _draw_rings(
        self, regions: UInt8Array, distance: FloatArray, rng: np.random.Generator
    ) -> None:
        """Nested rings; walls get thicker and thinner, and a cavity may be closed."""
        inner = self.limits * np.concatenate([[1.0], rng.uniform(0.75, 1.15, len(self.limits) - 1)])
        if rng.uniform() < self.ends / 2:
            inner[-1] = 0.0
        behind = regions.copy()
        for index, limit in enumerate(inner):
            regions[distance < limit] = SHAPE + index
        if rng.uniform() < self.opens:
            y, x = self.rows - self.shape.centre[0], self.columns - self.shape.centre[1]
            away = np.abs((np.arctan2(y, x) - self.offset[0] + np.pi) % (2 * np.pi) - np.pi)
            gap = (np.abs(away) < rng.uniform(0.2, 0.7)) & (distance >= inner[-1])
            regions[gap] = behind[gap]
        if self.has_muscles:
            for _ in range(2):
                self._add_muscle(regions, distance, float(inner[-1]), rng)

    def _add_muscle(
        self, regions: UInt8Array, distance: FloatArray, limit: float, rng: np.random.Generator
    ) -> None:
        """A small piece of the ring's tissue inside the cavity; it belongs to the cavity."""
        inside = np.flatnonzero(distance < 0.8 * limit)
        if not inside.size:
            return
        row, column = divmod(int(rng.choice(inside)), SIZE)
        radius = rng.uniform(0.1, 0.25) * limit * self.shape.mean_radius * SIZE
        near = (self.rows * SIZE + SIZE / 2 - row) ** 2 + (
            self.columns * SIZE + SIZE / 2 - column
        ) ** 2
        regions[(near < radius**2) & (regions == self.innermost)] = MUSCLE


class _Body:
    """A cross section of a body as background: air, fat, large organs, and round vessels.

    Vessels are where a structure is most easily mistaken: round, bright, and not it.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.outline = Ellipse(rng, 0.06, scale=rng.uniform(0.34, 0.6))
        self.fat = rng.uniform(0.8, 0.97)
        self.organs = [
            Ellipse(rng, 0.4, scale=rng.uniform(0.08, 0.25)) for _ in range(int(rng.integers(2, 6)))
        ]
        self.vessels = [
            Ellipse(rng, 0.4, scale=rng.uniform(0.02, 0.09)) for _ in range(int(rng.integers(1, 8)))
        ]

    def draw(self, rows: FloatArray, columns: FloatArray, rng: np.random.Generator) -> UInt8Array:
        """Region numbers; everything has moved and grown a little in each subject."""
        wobble = 0.1 * smooth_noise(rng, SIZE, 3.0)
        outline = self.outline.distance(rows, columns) / rng.uniform(0.9, 1.1) + 0.3 * wobble
        regions = np.full(rows.shape, AIR, dtype=np.uint8)
        regions[outline < 1] = FAT
        within = outline < self.fat
        regions[within] = TISSUE
        for index, organ in enumerate(self.organs):
            regions[within & (self._moved(organ, rows, columns, rng) + wobble < 1)] = ORGAN + index
        for index, vessel in enumerate(self.vessels):
            where = within & (self._moved(vessel, rows, columns, rng) < 1)
            regions[where] = VESSEL + index % 2
        return regions

    @staticmethod
    def _moved(
        ellipse: Ellipse, rows: FloatArray, columns: FloatArray, rng: np.random.Generator
    ) -> FloatArray:
        down, right = rng.normal(0, 0.03, 2)
        size = np.float32(rng.uniform(0.8, 1.25))
        return ellipse.distance(rows - down, columns - right) / size


def _noise_regions(rng: np.random.Generator, count: int, cells: float) -> UInt8Array:
    fields = np.stack([smooth_noise(rng, SIZE, cells) for _ in range(count)])
    regions: UInt8Array = fields.argmax(axis=0).astype(np.uint8)
    return regions
