"""How many of the answers that VESSA was asked for came, of all processes."""

from __future__ import annotations

import torch

from ssl_trainer.assistant.assistant import Assistant
from vessa_common.processes import Processes


def window(assistant: Assistant, processes: Processes) -> tuple[int, int]:
    """Answers asked for, and those that came, since the log's last line."""
    own = torch.tensor([assistant.counts])
    requested, received = processes.gather(own).sum(dim=0).tolist()
    return requested, received


def log_line(assistant: Assistant, processes: Processes) -> dict[str, float]:
    """The same and their share, where any were asked for; counting begins anew."""
    requested, received = window(assistant, processes)
    assistant.counts = 0, 0
    if not requested:
        return {}
    names = ("assistant/requested", "assistant/received", "assistant/answered")
    return dict(zip(names, (requested, received, received / requested), strict=True))
