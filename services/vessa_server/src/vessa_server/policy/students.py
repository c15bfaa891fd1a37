"""What a student's mask counts, in the decoder's prompt and in the answer.

Label maps carry no confidence. Where VESSA's structures lie on the student's, both are likely to
be good, and the student's details are worth as much.

Axes: C classes, H W space.
"""

from __future__ import annotations

import numpy as np
import torch

from vessa_server.policy.answers import Bools, Floats, expected_iou, with_background
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


def with_more_own(prompt_CHW: Floats, own_CHW: Floats, policy: PolicyConfig) -> Floats:
    """A prompt with more of VESSA's own answer in it."""
    more: Floats = torch.lerp(
        torch.from_numpy(prompt_CHW), torch.from_numpy(own_CHW), policy.student.more
    ).numpy()
    return more


def prompt_logits(prompt_CHW: Floats, policy: PolicyConfig) -> Floats:
    """Logits of what stays as the prompt has it."""
    limit = policy.student.keep_logit
    logits: Floats = (
        torch.logit(torch.from_numpy(prompt_CHW), eps=1e-6).clamp(-limit, limit).numpy()
    )
    return logits


def elsewhere(agreement_C: Floats, policy: PolicyConfig) -> Bools:
    """Which structures VESSA segmented in another place than a student that knows the place, (C,).

    A structure of which VESSA is unsure, so that it stayed as it came, counts as agreement, too:
    where VESSA is lost it is lost for all of them.
    """
    known_C = agreement_C[~np.isnan(agreement_C)]
    if not len(known_C) or float(known_C.max()) < policy.student.same_place:
        return np.zeros(len(agreement_C), np.bool_)
    return agreement_C < np.float32(policy.student.elsewhere)


def answer_share(agreement_C: Floats, policy: PolicyConfig) -> float:
    """The student's share of the answer."""
    agreement = torch.from_numpy(agreement_C)
    known = agreement[~agreement.isnan()]
    if not len(known):
        return 0.0
    low, high = policy.student.agreement
    half = float(known.quantile(0.5, interpolation="higher"))
    return policy.student.most * min(max((half - low) / (high - low), 0.0), 1.0)


def agreement(logits_CHW: Floats, student_CHW: Floats) -> Floats:
    """IoU of each structure in VESSA's answer and the student's map, (C,); NaN where in neither."""
    probability = torch.from_numpy(with_background(logits_CHW))
    winner_HW = probability.max(dim=0).indices
    own_CHW = winner_HW == torch.arange(1, len(logits_CHW) + 1)[:, None, None]
    theirs_CHW = torch.from_numpy(student_CHW) > 0.5
    shared_C = (own_CHW & theirs_CHW).sum(dim=(1, 2))
    union_C = (own_CHW | theirs_CHW).sum(dim=(1, 2))
    iou_C: Floats = (shared_C / union_C).numpy()
    return iou_C


def with_student(logits_CHW: Floats, student_CHW: Floats, share: float) -> Floats:
    """Probabilities of background and classes, with the student's share, (1 + C, H, W)."""
    student = torch.from_numpy(student_CHW)
    own = torch.from_numpy(with_background(logits_CHW))
    background_1HW = 1 - student.sum(dim=0, keepdim=True)
    mixed: Floats = torch.lerp(own, torch.cat([background_1HW, student]), share).numpy()
    return mixed
