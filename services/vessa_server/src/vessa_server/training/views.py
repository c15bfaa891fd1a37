"""How the images of a task are seen: turned, mirrored, zoomed, shifted, deformed; and how bright.

What is drawn is drawn on the host, for each subject of a group; pixels are made on the device.

Axes: G groups, M members, N = G*M images, C channels, H W space.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from vessa_server.model.preprocess import FOCUS_MARGIN
from vessa_server.training.config import TrainingConfig
from vessa_server.training.draws import Draws
from vessa_server.training.noise import smooth_noise

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
WHOLE, ZOOMED, CLOSE = 0, 1, 2
# A second look is never much wider than the image, and never blows up a few pixels.
CLOSE_ZOOM = (0.7, 8.0)
# Turns of tasks whose left and right have names.
SMALL_TURN = 0.25
MAX_FIELD_CELLS = 5


@dataclass(frozen=True, kw_only=True)
class Views:
    """What is drawn for each image, (N,) unless said otherwise.

    Attributes:
        kind_N: whole image, zoomed into it, or close to its structures as a second look is.
        angle_N, mirror_N: turn in radians; -1 mirrors, 1 does not.
        zoom_N: of whole and zoomed images; of close ones the factor on their own zoom.
        shift_N2: x and y of the centre, as a share of half of what is seen.
        pull_N2: x and y, -1 to 1, of a place in the structures' box that stays in sight.
        elastic_N, cells_N: strength, a share of half of what is seen, and bumps of the deformation.
        gamma_N, gain_N, lift_N, invert_N: of the intensities.
        bias_N, blur_N, noise_N: strengths; 0 for none.
        same_NM: which members of its group are of the same subject.
    """

    kind_N: Tensor
    angle_N: Tensor
    mirror_N: Tensor
    zoom_N: Tensor
    shift_N2: Tensor
    pull_N2: Tensor
    elastic_N: Tensor
    cells_N: Tensor
    gamma_N: Tensor
    gain_N: Tensor
    lift_N: Tensor
    invert_N: Tensor
    bias_N: Tensor
    blur_N: Tensor
    noise_N: Tensor
    same_NM: Tensor


def draw(
    rng: np.random.Generator,
    config: TrainingConfig,
    *,
    key_GM: IntArray,
    mirror_G: npt.NDArray[np.bool_],
    elastic_G: FloatArray,
) -> Views:
    """Draw the views of all groups.

    Args:
        rng: of the batch.
        config: shares and strengths.
        key_GM: whom each member is of; slices of one subject are seen alike.
        mirror_G: whether mirrored and turned images are of the same kind.
        elastic_G: largest deformation of each group.
    """
    groups, members = (int(n) for n in key_GM.shape)
    same_GMM = key_GM[:, :, None] == key_GM[:, None, :]
    first_GM = same_GMM.argmax(axis=2)

    def own(values_GM: FloatArray) -> Tensor:
        """One number for each subject of a group."""
        return _flat(np.take_along_axis(values_GM, first_GM, axis=1))

    def shared(values_G: npt.NDArray[np.generic]) -> FloatArray:
        return np.repeat(values_G[:, None].astype(np.float64), members, axis=1)

    shape = (groups, members)
    variation = config.variation
    kind_G: IntArray = rng.choice(3, size=groups, p=config.view_shares)
    turns_G = np.where(mirror_G, math.pi, SMALL_TURN) * rng.uniform(-1, 1, groups)
    turns_G *= rng.uniform(size=groups) < 0.5
    # Between image and template, too: an unknown scan may lie in any way.
    free_G = mirror_G & (rng.uniform(size=groups) < config.free_pose)
    quarter_GM = rng.integers(0, 4, shape) * free_G[:, None]
    any_turn_GM = free_G[:, None] & (rng.uniform(size=shape) < 0.3)
    angle_GM = shared(turns_G) + rng.normal(0, 0.2 * variation, shape)
    angle_GM += quarter_GM * math.pi / 2 + any_turn_GM * rng.uniform(-math.pi, math.pi, shape)
    flip_GM = shared(mirror_G & (rng.uniform(size=groups) < 0.5)).astype(bool)
    flip_GM ^= free_G[:, None] & (rng.uniform(size=shape) < 0.5)
    low, high = np.log(config.zoom_range)
    zoomed_G = np.exp(rng.uniform(max(0.0, low), max(0.0, high), groups))
    whole_G = np.exp(rng.uniform(low, max(low, min(high, 0.2)), groups))
    zoom_G = np.select([kind_G == WHOLE, kind_G == ZOOMED], [whole_G, zoomed_G], 1.0)
    doubt_GM = np.where(rng.uniform(size=shape) < 0.15, 0.4, 0.15)
    wobble_GM = np.where(shared(kind_G == CLOSE) > 0, doubt_GM, 0.12 * variation)
    spread_GM = np.where(shared(kind_G == CLOSE) > 0, 0.1, 0.06 * variation)
    shift_GM2 = np.where(shared(kind_G == CLOSE) > 0, 0.0, 1.0)[..., None] * np.repeat(
        rng.uniform(-0.15, 0.15, (groups, 1, 2)), members, axis=1
    )
    shift_GM2 = shift_GM2 + spread_GM[..., None] * rng.normal(0, 1, (*shape, 2))
    pull_GM2 = np.repeat(rng.uniform(-0.6, 0.6, (groups, 1, 2)), members, axis=1)

    def now_and_then(share: float, values_GM: FloatArray) -> Tensor:
        return own((rng.uniform(size=shape) < share) * values_GM)

    return Views(
        kind_N=torch.from_numpy(np.repeat(kind_G, members)),
        angle_N=own(angle_GM),
        mirror_N=own(np.where(flip_GM, -1.0, 1.0)),
        zoom_N=own(shared(zoom_G) * np.exp(wobble_GM * rng.normal(0, 1, shape))),
        shift_N2=torch.stack([own(shift_GM2[..., 0]), own(shift_GM2[..., 1])], dim=1),
        pull_N2=torch.stack([own(pull_GM2[..., 0]), own(pull_GM2[..., 1])], dim=1),
        elastic_N=_flat(shared(elastic_G) * rng.uniform(0, 1, shape)),
        cells_N=_flat(rng.uniform(2, MAX_FIELD_CELLS, shape)),
        gamma_N=own(np.exp(rng.normal(0, 0.35, shape))),
        gain_N=own(rng.uniform(0.7, 1.3, shape)),
        lift_N=own(rng.normal(0, 0.08, shape)),
        invert_N=now_and_then(0.1, np.ones(shape)),
        bias_N=now_and_then(0.4, np.full(shape, 0.25)),
        blur_N=now_and_then(0.3, rng.uniform(0.5, 1.0, shape)),
        noise_N=now_and_then(0.5, rng.uniform(0, 0.06, shape)),
        same_NM=torch.from_numpy(same_GMM.reshape(groups * members, members)),
    )


def _flat(values_GM: FloatArray) -> Tensor:
    return torch.from_numpy(values_GM.reshape(-1).astype(np.float32))


@dataclass(frozen=True)
class Frames:
    """Where the views look: affine maps from the canvas to each image, and their elastic part."""

    theta_N23: Tensor
    elastic_NHW2: Tensor

    def grid(self) -> Tensor:
        """Sampling grid of each image, (N, H, W, 2)."""
        count, side = self.elastic_NHW2.shape[:2]
        flat = F.affine_grid(self.theta_N23, [count, 1, side, side], align_corners=False)
        return flat + self.elastic_NHW2


def frames(views: Views, labels_NHW: Tensor, size_N2: Tensor, side: int, draws: Draws) -> Frames:
    """Turn drawn views into maps, by where the annotated structures are.

    Args:
        views: what was drawn.
        labels_NHW: label maps as they are stored, images in the upper left corner.
        size_N2: height and width of the images in there.
        side: of the canvas.
        draws: for the elastic fields.
    """
    box = _boxes(labels_NHW, views.same_NM)
    stored = labels_NHW.shape[-1]
    longer_N = size_N2.amax(dim=1).float()
    # Places in pixels of the stored plane.
    middle_N2 = torch.where(box.found_N[:, None], box.middle_N2, size_N2.flip(1) / 2.0)
    extent_N = torch.where(box.found_N, box.extent_N, longer_N / FOCUS_MARGIN)
    close_N = views.kind_N == CLOSE
    own_zoom_N = (longer_N / (FOCUS_MARGIN * extent_N)).clamp(*CLOSE_ZOOM)
    zoom_N = torch.where(close_N, own_zoom_N, torch.ones_like(own_zoom_N)) * views.zoom_N
    seen_N = longer_N / zoom_N
    pulled_N2 = middle_N2 + views.pull_N2 * box.half_N2
    share_N1 = torch.where(views.kind_N == ZOOMED, (1 - 1 / zoom_N).clamp(min=0), 0.0)[:, None]
    centre_N2 = torch.lerp(size_N2.flip(1) / 2.0, pulled_N2, share_N1)
    centre_N2 = torch.where(close_N[:, None], middle_N2, centre_N2)
    centre_N2 = centre_N2 + views.shift_N2 * seen_N[:, None] / 2
    scale_N = seen_N / stored
    cos, sin = torch.cos(views.angle_N) * scale_N, torch.sin(views.angle_N) * scale_N
    place_N2 = 2 * centre_N2 / stored - 1
    theta_N23 = torch.stack(
        [
            torch.stack([cos * views.mirror_N, -sin, place_N2[:, 0]], dim=1),
            torch.stack([sin * views.mirror_N, cos, place_N2[:, 1]], dim=1),
        ],
        dim=1,
    )
    count = len(longer_N)
    field = smooth_noise(draws, views.cells_N.repeat(2), side, MAX_FIELD_CELLS)
    elastic = field.view(2, count, side, side).permute(1, 2, 3, 0)
    strength_N = views.elastic_N * scale_N
    return Frames(theta_N23, elastic * strength_N[:, None, None, None])


@dataclass(frozen=True)
class _Box:
    """Middle (x, y), half sides and longer side in pixels, and whether anything is annotated."""

    middle_N2: Tensor
    half_N2: Tensor
    extent_N: Tensor
    found_N: Tensor


def _boxes(labels_NHW: Tensor, same_NM: Tensor) -> _Box:
    """Boxes of what is annotated; slices of one subject share theirs."""
    members = same_NM.shape[1]
    shown = labels_NHW > 0
    ends = []
    for along in (shown.any(dim=1), shown.any(dim=2)):
        length = along.shape[1]
        first = along.int().argmax(dim=1)
        last = length - along.flip(1).int().argmax(dim=1)
        found = along.any(dim=1)
        ends.append((torch.where(found, first, length), torch.where(found, last, 0)))
    found_N = shown.flatten(1).any(dim=1)

    def over_subject(values_N: Tensor, lowest: bool) -> Tensor:
        groups = values_N.view(-1, 1, members).expand(-1, members, -1).reshape(-1, members)
        other = values_N.new_full((), 10**6 if lowest else -1)
        kept = torch.where(same_NM, groups, other)
        return kept.amin(dim=1) if lowest else kept.amax(dim=1)

    (left, right), (top, bottom) = (
        (over_subject(first, True).float(), over_subject(last, False).float())
        for first, last in ends
    )
    sides_N2 = torch.stack([right - left, bottom - top], dim=1).clamp(min=1)
    middle_N2 = torch.stack([left + right, top + bottom], dim=1) / 2
    any_N = over_subject(found_N.long(), False) > 0
    return _Box(middle_N2, sides_N2 / 2 * any_N[:, None], sides_N2.amax(dim=1), any_N)


def sample(image_NCHW: Tensor, labels_NHW: Tensor, frame: Frames) -> tuple[Tensor, Tensor]:
    """Images and label maps on the canvas.

    Returns:
        (N, C, side, side) images, and (N, side, side) label maps of int64.
    """
    grid = frame.grid()
    fine = F.grid_sample(image_NCHW, grid, mode="bilinear", align_corners=False)
    coarse = F.grid_sample(F.avg_pool2d(image_NCHW, 2), grid, mode="bilinear", align_corners=False)
    # Where an image is made smaller by more than a half, its pixels are averaged first.
    step = frame.theta_N23[:, :, :2].square().sum(dim=1).sqrt().amax(dim=1)
    smaller_N = step * image_NCHW.shape[-1] / grid.shape[1] > 1.5
    image = torch.where(smaller_N[:, None, None, None], coarse, fine)
    labels = F.grid_sample(labels_NHW[:, None].float(), grid, mode="nearest", align_corners=False)
    return image, labels[:, 0].round().long()


def brighten(image_NCHW: Tensor, views: Views, draws: Draws) -> Tensor:
    """Contrast curve, inversion, bias field, blur, noise, gain; stays in [0, 1]."""

    def at(values_N: Tensor) -> Tensor:
        return values_N[:, None, None, None]

    count, _, side, _ = image_NCHW.shape
    out = image_NCHW.clamp(1e-6, 1) ** at(views.gamma_N)
    out = torch.lerp(out, 1 - out, at(views.invert_N))
    bias = smooth_noise(draws, views.cells_N.new_full((count,), 2.0), side, 2)
    out = out * torch.exp(at(views.bias_N) * bias[:, None])
    blurred = F.avg_pool2d(F.pad(out, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    out = torch.lerp(out, blurred, at(views.blur_N))
    out = out + at(views.noise_N) * draws.normal(count, 1, side, side)
    return (out * at(views.gain_N) + at(views.lift_N)).clamp(0, 1)


def rows(views: Views, start: int, end: int) -> Views:
    """The views of images ``start`` to ``end``."""
    return Views(**{f.name: getattr(views, f.name)[start:end] for f in fields(views)})
