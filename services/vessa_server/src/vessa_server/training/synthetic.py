"""Synthetic tasks: random label maps, random intensities, images of one task by deformation.

In the spirit of SynthSeg (Billot et al., 2023), SynthMorph (Hoffmann et al., 2022) and
UniverSeg's synthetic tasks (Butoi et al., 2023).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from vessa_client import UInt8Array
from vessa_server.training.noise import FloatArray, smooth_noise
from vessa_server.training.scenes import (
    AIR,
    FAMILIES,
    FAMILY_SHARE,
    MAX_REGIONS,
    MUSCLE,
    NEIGHBOUR_REGION,
    SIZE,
    VESSEL,
    Scene,
)
from vessa_server.training.tasks import ClassText, LabelledImage


class SyntheticSource:
    """An endless source of made-up tasks with up to three annotated structures."""

    name = "synthetic"
    mirror = True
    named = True

    def sample(
        self, rng: np.random.Generator, count: int
    ) -> tuple[list[LabelledImage], list[ClassText]]:
        """See :class:`vessa_server.training.sources.TaskSource`."""
        scene = Scene(rng, str(rng.choice(FAMILIES, p=FAMILY_SHARE)))
        means, deviations = _intensities(scene, rng)
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


def _intensities(
    scene: Scene, rng: np.random.Generator
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean and deviation of each region. Often several hold the same blood, or are as dark."""
    means = rng.uniform(0.05, 0.95, MAX_REGIONS)
    means[MUSCLE] = means[scene.innermost - 1]
    if rng.uniform() < 0.4:
        means[NEIGHBOUR_REGION] = means[scene.innermost]
    if scene.body is not None:
        if rng.uniform() < 0.7:
            means[AIR] = rng.uniform(0.0, 0.15)
        if rng.uniform() < 0.6:
            means[VESSEL] = means[scene.innermost]
        if rng.uniform() < 0.3:
            means[VESSEL + 1] = means[scene.innermost - 1]
    return means, rng.uniform(0.01, 0.12, MAX_REGIONS)


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
