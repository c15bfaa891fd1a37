"""Template matching: steps 1, *Retrieve*, and 2, *Match*.

Axes: B images, P image-class pairs, K templates, D features, H W space at stride 8,
Q and R flattened query and template positions, N points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vessa_server.matching.attention import attend
from vessa_server.model.precision import in_full_precision

# Labels of SAM's point prompts.
NOT_A_POINT, NEGATIVE, POSITIVE, BOX_TOP_LEFT, BOX_BOTTOM_RIGHT = -1, 0, 1, 2, 3
# Neighbourhood, in cells, in which only one positive point is placed.
SUPPRESSION_RADIUS = 2
# A prior whose maximum is below this says that the class is not in the image.
ABSENT_BELOW = 0.15


@dataclass(frozen=True)
class MatchPrompts:
    """What dense matching tells the decoder.

    Attributes:
        prior_P1HW: probability, in (0, 1), that the class covers each cell.
        points_PN2: x, y in pixels of the canvas.
        labels_PN: SAM's point labels; -1 where there is no point.
    """

    prior_P1HW: Tensor
    points_PN2: Tensor
    labels_PN: Tensor


class TemplateMatcher(nn.Module):
    """Finds the templates that fit an image, and where their structure is in it."""

    def __init__(self, *, temperature_init: float, num_positive_points: int, stride: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(1.0 / temperature_init)))
        self.num_positive_points = num_positive_points
        self.stride = stride

    @staticmethod
    @in_full_precision
    def describe(match_KDHW: Tensor, mask_K1HW: Tensor) -> Tensor:
        """Retrieval embedding of templates, (K, 2, D): image level and masked foreground."""
        return torch.stack(
            [
                F.normalize(match_KDHW.mean(dim=(2, 3)), dim=1),
                foreground_prototype(match_KDHW, mask_K1HW),
            ],
            dim=1,
        )

    @staticmethod
    @in_full_precision
    def retrieval_scores(query_match_BDHW: Tensor, template_K2D: Tensor) -> Tensor:
        """Similarity of each image to each template, in [-1, 1].

        The mean of two cosines: of the image-level embeddings, which carry the view, and of
        the template's foreground prototype with the best-matching cells of the image, which
        carries the structure.

        Returns:
            (B, K) scores.
        """
        query_BD = F.normalize(query_match_BDHW.mean(dim=(2, 3)), dim=1)
        image_level_BK = query_BD @ template_K2D[:, 0].T
        cells_BKQ = torch.einsum("bdq,kd->bkq", query_match_BDHW.flatten(2), template_K2D[:, 1])
        top = max(1, cells_BKQ.shape[2] // 64)
        structure_BK = cells_BKQ.topk(top, dim=2).values.mean(dim=2)
        return (image_level_BK + structure_BK) / 2

    @staticmethod
    @in_full_precision
    def retrieval_scores_of_pairs(query_PDHW: Tensor, template_PM2D: Tensor) -> Tensor:
        """As :meth:`retrieval_scores`, of each pair to templates of its own, (P, M)."""
        query_PD = F.normalize(query_PDHW.mean(dim=(2, 3)), dim=1)
        image_level_PM = torch.einsum("pd,pmd->pm", query_PD, template_PM2D[:, :, 0])
        cells_PMQ = torch.einsum("pdq,pmd->pmq", query_PDHW.flatten(2), template_PM2D[:, :, 1])
        top = max(1, cells_PMQ.shape[2] // 64)
        return (image_level_PM + cells_PMQ.topk(top, dim=2).values.mean(dim=2)) / 2

    @in_full_precision
    def propagate(
        self, query_PDHW: Tensor, template_PKDHW: Tensor, template_mask_PK1HW: Tensor
    ) -> Tensor:
        """Dense matching: carry the templates' labels over to the image.

        Every cell of the image attends to all foreground and background cells of its
        templates; the attention-weighted label is the similarity prior. The attention matrix,
        of gigabytes on large canvases, is never whole in memory. In fp32 also under autocast:
        bf16 rounds a prior near 1 to 1, whose logit is infinite.

        Returns:
            (P, 1, H, W) prior in [0, 1].
        """
        height, width = query_PDHW.shape[2:]
        scale = self.log_scale.float().clamp(max=math.log(100.0)).exp()
        query_PQD = scale * query_PDHW.flatten(2).transpose(1, 2)
        key_PRD = template_PKDHW.permute(0, 1, 3, 4, 2).flatten(1, 3)
        prior_PQ = attend(query_PQD, key_PRD, template_mask_PK1HW.flatten(1))
        return prior_PQ.view(-1, 1, height, width)

    def prompts(self, prior_P1HW: Tensor) -> MatchPrompts:
        """Positive points at the peaks, one negative at the trough, and a box."""
        prior = prior_P1HW.detach().float()
        height, width = prior.shape[2:]
        flat_PQ = prior.flatten(1)
        best_P, where_P = flat_PQ.max(dim=1)
        present_P = best_P >= ABSENT_BELOW
        points, labels = [], []
        remaining = flat_PQ.clone()
        for index in range(self.num_positive_points):
            value_P, cell_P = (best_P, where_P) if index == 0 else remaining.max(dim=1)
            valid_P = present_P & (value_P >= best_P / 2)
            points.append(self._to_pixels(cell_P, width))
            labels.append(torch.where(valid_P, POSITIVE, NOT_A_POINT))
            remaining = _suppress(remaining, cell_P, height, width)
        points.append(self._to_pixels(flat_PQ.argmin(dim=1), width))
        labels.append(torch.where(present_P, NEGATIVE, NOT_A_POINT))
        for corner, label in zip(
            _box_corners(prior[:, 0] >= (best_P / 2)[:, None, None]),
            (BOX_TOP_LEFT, BOX_BOTTOM_RIGHT),
            strict=True,
        ):
            points.append(corner.float() * self.stride)
            labels.append(torch.where(present_P, label, NOT_A_POINT))
        return MatchPrompts(
            prior_P1HW=prior_P1HW,
            points_PN2=torch.stack(points, dim=1),
            labels_PN=torch.stack(labels, dim=1),
        )

    def _to_pixels(self, cell_P: Tensor, width: int) -> Tensor:
        x = cell_P % width
        y = torch.div(cell_P, width, rounding_mode="floor")
        return (torch.stack((x, y), dim=1).float() + 0.5) * self.stride


@in_full_precision
def foreground_prototype(match_KDHW: Tensor, mask_K1HW: Tensor) -> Tensor:
    """Mask-pooled, unit-length foreground feature of each template, (K, D)."""
    weight = mask_K1HW / mask_K1HW.sum(dim=(2, 3), keepdim=True).clamp(min=1e-6)
    return F.normalize((match_KDHW * weight).sum(dim=(2, 3)), dim=1)


def _suppress(flat_PQ: Tensor, cell_P: Tensor, height: int, width: int) -> Tensor:
    rows = torch.arange(height, device=flat_PQ.device).repeat_interleave(width)
    columns = torch.arange(width, device=flat_PQ.device).repeat(height)
    row_P = torch.div(cell_P, width, rounding_mode="floor")
    near = ((rows - row_P[:, None]).abs() <= SUPPRESSION_RADIUS) & (
        (columns - (cell_P % width)[:, None]).abs() <= SUPPRESSION_RADIUS
    )
    return flat_PQ.masked_fill(near, -1.0)


def _box_corners(mask_PHW: Tensor) -> tuple[Tensor, Tensor]:
    """First and one-past-last x, y of each mask, in cells."""
    rows, columns = mask_PHW.any(dim=2).int(), mask_PHW.any(dim=1).int()
    height, width = mask_PHW.shape[1:]
    top_left = torch.stack((columns.argmax(dim=1), rows.argmax(dim=1)), dim=1)
    bottom_right = torch.stack(
        (width - columns.flip(1).argmax(dim=1), height - rows.flip(1).argmax(dim=1)), dim=1
    )
    return top_left, bottom_right
