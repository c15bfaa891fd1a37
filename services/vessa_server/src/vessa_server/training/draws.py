"""Random numbers keyed by (seed, step): the same on every device, and without a state.

A counter is hashed (PCG's output permutation, O'Neill 2014, on 32-bit words held in 64 bits), so
that pixels can be drawn where they are needed, and a batch drawn again is the same batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
# Uniform numbers keep the upper bits that a float32 holds exactly.
_BITS = 24


class Draws:
    """Streams of random tensors; each call takes the next stream."""

    def __init__(self, seed: int, step: int, device: torch.device) -> None:
        """``seed`` and ``step`` are what the numbers depend on, beside the order of the calls."""
        self.key = _hash_int(_hash_int(seed) ^ (step & _WORD)) ^ _hash_int(step >> 32)
        self.device = device
        self.stream = 0

    def uniform(self, *shape: int) -> Tensor:
        """Numbers in [0, 1), float32; bit for bit the same on every device."""
        self.stream += 1
        offset = _hash_int(self.key ^ _hash_int(self.stream))
        counter = torch.arange(math.prod(shape), device=self.device)
        word = _hash(_hash(counter ^ offset) + offset)
        scaled = (word >> (32 - _BITS)).to(torch.float32) * 2.0**-_BITS
        return scaled.view(shape)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers (Box and Muller), float32; devices differ by rounding."""
        count = math.prod(shape)
        half = (count + 1) // 2
        pair = self.uniform(2, half)
        radius = torch.sqrt(-2.0 * torch.log(1.0 - pair[0]))
        angle = 2.0 * math.pi * pair[1]
        both = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)])
        return both[:count].view(shape)


def _hash(word: Tensor) -> Tensor:
    """32-bit words in int64; no product leaves 63 bits."""
    state = ((word & _WORD) * 747796405 + 2891336453) & _WORD
    word = ((state >> ((state >> 28) + 4)) ^ state) * 277803737 & _WORD
    return (word >> 22) ^ word


def _hash_int(word: int) -> int:
    state = ((word & _WORD) * 747796405 + 2891336453) & _WORD
    word = ((state >> ((state >> 28) + 4)) ^ state) * 277803737 & _WORD
    return (word >> 22) ^ word
