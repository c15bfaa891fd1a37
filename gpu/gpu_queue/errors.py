"""What goes wrong with the queue, in one line for whoever runs it."""

from __future__ import annotations


class QueueError(ValueError):
    """A job cannot be prepared, rehearsed or collected; the message says what was expected."""
