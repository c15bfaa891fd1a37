"""The regions of a run as a picture. Axes: H W space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from ssl_trainer.data.batches import canonical
from ssl_trainer.data.frame import Roi
from ssl_trainer.data.slices import Slice
from vessa_client import UInt8Array, files, pictures

# Most series that are shown, how many in a row, and the side of a picture of one, in pixels.
MOST, COLUMNS, SIDE = 40, 5, 144
USED, VESSAS = (60, 220, 90), (240, 90, 60)


def draw(slices: Sequence[Slice], used: Mapping[str, Roi], vessas: Mapping[str, Roi]) -> UInt8Array:
    """For some series the middle slice with its region, and VESSA's, beside what a student sees."""
    groups: dict[str, list[Slice]] = {}
    for item in slices:
        if item.series in used:
            groups.setdefault(item.series, []).append(item)
    names = [list(groups)[index] for index in files.spread(len(groups), MOST)]
    tiles = [
        _tile(groups[name][len(groups[name]) // 2], used[name], vessas.get(name)) for name in names
    ]
    rows = [
        np.concatenate(tiles[start : start + COLUMNS], axis=1)
        for start in range(0, len(tiles), COLUMNS)
    ]
    return pictures.rows(rows)


def _tile(item: Slice, roi: Roi, vessas: Roi | None) -> UInt8Array:
    height, width = item.image.shape[:2]
    scale = SIDE / max(height, width)
    shown = Image.fromarray(pictures.grey(item.image))
    shown = shown.resize((max(1, round(width * scale)), max(1, round(height * scale))))
    canvas = Image.new("RGB", (SIDE, SIDE))
    canvas.paste(shown, (0, 0))
    pen = ImageDraw.Draw(canvas)
    for square, colour in ((vessas, VESSAS), (roi, USED)):
        if square is not None:
            left, top = (at - square.side / 2 for at in (square.column, square.row))
            corners = (left, top, left + square.side, top + square.side)
            pen.rectangle([scale * at for at in corners], outline=colour, width=2)
    seen = canonical(item, SIDE, roi)[0]
    close = np.repeat((255 * seen.clamp(0, 1)).byte().numpy()[..., None], 3, axis=2)
    return pictures.panels([(item.series[-22:], np.asarray(canvas)), ("", close)], height=SIDE)
