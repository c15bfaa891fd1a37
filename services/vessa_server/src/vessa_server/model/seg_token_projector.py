"""From the hidden state of ``<SEG>`` to one sparse prompt embedding (LISA; VESSA, section 3)."""

from __future__ import annotations

from torch import Tensor, nn


class SegTokenProjector(nn.Module):
    """Two-layer MLP from the VLM's hidden size to the prompt encoder's."""

    def __init__(self, hidden_size: int, d_model: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(hidden_size),
            nn.Linear(hidden_size, d_model),
            nn.GELU(),
            nn.Linear(d_model, d_model),
        )

    def forward(self, hidden_PD: Tensor) -> Tensor:
        """Return (P, 1, d_model): one token for each image-class pair."""
        out: Tensor = self.layers(hidden_PD)
        return out[:, None]
