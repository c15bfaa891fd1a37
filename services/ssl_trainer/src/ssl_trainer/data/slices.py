"""Slices of cases, as students and VESSA see them. Axes: H W space."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ssl_trainer.data import frame
from ssl_trainer.data.cases import Case
from vessa_client import AnyArray, files


@dataclass(frozen=True)
class Slice:
    """A slice in its native frame.

    Attributes:
        key: image file and number.
        image: the slice.
        labels: of an unlabelled slice None, or to watch pseudo-labels with, never to train.
        series: what it is a slice of: the picture, or the first of a patient's volumes with the
            same geometry, which count as one.
        volume: some slices of the series.
        windowed: whether ``image`` and ``volume`` have been through the window of the run.
    """

    key: str
    image: AnyArray
    labels: npt.NDArray[np.uint8] | None
    series: str
    volume: tuple[AnyArray, ...] = ()
    windowed: bool = False
    _limits: dict[frame.Roi | None, frame.Window] = field(default_factory=dict, repr=False)
    _reduced: dict[tuple[int, frame.Roi | None], Tensor] = field(default_factory=dict, repr=False)

    @property
    def window(self) -> frame.Window | None:
        """What VESSA sees of ``image``; None for percentiles."""
        return frame.BYTES if self.windowed else None

    def limits(self, roi: frame.Roi | None = None) -> frame.Window:
        """What is black and white. Percentiles are slow to find, and needed at every draw."""
        if roi not in self._limits:
            self._limits[roi] = frame.BYTES if self.windowed else frame.window(self.image, roi)
        return self._limits[roi]

    def unit(self, size: int, roi: frame.Roi | None = None) -> Tensor:
        """The image in [0, 1], (1, H, W), reduced where ``roi`` is much larger than the canvas."""
        whole = frame.size_of_whole(self.image.shape, size, roi)
        if not frame.is_large(self.image.shape, whole):
            return frame.to_unit_range(self.image, self.limits(roi))
        if (whole, roi) not in self._reduced:
            unit = frame.to_unit_range(self.image, self.limits(roi))
            self._reduced[whole, roi] = frame.reduced(unit, whole).half()
        return self._reduced[whole, roi].float()


def read_slices(
    cases: tuple[Case, ...], num_classes: int, *, labelled: bool, sample: int = 0
) -> list[Slice]:
    """All slices of the cases, in memory, each with at most ``sample`` slices of its series.

    They have been through the window of their case, where it has one.
    """
    slices = []
    for _, group in itertools.groupby(cases, key=lambda case: case.patient):
        own = [(case, case.read()) for case in group]
        volumes: dict[str, tuple[AnyArray, ...]] = {}
        for case, image in own:
            labels = case.read_labels(image, num_classes) if labelled else None
            frames = [pair for pair in own if pair[1] is image or pair[1].same_geometry(image)]
            series = frames[0][0].name
            if series not in volumes:
                shown = files.sample([volume for _, volume in frames], sample)
                volumes[series] = tuple(frame.windowed(s, case.window) for s in shown)
            for index in range(image.depth):
                slices.append(
                    Slice(
                        key=f"{case.name}/{index}",
                        image=frame.windowed(image.slice(index), case.window),
                        labels=None if labels is None else labels.slice(index).astype(np.uint8),
                        series=series,
                        volume=volumes[series],
                        windowed=case.window is not None,
                    )
                )
    return slices
