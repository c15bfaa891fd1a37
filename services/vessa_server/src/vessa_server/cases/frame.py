"""The maps on which rules work: an image's own pixels, or every so many of a large one.

Axes: C classes, H W space.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from vessa_server.model.preprocess import Canvas, Crop
from vessa_server.policy.answers import Floats


@dataclass(frozen=True)
class Frame:
    """Maps of an image of ``height`` x ``width`` pixels, ``step`` pixels to each of theirs."""

    height: int
    width: int
    step: int

    @staticmethod
    def of(height: int, width: int, side: int) -> Frame:
        """At most ``side`` pixels a side."""
        return Frame(height, width, max(1, math.ceil(max(height, width) / side)))

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the maps."""
        return math.ceil(self.height / self.step), math.ceil(self.width / self.step)

    def reduce(self, maps_CHW: Floats) -> Floats:
        """Maps of the image's size on the frame: means over its pixels."""
        if self.step == 1:
            return maps_CHW
        reduced: Floats = F.interpolate(
            torch.from_numpy(maps_CHW)[None], size=self.shape, mode="area"
        )[0].numpy()
        return reduced

    def enlarge(self, maps_CHW: Floats) -> Floats:
        """Maps of the frame at the image's size."""
        if self.step == 1:
            return maps_CHW
        size = (self.height, self.width)
        full: Floats = F.interpolate(torch.from_numpy(maps_CHW)[None], size=size, mode="bilinear")[
            0
        ].numpy()
        return full

    def in_image(self, crop: Crop | None) -> Crop | None:
        """A window of the frame in pixels of the image."""
        if crop is None or self.step == 1:
            return crop
        top, left = crop.top * self.step, crop.left * self.step
        height = min(crop.height * self.step, self.height - top)
        width = min(crop.width * self.step, self.width - left)
        return Crop(top, left, height, width)

    def canvas(self, canvas: Canvas) -> Canvas:
        """The canvas as one of the frame's maps."""
        if self.step == 1:
            return canvas
        height, width = self.shape
        crop = canvas.crop
        if crop is not None:
            top, left = crop.top // self.step, crop.left // self.step
            bottom = min(height, math.ceil((crop.top + crop.height) / self.step))
            right = min(width, math.ceil((crop.left + crop.width) / self.step))
            crop = Crop(top, left, bottom - top, right - left)
        return replace(canvas, height=height, width=width, crop=crop)

    def restore(self, maps_CHW: Floats, canvas: Canvas, *, outside: float) -> Floats:
        """Maps on the canvas back on the frame; ``outside`` is the value beside the canvas."""
        return restore(maps_CHW, self.canvas(canvas), outside=outside)

    def place(self, maps_CHW: Floats, canvas: Canvas, side: int) -> Floats:
        """Maps of the frame on the canvas, at ``side`` pixels a side."""
        placed = self.canvas(canvas).place(torch.from_numpy(maps_CHW), mode="area")
        pooled: Floats = F.adaptive_avg_pool2d(placed, side).numpy()
        return pooled


def restore(maps_CHW: Floats, canvas: Canvas, *, outside: float) -> Floats:
    """Maps on the canvas back at the image's size."""
    restored: Floats = canvas.restore(torch.from_numpy(maps_CHW), outside=outside).numpy()
    return restored
