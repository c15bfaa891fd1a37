"""What keys of a configuration have in common."""

from __future__ import annotations

import math

from pydantic import ConfigDict

STRICT = ConfigDict(extra="forbid")


class ConfigError(ValueError):
    """The configuration is wrong; the message names the key and what was expected."""


def check_counts(config: object, *names: str) -> None:
    """Numbers of things, or tuples of such, are positive.

    Raises:
        ValueError: one is not.
    """
    for name in names:
        value = getattr(config, name)
        if min(value if isinstance(value, tuple) else (value,)) < 1:
            raise ValueError(f"{name}: {value}, expected at least 1")


def check_at_least(config: object, low: float, *names: str) -> None:
    """Numbers are finite, and not below ``low``.

    Raises:
        ValueError: one is not.
    """
    for name in names:
        value = getattr(config, name)
        if not low <= value < math.inf:
            raise ValueError(f"{name}: {value}, expected at least {low:g}")


def check_fractions(config: object, *names: str) -> None:
    """Shares are between 0 and 1.

    Raises:
        ValueError: one is not.
    """
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"{name}: {getattr(config, name)}, expected a fraction, 0..1")


def check_window(window: tuple[float, float]) -> None:
    """The lower end comes first.

    Raises:
        ValueError: it does not, or an end is not finite.
    """
    if not -math.inf < window[0] < window[1] < math.inf:
        raise ValueError(f"window: {window}, expected two numbers, the lower one first")
