"""Whether VESSA is still of use: its labels against the teacher's, where the truth is known."""

from __future__ import annotations

from dataclasses import dataclass

# Comparisons in a row that VESSA must lose.
PATIENCE = 2


@dataclass(frozen=True)
class Trust:
    """What comparisons said so far.

    Attributes:
        lost: comparisons in a row in which VESSA's labels were no better than the teacher's.
        falls_from: update from which VESSA's weight falls; None as long as VESSA is of use.
    """

    lost: int = 0
    falls_from: int | None = None

    def after(self, step: int, *, teacher: float, vessa: float) -> Trust:
        """After another comparison of the Dice of both."""
        lost = 0 if vessa > teacher else self.lost + 1
        return Trust(lost, step if lost >= PATIENCE else None)
