"""How long torch's threads spin before they sleep."""

from __future__ import annotations

import os

# How often they look for their next work. OpenMP's default is a hundred times as much: on cores
# that other programs need too, they then wait for each other at every layer, for as long as the
# system lets the others run. Much less, and they sleep between the layers of one forward
# (benchmarks/shared_cores.py).
SPINS = "3000"


def spin_briefly() -> None:
    """For this process; to be called before torch is imported. The environment goes first."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
