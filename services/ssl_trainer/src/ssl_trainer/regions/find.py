"""The regions of interest of a run: of labels, asked of VESSA, and made one by the locator.

Axes: H W space.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ssl_trainer.data.frame import Roi
from ssl_trainer.data.slices import Slice
from ssl_trainer.regions.locator import SIZE, Locator
from vessa_client import Region, files

# How much larger than its structures a region is.
MARGIN = 1.35
# Slices of a volume that the locator looks at.
SLICES = 8


def of_labels(slices: Sequence[Slice]) -> dict[str, Roi]:
    """Around all structures of each labelled series; a series without any has none."""
    shown: dict[str, np.ndarray[tuple[int, int], np.dtype[np.bool_]]] = {}
    for item in slices:
        if item.labels is not None:
            structures = item.labels > 0
            shown[item.series] = shown.get(item.series, structures) | structures
    return {
        series: Roi.around(mask, MARGIN).or_whole(mask.shape)
        for series, mask in shown.items()
        if mask.any()
    }


def window(region: Region) -> Roi:
    """What VESSA looked at."""
    return Roi(
        region.top + region.height / 2,
        region.left + region.width / 2,
        float(max(region.height, region.width)),
        region.quarter_turns,
    )


def by_locator(
    locator: Locator,
    slices: Sequence[Slice],
    advance: Callable[[], object] = lambda: None,
) -> dict[str, Roi]:
    """The region of each series, by some of its slices."""
    groups: dict[str, list[Slice]] = {}
    for item in slices:
        groups.setdefault(item.series, []).append(item)
    found = {}
    for series, group in groups.items():
        some = [group[index] for index in files.spread(len(group), SLICES)]
        found[series] = locator.locate([i.unit(SIZE) for i in some], some[0].image.shape)
        advance()
    return found


def as_rows(regions: Mapping[str, Roi]) -> dict[str, list[float]]:
    """For JSON: row, column, side, quarter turns."""
    return {
        series: [roi.row, roi.column, roi.side, roi.quarter_turns]
        for series, roi in regions.items()
    }


def from_rows(rows: Mapping[str, Sequence[float]]) -> dict[str, Roi]:
    """Back from :func:`as_rows`.

    Raises:
        ValueError: a region is none.
    """
    found = {
        series: Roi(float(row), float(column), float(side), int(turns))
        for series, (row, column, side, turns) in rows.items()
    }
    for series, roi in found.items():
        if not (np.isfinite([roi.row, roi.column]).all() and 0 < roi.side < np.inf):
            raise ValueError(f"{series}: {roi}")
    return found
