"""Schedules over the run."""

from __future__ import annotations

import math

from ssl_trainer.config import AssistantConfig, UniMatchConfig

# Fraction of the run in which VESSA's weight falls once its labels are of no use any more.
FALL = 0.2


def poly(step: int, steps: int, power: float) -> float:
    """Polynomial decay of the learning rate, from 1 to 0."""
    return float((1 - step / steps) ** power)


def consistency_weight(step: int, steps: int, config: UniMatchConfig) -> float:
    """λ_u(t): rises as exp(-5 (1 - t)²) (Laine and Aila, 2017), then stays."""
    if step >= config.ramp_up * steps:
        return config.weight
    return config.weight * math.exp(-5 * (1 - step / (config.ramp_up * steps)) ** 2)


def assistant_weight(
    step: int, steps: int, config: AssistantConfig, falls_from: int | None = None
) -> float:
    """λ_v(t): a cosine from ``weight_start`` down to ``weight_end``.

    With ``auto`` it stays until ``falls_from``, and has fallen to 0 a fifth of the run later.
    """
    if config.weight_end != "auto":
        begin, length, end = 0, steps * config.decay_end, config.weight_end
    elif falls_from is not None:
        begin, length, end = falls_from, max(FALL * steps, config.ahead), 0.0
    else:
        return config.weight_start
    if step >= begin + length:
        return end
    blend = 0.5 * (1 + math.cos(math.pi * max(0, step - begin) / length))
    return end + (config.weight_start - end) * blend


def teacher_share(step: int, steps: int, config: AssistantConfig) -> float:
    """Share of the teacher in VESSA's labels: rises evenly from 0, then stays."""
    if step >= steps * config.teacher_share_at:
        return config.teacher_share
    return config.teacher_share * step / (steps * config.teacher_share_at)


def feedback(step: int, steps: int, config: AssistantConfig) -> bool:
    """Whether student masks are sent as prompts at ``step``."""
    return step >= config.feedback_start * steps
