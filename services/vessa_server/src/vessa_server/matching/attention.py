"""Attention to values of one channel, whose matrix of weights is never whole in memory.

Axes: P pairs, Q queries, R keys, D features, C channels, N queries of one step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Weights that a CPU computes at once: 2 MiB, which its caches hold.
STEP_ENTRIES = 2**19
# Fused attention on a GPU wants values of a multiple of so many channels.
VALUE_CHANNELS = 8


def attend(query_PQD: Tensor, key_PRD: Tensor, value_PR: Tensor) -> Tensor:
    """Values weighted by the softmax, over R, of the products of queries and keys; (P, Q)."""
    if query_PQD.device.type == "cpu":
        return attend_in_steps(query_PQD, key_PRD, value_PR)
    return attend_fused(query_PQD, key_PRD, value_PR)


def attend_fused(query_PQD: Tensor, key_PRD: Tensor, value_PR: Tensor) -> Tensor:
    """:func:`attend` by PyTorch's fused kernels."""
    value_PRC = F.pad(value_PR[..., None], (0, VALUE_CHANNELS - 1))
    # The kernels that do not hold the whole matrix want features next to each other.
    query, key, value = (t[:, None].contiguous() for t in (query_PQD, key_PRD, value_PRC))
    return F.scaled_dot_product_attention(query, key, value, scale=1.0)[:, 0, :, 0]


def attend_in_steps(query_PQD: Tensor, key_PRD: Tensor, value_PR: Tensor) -> Tensor:
    """:func:`attend`, a few queries of one pair at a time.

    The way of a CPU, whose fused attention takes longer and wants as many channels of values as
    of keys. Weights are computed anew for the gradients.
    """
    out: Tensor = _AttentionInSteps.apply(query_PQD, key_PRD, value_PR)
    return out


class _AttentionInSteps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query_PQD: Tensor, key_PRD: Tensor, value_PR: Tensor) -> Tensor:
        out_PQ = query_PQD.new_empty(query_PQD.shape[:2])
        for pair, step, weights_NR, _ in _steps(query_PQD, key_PRD):
            torch.mv(weights_NR, value_PR[pair], out=out_PQ[pair, step])
        ctx.save_for_backward(query_PQD, key_PRD, value_PR, out_PQ)
        return out_PQ

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_PQ: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query_PQD, key_PRD, value_PR, out_PQ = ctx.saved_tensors
        of_query, of_key, of_value = map(torch.zeros_like, (query_PQD, key_PRD, value_PR))
        for pair, step, weights_NR, scratch_NR in _steps(query_PQD, key_PRD):
            gradient_N = gradient_PQ[pair, step]
            of_value[pair].addmv_(weights_NR.T, gradient_N)
            # Of the products: weight times how far its value is from the mean that came out.
            torch.sub(value_PR[pair], out_PQ[pair, step, None], out=scratch_NR)
            of_products_NR = weights_NR.mul_(scratch_NR).mul_(gradient_N[:, None])
            of_query[pair, step].addmm_(of_products_NR, key_PRD[pair])
            of_key[pair].addmm_(of_products_NR.T, query_PQD[pair, step])
        return of_query, of_key, of_value


def _steps(query_PQD: Tensor, key_PRD: Tensor) -> Iterator[tuple[int, slice, Tensor, Tensor]]:
    """Pair, queries, weights, and as much scratch space, of each step.

    The memory is that of the step before: to get it anew takes several times the computation.
    """
    queries, keys = query_PQD.shape[1], key_PRD.shape[1]
    longest = max(1, min(queries, STEP_ENTRIES // keys))
    products, weights = query_PQD.new_empty(2, longest, keys)
    for pair in range(query_PQD.shape[0]):
        for first in range(0, queries, longest):
            step = slice(first, min(first + longest, queries))
            rows = slice(0, step.stop - first)
            torch.mm(query_PQD[pair, step], key_PRD[pair].T, out=products[rows])
            torch.softmax(products[rows], dim=-1, out=weights[rows])
            yield pair, step, weights[rows], products[rows]
