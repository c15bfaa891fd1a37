"""Trains a locator on regions of interest: those of labels, and those that VESSA named.

Some of VESSA's are wrong. They are wrong in different ways, so the locator learns what most say,
and is right where VESSA was not: on ACDC it found the hearts of all 69 unlabelled patients, VESSA
those of 62.

Axes: B batch, H W space.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_trainer.data import frame, noise
from ssl_trainer.data.frame import Roi
from ssl_trainer.data.planes import Planes
from ssl_trainer.data.slices import Slice
from ssl_trainer.regions.locator import SIZE, Locator
from vessa_common.transfer import send

STEPS, BATCH, RATE = 400, 16, 2e-3
# How slices are varied, on top of quarter turns: degrees, zoom, shift of the side; deviation of
# the logarithm of the contrast's exponent, strengths of a smooth field and of noise.
DEGREES, ZOOM, SHIFT = 25.0, (0.7, 1.4), 0.15
GAMMA, BIAS, NOISE = 0.3, 0.25, 0.05


def train(
    slices: Sequence[Slice],
    regions: Mapping[str, Roi],
    seed: int,
    device: torch.device,
    advance: Callable[[], object] = lambda: None,
) -> Locator:
    """A locator of the regions of the slices' series.

    Args:
        slices: of series that have a region; others do not count.
        regions: by series.
        seed: of weights, choice and variation; the draws are the same on every device.
        device: that is trained on.
        advance: called after each of :data:`STEPS` updates.
    """
    known = [item for item in slices if item.series in regions]
    torch.manual_seed(seed)
    locator = Locator().to(memory_format=torch.channels_last).to(device)
    optimizer = torch.optim.AdamW(locator.parameters(), lr=RATE, weight_decay=1e-2)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - step / STEPS) ** 0.9
        rng = np.random.default_rng([seed, step, 4])
        chosen = [known[index] for index in rng.integers(len(known), size=BATCH)]
        loss = _loss(locator, *(send(part, device) for part in _batch(chosen, regions, rng)))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        advance()
    return locator.eval()


def _loss(
    locator: Locator, image_B1HW: Tensor, inside_B1HW: Tensor, quarter_turns_B: Tensor
) -> Tensor:
    """Cross-entropy and Dice of the region, and cross-entropy of the quarter turns."""
    logits_B1HW, turns_B4 = locator(image_B1HW)
    probability = torch.sigmoid(logits_B1HW)
    overlap = 2 * (probability * inside_B1HW).sum() + 1
    dice = overlap / (probability.sum() + inside_B1HW.sum() + 1)
    pixels = F.binary_cross_entropy_with_logits(logits_B1HW, inside_B1HW)
    return pixels + (1 - dice) + 0.5 * F.cross_entropy(turns_B4, quarter_turns_B)


def _batch(
    chosen: Sequence[Slice], regions: Mapping[str, Roi], rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Whole slices turned by any quarter and varied, their regions, and the turns to upright."""
    grids, insides, turns = [], [], []
    for item in chosen:
        roi, turned, shape = regions[item.series], int(rng.integers(4)), item.image.shape
        transform = frame.WeakTransform(
            angle=math.radians(float(rng.uniform(-DEGREES, DEGREES))),
            zoom=float(np.exp(rng.uniform(*np.log(ZOOM)))),
            shift_x=float(rng.uniform(-SHIFT, SHIFT)),
            shift_y=float(rng.uniform(-SHIFT, SHIFT)),
        )
        grids.append(frame.grid(frame.theta(shape, Roi.whole(shape, turned), transform), SIZE))
        insides.append(roi.contains(grids[-1], shape)[None].float())
        turns.append((roi.quarter_turns - turned) % 4)
    planes = Planes.of([item.unit(SIZE) for item in chosen])
    image_B1HW = planes.sample(torch.stack(grids), mode="bilinear").clamp(0, 1)
    return _varied(image_B1HW, rng), torch.stack(insides), torch.tensor(turns)


def _varied(image_B1HW: Tensor, rng: np.random.Generator) -> Tensor:
    batch = len(image_B1HW)
    gamma, shade, grain = (
        torch.from_numpy(values.astype(np.float32))[:, None, None, None]
        for values in (
            np.exp(rng.normal(0, GAMMA, batch)),
            rng.uniform(0, BIAS, batch),
            rng.uniform(0, NOISE, batch),
        )
    )
    image = image_B1HW**gamma * torch.exp(shade * noise.smooth(noise.Knots.draw(rng, batch), SIZE))
    return image + grain * noise.white(noise.draw_places(rng, batch), SIZE)
