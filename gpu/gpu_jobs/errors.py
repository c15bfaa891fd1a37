"""How a job, or what is done for it here, ends that cannot go on: one line, and an exit code."""

from __future__ import annotations

from typing import Any

# 1 is Python's own, for what nobody thought of.
WRONG_INPUT, NO_GPU, TOO_SLOW, NOT_FINITE, OUT_OF_TIME, FAILED_CHECK = 2, 3, 4, 5, 6, 7


class JobError(ValueError):
    """The message says what was expected; ``code`` is the exit code.

    ``found`` is what a check measured all the same.
    """

    def __init__(
        self, message: str, code: int = WRONG_INPUT, found: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.found = found or {}
