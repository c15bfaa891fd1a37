"""Schedules over the run."""

from __future__ import annotations

import math

from ssl_trainer.config import AssistantConfig


def poly(step: int, steps: int, power: float) -> float:
    """Polynomial decay of the learning rate, from 1 to 0."""
    return float((1 - step / steps) ** power)


def ramp_up(step: int, steps: int) -> float:
    """Share of a consistency weight: a Gaussian that rises over the whole run, to 1 at its end.

    As in SSL4MIS, where it takes the 30,000 updates of a run.
    """
    return math.exp(-5 * (1 - min(1.0, step / steps)) ** 2)


def assistant_weight(step: int, steps: int, config: AssistantConfig) -> float:
    """λ_v(t): a cosine from ``weight`` at the first step to 0 at ``decay_end``."""
    if step >= assisted(steps, config):
        return 0.0
    return config.weight * 0.5 * (1 + math.cos(math.pi * step / (config.decay_end * steps)))


def assisted(steps: int, config: AssistantConfig) -> int:
    """Updates in which VESSA's labels count: the first ones of the run."""
    return math.ceil(config.decay_end * steps) if config.weight else 0


def teacher_share(step: int, steps: int, config: AssistantConfig) -> float:
    """Share of the teacher in VESSA's labels: rises evenly from 0 while they count."""
    return config.teacher_share * min(1.0, step / (config.decay_end * steps))


def feedback(step: int, steps: int, config: AssistantConfig) -> bool:
    """Whether the teacher's probabilities are sent as prompts at ``step``."""
    return step >= config.feedback_start * steps
