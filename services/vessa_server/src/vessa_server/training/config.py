"""Configuration of Stage 1 training."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """One Stage 1 run. An episode step holds ``groups`` tasks of ``images_per_group`` images."""

    steps: int
    groups: int = 2
    images_per_group: int = 4
    max_classes: int = 2
    max_templates: int = 2
    synthetic_weight: float = 5.0
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_steps: int = 100
    gradient_clip: float = 1.0
    ema_decay: float = 0.998
    retrieval_probability: float = 0.5
    language_weight: float = 0.1
    prior_weight: float = 0.5
    zoom_range: tuple[float, float] = (0.5, 1.6)
    # Strength of each image's own variation, and by how much single structures change their
    # intensity (as in SynthSeg).
    variation: float = 1.0
    structure_shift: float = 0.0
    iou_weight: float = 0.5
    presence_weight: float = 0.2
    seed: int = 0
    checkpoint_minutes: float = 3.0
    log_every: int = 20
    image_every: int = 500

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps {self.steps}: expected at least 1")
        if self.images_per_group <= self.max_templates:
            raise ValueError(
                f"images_per_group {self.images_per_group}: expected more than max_templates, "
                f"{self.max_templates}, since an image is no template of itself"
            )
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay {self.ema_decay}: expected in [0, 1)")
