"""Qwen3-VL's vision tower on images of one size: a whole batch at once, nothing read back.

The library packs images of any sizes into one sequence and attends to them one by one, in a loop
whose lengths it reads from the device. Ours are all of one size, so that the batch is an axis, and
where patches lie is known beforehand. Layers and weights are the library's.

Axes: B images, T patches in merge order, M merged tokens, L DeepStack layers, H heads, D features.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchGrid(nn.Module):
    """Where the patches of a square image lie.

    Its buffers follow the module's device and are not stored.

    Attributes:
        taps_TN: cells of the learnt position table around each patch, N of them.
        weights_TN: their weights.
        cos_TD, sin_TD: of the rotary angles of each patch, over one head.
    """

    taps_TN: Tensor
    weights_TN: Tensor
    cos_TD: Tensor
    sin_TD: Tensor

    def __init__(self, tower: Any, side: int) -> None:
        """``side`` of the image in patches, for the library's ``tower``."""
        super().__init__()
        row_T, column_T = merge_order(side, tower.spatial_merge_size)
        taps, weights = _interpolation(row_T, column_T, side, tower.num_grid_per_side)
        inverse_frequencies = tower.rotary_pos_emb.inv_freq
        angles = [place[:, None].float() * inverse_frequencies for place in (row_T, column_T)]
        angles_TD = torch.cat(angles * 2, dim=1)
        for name, value in (
            ("taps_TN", taps),
            ("weights_TN", weights),
            ("cos_TD", angles_TD.cos()),
            ("sin_TD", angles_TD.sin()),
        ):
            self.register_buffer(name, value, persistent=False)

    def positions(self, table: nn.Embedding) -> Tensor:
        """Learnt position embeddings at the patches, (T, D)."""
        embedded_TND: Tensor = table(self.taps_TN)
        return (embedded_TND * self.weights_TN[..., None]).sum(1).to(table.weight.dtype)

    def rotate(self, x_BTHD: Tensor) -> Tensor:
        """Turn queries or keys by their patches' angles, in fp32; the dtype stays."""
        cos, sin = self.cos_TD[:, None].float(), self.sin_TD[:, None].float()
        wide = x_BTHD.float()
        first, second = wide.chunk(2, dim=-1)
        turned = torch.cat((-second, first), dim=-1)
        return (wide * cos + turned * sin).to(x_BTHD.dtype)


def see(tower: Any, grid: PatchGrid, patches_BTD: Tensor) -> tuple[Tensor, Tensor]:
    """Run ``tower`` on the flattened patches of B images.

    Returns:
        Merged tokens, (B, M, D), and DeepStack features, (L, B, M, D).
    """
    hidden = _embed(tower, patches_BTD) + grid.positions(tower.pos_embed)
    deepstack = []
    for index, block in enumerate(tower.blocks):
        hidden = hidden + _attend(block.attn, block.norm1(hidden), grid)
        hidden = hidden + block.mlp(block.norm2(hidden))
        if index in tower.deepstack_visual_indexes:
            which = tower.deepstack_visual_indexes.index(index)
            deepstack.append(_merge(tower.deepstack_merger_list[which], hidden))
    return _merge(tower.merger, hidden), torch.stack(deepstack)


def merge_order(side: int, merge: int) -> tuple[Tensor, Tensor]:
    """Row and column of each patch of a square, (T,); those that are merged follow each other."""
    cell = torch.arange(side**2).reshape(side // merge, merge, side // merge, merge)
    cell_T = cell.transpose(1, 2).flatten()
    return torch.div(cell_T, side, rounding_mode="floor"), cell_T % side


def _embed(tower: Any, patches_BTD: Tensor) -> Tensor:
    projection = tower.patch_embed.proj
    if tower.training:
        # Kernel and stride are one patch, so it is a matrix product, in a quarter of the time.
        return F.linear(patches_BTD, projection.weight.flatten(1), projection.bias)
    # Answers stay, bit for bit, those of the convolution.
    hidden: Tensor = tower.patch_embed(patches_BTD.flatten(0, 1))
    return hidden.view(*patches_BTD.shape[:2], -1)


def _attend(attention: Any, x_BTD: Tensor, grid: PatchGrid) -> Tensor:
    qkv = attention.qkv(x_BTD).unflatten(-1, (3, attention.num_heads, -1))
    query_BTHD, key_BTHD, value_BTHD = qkv.unbind(2)
    out_BHTD = F.scaled_dot_product_attention(
        grid.rotate(query_BTHD).transpose(1, 2),
        grid.rotate(key_BTHD).transpose(1, 2),
        value_BTHD.transpose(1, 2),
        scale=attention.scaling,
    )
    out: Tensor = attention.proj(out_BHTD.transpose(1, 2).flatten(2))
    return out


def _merge(merger: Any, hidden_BTD: Tensor) -> Tensor:
    tokens: Tensor = merger(hidden_BTD)
    return tokens.view(hidden_BTD.shape[0], -1, tokens.shape[-1])


def _interpolation(
    row_T: Tensor, column_T: Tensor, side: int, table_side: int
) -> tuple[Tensor, Tensor]:
    """Cells of a square table around each patch, and their bilinear weights; corners meet."""
    (rows_TN, row_weights_TN), (columns_TN, column_weights_TN) = (
        _axis(place_T, side, table_side) for place_T in (row_T, column_T)
    )
    cells = rows_TN[:, :, None] * table_side + columns_TN[:, None]
    weights = row_weights_TN[:, :, None] * column_weights_TN[:, None]
    return cells.flatten(1), weights.flatten(1)


def _axis(place_T: Tensor, side: int, table_side: int) -> tuple[Tensor, Tensor]:
    """Cells below and above each place along one axis of the table, and their weights, (T, 2)."""
    at_T = place_T.float() * (table_side - 1) / max(side - 1, 1)
    below_T = at_T.floor()
    cells = torch.stack((below_T, below_T + 1), dim=1)
    weights = (1 - (at_T[:, None] - cells).abs()).clamp(min=0)
    return cells.long().clamp(0, table_side - 1), weights
