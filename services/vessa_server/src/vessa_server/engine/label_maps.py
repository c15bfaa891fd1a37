"""What a student's label map counts in the answer.

Label maps do not say how sure they are. Where VESSA's structures lie on the student's, both are
likely to be good, and the student's details are worth as much. The numbers were chosen on ACDC's
validation patients, on corrupted label maps and on predictions of a student that begins to learn.

Axes: C classes, H W space.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vessa_server.engine.quality import with_background

# Agreement (IoU) below which a structure was found elsewhere or not at all, and that of another
# structure from which the student is believed then. One of which VESSA is unsure, so that it stayed
# as it came, counts as well: where VESSA is lost it is lost for all of them.
ELSEWHERE, KNOWS_THE_PLACE = 0.02, 0.7
# Between these agreements, which half of the structures reach, the student's share grows.
AGREEMENT_RANGE, MOST_SHARE = (0.7, 0.85), 0.4


def heard(logits_CHW: Tensor, prompt_CHW: Tensor, student_CHW: Tensor) -> Tensor:
    """Probabilities of background and classes, (1 + C, H, W), with what the student's map counts.

    Args:
        logits_CHW: of the classes, as VESSA has them; of those that stay, as the prompt has them.
        prompt_CHW: of the classes, as the prompt has them.
        student_CHW: the student's label map, one-hot, without background.
    """
    agreement_C = _agreement(logits_CHW, student_CHW)
    known_C = agreement_C[~agreement_C.isnan()]
    if not len(known_C):
        return with_background(logits_CHW)
    if float(known_C.max()) >= KNOWS_THE_PLACE:
        elsewhere_C = agreement_C < ELSEWHERE
        logits_CHW = torch.where(elsewhere_C[:, None, None], prompt_CHW, logits_CHW)
    low, high = AGREEMENT_RANGE
    half = float(known_C.quantile(0.5, interpolation="higher"))
    share = MOST_SHARE * min(max((half - low) / (high - low), 0.0), 1.0)
    background_1HW = 1 - student_CHW.sum(dim=0, keepdim=True)
    return torch.lerp(with_background(logits_CHW), torch.cat([background_1HW, student_CHW]), share)


def _agreement(logits_CHW: Tensor, student_CHW: Tensor) -> Tensor:
    """IoU of each structure in both, (C,); NaN where neither has it."""
    winner_HW = with_background(logits_CHW).max(dim=0).indices
    own_CHW = winner_HW == torch.arange(1, len(logits_CHW) + 1)[:, None, None]
    theirs_CHW = student_CHW > 0.5
    shared_C = (own_CHW & theirs_CHW).sum(dim=(1, 2))
    union_C = (own_CHW | theirs_CHW).sum(dim=(1, 2))
    return shared_C / union_C
