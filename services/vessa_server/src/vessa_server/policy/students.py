"""What a student's mask counts in the decoder's prompt, and where it stays as it is.

Axes: C classes, H W space.
"""

from __future__ import annotations

import torch

from vessa_server.policy.answers import Floats, expected_iou
from vessa_server.policy.config import PolicyConfig


def prompt(
    student_CHW: Floats, own_CHW: Floats, policy: PolicyConfig, *, is_label_map: bool
) -> Floats:
    """The decoder's prompt: the student's probabilities with some of VESSA's own.

    VESSA's share is small where the student is sure of a structure, larger where it is not.
    """
    if not policy.uses("own_share"):
        return student_CHW
    student = torch.from_numpy(student_CHW)
    share: torch.Tensor | float = policy.student.label_map_share
    if not is_label_map:
        background_1HW = (1 - student.sum(dim=0, keepdim=True)).clamp(min=0)
        sure_C = torch.from_numpy(expected_iou(torch.cat([background_1HW, student]).numpy()))
        share = (0.5 - sure_C).clamp(*policy.student.share)[:, None, None]
    mixed: Floats = torch.lerp(student, torch.from_numpy(own_CHW), share).numpy()
    return mixed


def prompt_logits(prompt_CHW: Floats, policy: PolicyConfig) -> Floats:
    """Logits of what stays as the prompt has it."""
    limit = policy.student.keep_logit
    logits: Floats = (
        torch.logit(torch.from_numpy(prompt_CHW), eps=1e-6).clamp(-limit, limit).numpy()
    )
    return logits
