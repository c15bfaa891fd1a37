"""Made-up tasks: shapes in, beside and away from each other, threads, pieces; noise or a body.

Images of one task are its subjects, or slices of them. In the spirit of SynthSeg (Billot et al.,
2023), SynthMorph (Hoffmann et al., 2022) and UniverSeg's synthetic tasks (Butoi et al., 2023).
Where shapes are is drawn on the host; pixels are made on the device.

Axes: G groups, M members, N = G*M images, S shapes, V regions, H W space from -0.5 to 0.5.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from vessa_server.training.draws import Draws
from vessa_server.training.noise import smooth_noise
from vessa_server.training.tasks import MAX_CLASSES

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
SIDE = 128
SHAPES = 12
# Regions: territories of noise, a body's air, fat and tissue, threads, many pieces, shapes.
TERRITORIES = 6
AIR, FAT, TISSUE, THREADS, PIECES = 6, 7, 8, 9, 10
SHAPE = 11
REGIONS = SHAPE + SHAPES
FREE, INSIDE, BESIDE = 0, 1, 2
RELATION_SHARE = (0.45, 0.25, 0.30)
# Shapes of a nested group: ring, cavity, and what leans on the ring.
NESTED = 3
# Numbers of annotated structures, 1 to 8.
ANNOTATED_SHARE = (0.28, 0.22, 0.16, 0.12, 0.08, 0.06, 0.04, 0.04)
MAX_CELLS, MAX_TEXTURE_CELLS = 12, 40


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """What is drawn for each image, and which region is which class.

    Attributes:
        centre_NS2, angle_NS, radii_NS2: ellipses; y and x; no shape where the radii are 0.
        wobble_N: how far borders leave the ellipse, relative to its radii.
        has_body_N, body_N6: whether there is one; y, x, angle, two radii, and the share within
            the fat.
        cells_N: bumps of the territories; shared_N: whether a task's images share them.
        nested_N: whether it is about a ring and what belongs to it.
        threads_N2, pieces_N2: bumps and share of the noise that becomes threads or pieces.
        mean_NV3, deviation_NV: intensities of the regions.
        texture_N, blur_N: cells of the texture; deviation of the blur, in pixels.
        lookup_NV: class of each region, 0 for none.
    """

    centre_NS2: Tensor
    angle_NS: Tensor
    radii_NS2: Tensor
    wobble_N: Tensor
    has_body_N: Tensor
    body_N6: Tensor
    cells_N: Tensor
    shared_N: Tensor
    nested_N: Tensor
    threads_N2: Tensor
    pieces_N2: Tensor
    mean_NV3: Tensor
    deviation_NV: Tensor
    texture_N: Tensor
    blur_N: Tensor
    lookup_NV: Tensor


@dataclass(frozen=True)
class _Layout:
    """Shapes of each task before its subjects differ, (G, S) and (G, S, 2)."""

    centre: FloatArray
    angle: FloatArray
    radii: FloatArray
    parent: IntArray
    height: FloatArray
    level: FloatArray


def draw(
    rng: np.random.Generator, key_GM: IntArray, height_GM: FloatArray, nested: float = 0.0
) -> tuple[Scenes, IntArray]:
    """Draw the scenes of all groups.

    Args:
        rng: of the batch.
        nested: share of the groups about a ring, its cavity, and a shape that leans on the ring.
        key_GM: whom each member is of.
        height_GM: where each slice lies in its subject, -1 to 1; 0 for pictures.

    Returns:
        The scenes, and how many classes each group annotates, (G,).
    """
    groups, members = (int(n) for n in key_GM.shape)
    count_G = rng.integers(2, SHAPES + 1, groups)
    nested_G = rng.uniform(size=groups) < nested
    textured_G = (rng.uniform(size=groups) < 0.25) & ~nested_G
    count_G = np.where(nested_G, np.maximum(count_G, NESTED), count_G)
    layout = _layout(rng, count_G, nested_G)
    centre, angle, radii = _subjects(rng, layout, key_GM, height_GM)
    lookup_GV, classes_G = _annotated(rng, count_G, textured_G, nested_G)
    means, deviations = _intensities(rng, layout, groups)
    spread_G = rng.uniform(0, 0.08, groups)
    mean = means[:, None] + spread_G[:, None, None, None] * rng.normal(
        0, 1, (groups, members, REGIONS, 1)
    )
    has_body_G = (rng.uniform(size=groups) < 0.55) & ~textured_G
    body = np.concatenate(
        [
            rng.uniform(-0.06, 0.06, (groups, 1, 2)) + rng.normal(0, 0.02, (groups, members, 2)),
            np.repeat(rng.uniform(0, np.pi, (groups, 1, 1)), members, axis=1),
            rng.uniform(0.34, 0.6, (groups, 1, 1))
            * rng.uniform(0.75, 1.3, (groups, 1, 2))
            * rng.uniform(0.92, 1.08, (groups, members, 1)),
            np.repeat(rng.uniform(0.8, 0.97, (groups, 1, 1)), members, axis=1),
        ],
        axis=2,
    )
    # Threads and pieces are what a textured task is about, and now and then a background.
    threads_G = np.where(textured_G, rng.uniform(0.06, 0.3, groups), 0.0)
    pieces_G = np.where(rng.uniform(size=groups) < np.where(textured_G, 0.7, 0.1), 1.0, 0.0)
    threads_G *= rng.uniform(size=groups) < 0.6

    def each(values_G: npt.NDArray[np.generic]) -> Tensor:
        return _tensor(np.repeat(values_G[:, None].astype(np.float64), members, axis=1))

    scenes = Scenes(
        centre_NS2=_tensor(centre),
        angle_NS=_tensor(angle),
        radii_NS2=_tensor(radii),
        wobble_N=each(rng.uniform(0, 0.2, groups)),
        has_body_N=each(has_body_G) > 0,
        body_N6=_tensor(body),
        cells_N=each(rng.uniform(2, 7, groups)),
        nested_N=each(nested_G) > 0,
        shared_N=each(rng.uniform(size=groups) < 0.5),
        threads_N2=torch.stack([each(rng.uniform(3, MAX_CELLS, groups)), each(threads_G)], 1),
        pieces_N2=torch.stack(
            [
                each(rng.uniform(4, MAX_CELLS, groups)),
                each(pieces_G * rng.uniform(0.3, 1.4, groups)),
            ],
            1,
        ),
        mean_NV3=_tensor(mean),
        deviation_NV=each_row(deviations, members),
        texture_N=each(rng.uniform(8, MAX_TEXTURE_CELLS, groups)),
        blur_N=_tensor(rng.uniform(0.3, 1.2, (groups, members))),
        lookup_NV=torch.from_numpy(np.repeat(lookup_GV, members, axis=0)),
    )
    return scenes, classes_G


def each_row(values_GV: FloatArray, members: int) -> Tensor:
    """Rows of each group for all of its members."""
    return torch.from_numpy(np.repeat(values_GV, members, axis=0).astype(np.float32))


def _tensor(values_GMX: FloatArray) -> Tensor:
    flat = values_GMX.reshape(-1, *values_GMX.shape[2:])
    return torch.from_numpy(flat.astype(np.float32))


def _layout(rng: np.random.Generator, count_G: IntArray, nested_G: BoolArray) -> _Layout:
    groups = len(count_G)
    shape = (groups, SHAPES)
    mean = np.exp(rng.uniform(np.log(0.03), np.log(0.22), shape))
    relation = rng.choice(3, size=shape, p=RELATION_SHARE)
    relation[nested_G, 1:NESTED] = INSIDE, BESIDE
    mean[nested_G, 0] = rng.uniform(0.06, 0.24, int(nested_G.sum()))
    mean[nested_G, 2] = mean[nested_G, 0] * rng.uniform(0.6, 1.3, int(nested_G.sum()))
    parent = np.full(shape, -1)
    centre = rng.uniform(-0.36, 0.36, (*shape, 2))
    rows = np.arange(groups)
    for s in range(1, SHAPES):
        chosen = rng.integers(0, s, groups)
        chosen = np.where(nested_G & (s < NESTED), 0, chosen)
        related = relation[:, s] != FREE
        parent[:, s] = np.where(related, chosen, -1)
        outer, at = mean[rows, chosen], centre[rows, chosen]
        inside = relation[:, s] == INSIDE
        ratio = rng.uniform(0.35, 0.85, groups)
        mean[:, s] = np.where(inside, outer * ratio, mean[:, s])
        direction = rng.uniform(0, 2 * np.pi, groups)
        reach = np.where(
            inside,
            outer * (1 - ratio) * rng.uniform(0, 0.6, groups),
            outer + mean[:, s] * rng.uniform(0.4, 1.1, groups),
        )
        offset = reach[:, None] * np.stack([np.sin(direction), np.cos(direction)], axis=1)
        centre[:, s] = np.where(related[:, None], at + offset, centre[:, s])
        # A twin is as large as another shape, and often as bright: only its place tells it.
        twin = (relation[:, s] == FREE) & (rng.uniform(size=groups) < 0.25)
        mean[:, s] = np.where(twin, outer, mean[:, s])
    radii = mean[..., None] * rng.uniform(0.7, 1.4, (*shape, 2))
    inside = relation == INSIDE
    turn = rng.uniform(0, np.pi, shape)
    for s in range(1, SHAPES):
        chosen = np.maximum(parent[:, s], 0)
        ratio = (mean[:, s] / mean[rows, chosen])[:, None]
        alike = radii[rows, chosen] * ratio
        radii[:, s] = np.where(inside[:, s, None], alike, radii[:, s])
        turn[:, s] = np.where(inside[:, s], turn[rows, chosen], turn[:, s])
    radii[np.arange(SHAPES)[None] >= count_G[:, None]] = 0
    return _Layout(
        centre, turn, radii, parent, rng.uniform(0.5, 1.4, shape), rng.uniform(-0.4, 0.4, shape)
    )


def _subjects(
    rng: np.random.Generator, layout: _Layout, key_GM: IntArray, height_GM: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """The shapes of each image: subjects move and grow, slices cut them at their heights."""
    groups, members = (int(n) for n in key_GM.shape)
    first = (key_GM[:, :, None] == key_GM[:, None, :]).argmax(axis=2)

    def own(values: FloatArray) -> FloatArray:
        index = first.reshape(groups, members, *([1] * (values.ndim - 2)))
        return np.take_along_axis(values, np.broadcast_to(index, values.shape), axis=1)

    shape = (groups, members, SHAPES)
    size = own(np.exp(rng.normal(0, 0.12, (groups, members))))
    turn = own(rng.normal(0, 0.12, (groups, members)))
    shift = own(rng.normal(0, 0.03, (groups, members, 2)))
    grown = own(np.exp(rng.normal(0, 0.12, shape)))
    moved = own(rng.normal(0, 0.12, (*shape, 2)))
    there = own((rng.uniform(size=shape) > 0.05).astype(np.float64))
    away = (height_GM[:, :, None] - layout.level[:, None]) / layout.height[:, None]
    cut = np.sqrt(np.clip(1 - away**2, 0, 1))
    middle = layout.centre.mean(axis=1)[:, None, None]
    cos, sin = np.cos(turn)[..., None], np.sin(turn)[..., None]
    offset = layout.centre[:, None] - middle
    offset = offset + moved * layout.radii.mean(axis=2)[:, None, :, None]
    turned = np.stack(
        [
            cos * offset[..., 0] - sin * offset[..., 1],
            sin * offset[..., 0] + cos * offset[..., 1],
        ],
        axis=-1,
    )
    centre = middle + shift[:, :, None] + size[..., None, None] * turned
    # Shapes inside one another grow together, or the inner one would leave the outer.
    factor = (size[..., None] * grown * cut * there)[..., None]
    return centre, layout.angle[:, None] + turn[..., None], layout.radii[:, None] * factor


def _annotated(
    rng: np.random.Generator, count_G: IntArray, textured_G: BoolArray, nested_G: BoolArray
) -> tuple[IntArray, IntArray]:
    """Class of each region, and how many classes there are."""
    groups = len(count_G)
    wanted_G = 1 + rng.choice(MAX_CLASSES, size=groups, p=ANNOTATED_SHARE)
    lookup = np.zeros((groups, REGIONS), dtype=np.int64)
    classes = np.zeros(groups, dtype=np.int64)
    for group in range(groups):
        regions = SHAPE + rng.permutation(int(count_G[group]))
        if textured_G[group]:
            regions = np.concatenate([rng.permutation([THREADS, PIECES]), regions])
        elif nested_G[group]:
            regions = SHAPE + rng.permutation(NESTED)
        elif rng.uniform() < 0.08:
            regions = np.concatenate([rng.permutation(TERRITORIES)[:2], regions])
        chosen = regions[: int(wanted_G[group])]
        lookup[group, chosen] = np.arange(1, len(chosen) + 1)
        classes[group] = len(chosen)
    return lookup, classes


def _intensities(
    rng: np.random.Generator, layout: _Layout, groups: int
) -> tuple[FloatArray, FloatArray]:
    """Mean of each region in three colours, and deviation. Many shapes are as bright as others."""
    mean = np.repeat(rng.uniform(0.05, 0.95, (groups, REGIONS, 1)), 3, axis=2)
    coloured = rng.uniform(size=groups) < 0.2
    mean[coloured] = np.clip(
        mean[coloured] + rng.normal(0, 0.2, (int(coloured.sum()), REGIONS, 3)), 0.02, 0.98
    )
    dark = rng.uniform(size=groups) < 0.7
    mean[dark, AIR] = rng.uniform(0, 0.15, (int(dark.sum()), 1))
    rows = np.arange(groups)
    for s in range(1, SHAPES):
        alike = rng.uniform(size=groups) < 0.35
        other = rng.integers(0, s, groups)
        # A shape inside another one needs a border to it.
        alike &= other != layout.parent[:, s]
        mean[:, SHAPE + s] = np.where(alike[:, None], mean[rows, SHAPE + other], mean[:, SHAPE + s])
    return mean, rng.uniform(0.01, 0.12, (groups, REGIONS))


def render(scenes: Scenes, members: int, draws: Draws) -> tuple[Tensor, Tensor]:
    """Paint the scenes.

    Returns:
        (N, 3, SIDE, SIDE) images, about 0 to 1, and (N, SIDE, SIDE) label maps of int64.
    """
    regions = _regions(scenes, members, draws)
    count = len(regions)
    flat = regions.flatten(1)
    mean = scenes.mean_NV3.gather(1, flat[..., None].expand(-1, -1, 3)).transpose(1, 2)
    deviation = scenes.deviation_NV.gather(1, flat)[:, None]
    texture = smooth_noise(draws, scenes.texture_N, SIDE, MAX_TEXTURE_CELLS).flatten(1)[:, None]
    grain = draws.normal(count, 1, SIDE * SIDE)
    image = (mean + 0.7 * deviation * (texture + grain)).view(count, 3, SIDE, SIDE)
    labels = scenes.lookup_NV.gather(1, flat).view_as(regions)
    return _blurred(image, scenes.blur_N), labels


def _regions(scenes: Scenes, members: int, draws: Draws) -> Tensor:
    """Region number of each pixel, (N, SIDE, SIDE)."""
    count = len(scenes.cells_N)
    device = scenes.cells_N.device
    fields = smooth_noise(draws, scenes.cells_N.repeat_interleave(TERRITORIES), SIDE, 7)
    fields = fields.view(-1, members, TERRITORIES, SIDE, SIDE)
    shared = (scenes.shared_N > 0).view(-1, members, 1, 1, 1)
    fields = torch.where(shared, fields[:, :1], fields).flatten(0, 1)
    regions = fields.argmax(dim=1)
    axis = (torch.arange(SIDE, device=device) + 0.5) / SIDE - 0.5
    rows, columns = axis[:, None], axis[None, :]
    wobble = scenes.wobble_N[:, None, None] * smooth_noise(
        draws, scenes.cells_N.new_full((count,), 3.0), SIDE, 3
    )
    body = scenes.body_N6
    outline = _distance(body[:, :2], body[:, 2], body[:, 3:5], rows, columns) + 0.3 * wobble
    inner = torch.where(outline < body[:, 5, None, None], TISSUE, FAT)
    inside = torch.where(outline < 1, inner, AIR)
    has_body = scenes.has_body_N[:, None, None]
    regions = torch.where(has_body, inside, regions)
    threads = smooth_noise(draws, scenes.threads_N2[:, 0], SIDE, MAX_CELLS)
    pieces = smooth_noise(draws, scenes.pieces_N2[:, 0], SIDE, MAX_CELLS)
    level = scenes.pieces_N2[:, 1, None, None]
    regions = torch.where((pieces > level) & (level > 0), PIECES, regions)
    regions = torch.where(threads.abs() < scenes.threads_N2[:, 1, None, None], THREADS, regions)
    nested = scenes.nested_N[:, None, None]
    for s in range(SHAPES):
        radii = scenes.radii_NS2[:, s]
        distance = _distance(
            scenes.centre_NS2[:, s], scenes.angle_NS[:, s], radii.clamp(min=1e-3), rows, columns
        )
        within = (distance + wobble < 1) & (radii[:, 0, None, None] > 1e-3)
        within &= ~has_body | (outline < 1)
        if s >= NESTED - 1:
            # What a nested group is about lies before all else, the ring before its neighbour.
            about = (regions >= SHAPE) & (regions < SHAPE + min(s, NESTED))
            within &= ~(nested & about)
        regions = torch.where(within, SHAPE + s, regions)
    return regions


def _distance(
    centre_N2: Tensor, angle_N: Tensor, radii_N2: Tensor, rows_H1: Tensor, columns_1W: Tensor
) -> Tensor:
    """Normalised radius of ellipses, 1 on the border, (N, H, W)."""
    y = rows_H1[None] - centre_N2[:, 0, None, None]
    x = columns_1W[None] - centre_N2[:, 1, None, None]
    cos, sin = torch.cos(angle_N)[:, None, None], torch.sin(angle_N)[:, None, None]
    u = (cos * y + sin * x) / radii_N2[:, 0, None, None]
    v = (cos * x - sin * y) / radii_N2[:, 1, None, None]
    return torch.sqrt(u * u + v * v)


def _blurred(image_N3HW: Tensor, sigma_N: Tensor) -> Tensor:
    """Gaussian blur, each image with its own deviation, in pixels.

    Sums instead of convolutions, which some GPUs round to ten bits.
    """
    offset = torch.arange(-2.0, 3.0, device=sigma_N.device)
    kernel = torch.exp(-0.5 * (offset[None] / sigma_N[:, None]) ** 2)
    weight_5N111 = (kernel / kernel.sum(dim=1, keepdim=True)).T[:, :, None, None, None]
    padded = F.pad(image_N3HW, (2, 2, 2, 2), mode="replicate")
    across = torch.stack([padded[..., i : i + SIDE] for i in range(5)])
    down = (weight_5N111 * across).sum(dim=0)
    both = torch.stack([down[..., i : i + SIDE, :] for i in range(5)])
    return (weight_5N111 * both).sum(dim=0)
