"""The slices of a run, ready to be sampled on the device that trains.

They stay on the device where all of them together are small (:data:`MOST_BYTES`); else the planes
of a batch are made on the host, from the slices that it holds anyway, and sent. What a view shows
is the same.

Axes: B batch, H W space.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ssl_trainer.data import frame
from ssl_trainer.data.frame import Regions, Roi, WeakTransform
from ssl_trainer.data.planes import Planes
from ssl_trainer.data.slices import Slice
from vessa_common.transfer import send

# What the device holds at most of images and label maps: 16,000 slices of 256 x 256.
MOST_BYTES = 2 * 2**30


class SliceStore:
    """Slices as planes: images in [0, 1], by their region of interest, and label maps as they are.

    Attributes:
        slices: those slices.
        size: side of the canvas.
        device: where their views are made.
    """

    def __init__(
        self,
        slices: Sequence[Slice],
        size: int,
        regions: Regions,
        device: torch.device,
        *,
        labelled: bool = False,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        """Scale and reduce the slices once, where there is room for all.

        Args:
            slices: those slices; each with labels where ``labelled``.
            size: side of the canvas.
            regions: of interest, by series.
            device: that trains.
            labelled: whether label maps are sampled, too.
            most_bytes: that the device may hold.
        """
        self.slices, self.size, self.device = slices, size, device
        self._regions, self._labelled = regions, labelled
        self._images: Planes | None = None
        self._labels: Planes | None = None
        if self._bytes() <= most_bytes:
            self._images = Planes.of([self._image(item) for item in slices]).to(device)
            if labelled:
                self._labels = Planes.of([_labels(item) for item in slices]).to(device)

    def roi(self, item: Slice) -> Roi | None:
        """Region of interest of a slice; None for the whole of it."""
        return self._regions.get(item.series)

    def images(self, rows: Sequence[int]) -> Planes:
        """Planes of some slices, float16."""
        if self._images is not None:
            return self._images.select(self._sent(rows))
        return Planes.of([self._image(self.slices[row]) for row in rows]).to(self.device)

    def labels(self, rows: Sequence[int]) -> Planes:
        """Label maps of some slices, uint8."""
        if self._labels is not None:
            return self._labels.select(self._sent(rows))
        return Planes.of([_labels(self.slices[row]) for row in rows]).to(self.device)

    def grids(self, rows: Sequence[int], transforms: Sequence[WeakTransform]) -> Tensor:
        """Where in its slice each pixel of a view is, (B, size, size, 2)."""
        theta_B23 = np.stack(
            [
                frame.theta(item.image.shape, self.roi(item), transform)
                for item, transform in zip([self.slices[r] for r in rows], transforms, strict=True)
            ]
        )
        return frame.grids(send(torch.from_numpy(theta_B23).float(), self.device), self.size)

    def canvases(self, rows: Sequence[int]) -> Tensor:
        """Un-augmented slices, as :func:`batches.canonical` makes one, (B, 1, size, size)."""
        grid_BHW2 = self.grids(rows, [frame.IDENTITY] * len(rows))
        return self.images(rows).sample(grid_BHW2, mode="bilinear")

    def _image(self, item: Slice) -> Tensor:
        return item.unit(self.size, self.roi(item)).half()

    def _bytes(self) -> int:
        """Of all planes, without making them."""
        seen = [
            frame.shape_of_unit(item.image.shape, self.size, self.roi(item)) for item in self.slices
        ]
        whole = [item.image.shape[:2] for item in self.slices] if self._labelled else []
        return 2 * _pixels(seen) + _pixels(whole)

    def _sent(self, rows: Sequence[int]) -> Tensor:
        return send(torch.tensor(rows), self.device)


def _labels(item: Slice) -> Tensor:
    assert item.labels is not None
    return torch.from_numpy(item.labels)[None]


def _pixels(shapes: Sequence[tuple[int, ...]]) -> int:
    """Of planes that are large enough for all."""
    if not shapes:
        return 0
    return len(shapes) * max(height for height, _ in shapes) * max(width for _, width in shapes)
