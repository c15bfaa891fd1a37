"""Settings given on the command line, and the learning rate that goes with a batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import yaml

from gpu_jobs.errors import JobError

# The recipes' learning rates are for batches of so many tasks. Adam's noise falls with the root of
# the batch, so the rate grows with it; beyond the cap nobody has tried.
RECIPE_GROUPS, RATE_CAP = 4, 2e-3


def parsed(changes: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` pairs, values as in YAML.

    Raises:
        JobError: one has no ``=``.
    """
    found: dict[str, Any] = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not (key and equals):
            raise JobError(f"setting {change!r}: expected KEY=VALUE")
        found[key] = yaml.safe_load(value)
    return found


def scaled_rate(rate: float, groups: int) -> float:
    """Learning rate for batches of ``groups`` tasks, from the recipe's."""
    return float(f"{min(RATE_CAP, rate * math.sqrt(groups / RECIPE_GROUPS)):.3g}")


def changed(settings: dict[str, Any], changes: dict[str, Any], rate: float) -> dict[str, Any]:
    """``settings`` with ``changes``; the learning rate, from the recipe's ``rate``, follows."""
    if "groups" in changes and "learning_rate" not in changes:
        changes = {**changes, "learning_rate": scaled_rate(rate, int(changes["groups"]))}
    return {**settings, **changes}
