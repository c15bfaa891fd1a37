"""From images to label maps: a student, how it is asked, and what is done to what it found.

Axes: H W space, Z slices.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
from scipy import ndimage
from torch import nn

from ssl_trainer.config import AugmentationConfig, DataConfig, TrainConfig
from ssl_trainer.data import frame
from ssl_trainer.evaluation import volumes
from ssl_trainer.regions.locator import Locator
from vessa_client import UInt8Array, files

# Of a run: the names of the structures of which only the largest component counts.
PREDICTION = "prediction.json"
LARGEST_COMPONENT = "largest_component"
# Parts of the largest rotation in training by which a slice is turned, and the most degrees of it.
TURNS = (0.0, 0.4, -0.4, 0.8, -0.8)
MOST_DEGREES = 30.0
# Largest values of pictures, and the least share of an image between black and white.
PICTURE_SCALES = (1.0, 255.0)
LEAST_GREY = 0.01


@dataclass(frozen=True)
class Predictor:
    """Label maps of whole volumes.

    Attributes:
        student: in evaluation mode.
        size: side of its canvas, in pixels.
        turns: degrees by which a slice is turned, in views whose probabilities are added up.
        quarters: by which they are turned besides; see :func:`volumes.predict_slices`.
        largest_component: values of the structures of which a volume keeps only that.
        window: intensities that become black and white; None for percentiles of each slice.
        axis: along which volumes are sliced; None for the one along which each was acquired.
        channel: which volume of a file with several is segmented; None where there is but one.
        locator: finds the region of interest that the student sees; without it that is all.
    """

    student: nn.Module
    size: int
    turns: tuple[float, ...] = (0.0,)
    largest_component: tuple[int, ...] = ()
    window: frame.Window | None = None
    axis: int | None = None
    channel: int | None = None
    locator: Locator | None = None
    quarters: volumes.Quarters = "none"

    @staticmethod
    def of(student: nn.Module, data: DataConfig, locator: Locator | None = None) -> Predictor:
        """Of a student that was trained with such data, in one view of each slice."""
        return Predictor(
            student,
            data.size,
            window=data.window,
            axis=data.axis,
            channel=data.channel,
            locator=locator,
        )

    def __call__(self, image: files.ImageFile) -> list[UInt8Array]:
        """Label map of each slice, (H, W)."""
        labels = volumes.predict_slices(
            self.student, image, self.size, self.turns, self.window, self.locator, self.quarters
        )
        return list(keep_largest_components(np.stack(labels), self.largest_component))

    def plain(self) -> Predictor:
        """What the student finds in one view of each slice, with all components."""
        return replace(self, turns=(0.0,), largest_component=(), quarters="none")

    def turned(self, quarters: str, config: TrainConfig) -> Predictor:
        """With other quarter turns.

        Raises:
            ValueError: there is no such choice, or the student knows no such views.
        """
        choices: dict[str, volumes.Quarters] = {name: name for name in get_args(volumes.Quarters)}
        if quarters not in choices:
            raise ValueError(f"--quarters: {quarters!r}, expected none, average or choose")
        if quarters == "average" and not turned_by_quarters(config):
            raise ValueError(
                "--quarters: average, but the student was trained without quarter_turns, and "
                "knows no such views; expected choose or none"
            )
        return replace(self, quarters=choices[quarters])

    def mismatch(self, image: files.ImageFile) -> str | None:
        """What makes it unlikely that an image has the unit of the window; None where nothing does.

        Values of 0..1 or 0..255 are those of a picture; and something of it should be neither
        black nor white.
        """
        if self.window is None:
            return None
        low, high = self.window
        values = image.pixels[np.isfinite(image.pixels)].astype(np.float32)
        if not values.size:
            return f"{image.path}: no voxel is a number"
        darkest, brightest = float(values.min()), float(values.max())
        scales = [top for top in PICTURE_SCALES if darkest >= 0 and brightest <= top]
        alike = any(low >= 0 and high <= top for top in scales)
        grey = np.mean((values > low) & (values < high))
        if (alike or not scales) and grey >= LEAST_GREY:
            return None
        return (
            f"{image.path}: values from {darkest:g} to {brightest:g}, expected the unit of the "
            f"run's data.window, {low:g} to {high:g}"
        )

    def as_chosen(self, run: Path, config: TrainConfig) -> Predictor:
        """With the structures that :func:`write_choice` wrote into a run; without them as it is.

        Raises:
            ValueError: the file is damaged.
        """
        file = run / PREDICTION
        if not file.is_file():
            return self
        try:
            names = json.loads(file.read_text())[LARGEST_COMPONENT]
            values = tuple(1 + config.data.classes.index(name) for name in names)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{file}: expected {{{LARGEST_COMPONENT!r}: [names of classes]}}; "
                f"`ssl-trainer report {run}` writes it again"
            ) from error
        return replace(self, largest_component=values)


def turns(config: TrainConfig) -> tuple[float, ...]:
    """Degrees of views like those that the student was trained with."""
    largest = min(_geometry(config).rotation_degrees, MOST_DEGREES)
    return tuple(largest * part for part in TURNS) if largest else (0.0,)


def turned_by_quarters(config: TrainConfig) -> bool:
    """Whether the student was trained with labelled images that were."""
    return _geometry(config).quarter_turns > 0


def _geometry(config: TrainConfig) -> AugmentationConfig:
    """How labelled images were turned, zoomed and shifted."""
    rich = config.labelled_augmentation
    return config.augmentation if rich is None else rich.geometry


def write_choice(run: Path, config: TrainConfig, largest_component: Sequence[int]) -> None:
    """Keep in a run of which structures only the largest component counts."""
    names = [config.data.classes[value - 1] for value in largest_component]
    files.write_text(run / PREDICTION, json.dumps({LARGEST_COMPONENT: names}) + "\n")


def keep_largest_components(labels_ZHW: UInt8Array, values: Sequence[int]) -> UInt8Array:
    """Label maps in which each of the structures is its largest component, the rest background.

    Voxels that share a face, an edge or a corner are of one component.
    """
    kept = labels_ZHW.copy()
    for value in values:
        components, count = ndimage.label(labels_ZHW == value, structure=np.ones((3, 3, 3)))
        if count > 1:
            largest = 1 + int(np.argmax(np.bincount(components.ravel())[1:]))
            kept[(components > 0) & (components != largest)] = 0
    return kept
