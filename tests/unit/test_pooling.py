"""Labels of teacher and VESSA for the same image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssl_trainer.methods.unimatch.pooling import pooled


@given(seed=st.integers(0, 10_000), share=st.floats(0.01, 1))
def test_pooled_labels_are_those_of_the_mean_distribution(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    teacher = rng.dirichlet(np.ones(4), 9).T.reshape(4, 3, 3)
    labels, sure = rng.integers(0, 4, (3, 3)), rng.uniform(0.5, 1, (3, 3))
    vessa, confidence, maps = (torch.from_numpy(a)[None] for a in (labels, sure, teacher))
    found, confidence = pooled(vessa, confidence, maps, share)
    for at in np.ndindex(3, 3):
        own, other = int(labels[at]), int(teacher[:, *at].argmax())
        answer = np.zeros(4)
        answer[own] = sure[at]
        if other != own:
            answer[other] = 1 - sure[at]
        mean = (1 - share) * answer + share * teacher[:, *at]
        best = max(own, other, key=lambda label: mean[label])
        assert found[0, *at] == best
        assert float(confidence[0, *at]) == pytest.approx(mean[best], abs=1e-6)


def test_without_the_teachers_share_vessas_labels_stay() -> None:
    """However sure the teacher is of another label, and however unsure VESSA of its own."""
    labels, confidence = torch.zeros(1, 1, 1, dtype=torch.long), torch.full((1, 1, 1), 0.4)
    maps = torch.tensor([0.1, 0.9]).view(1, 2, 1, 1)
    for share, label, sure in ((0.0, 0, 0.4), (0.5, 1, 0.75)):
        found, certainty = pooled(labels, confidence, maps, share)
        assert found.item() == label
        assert certainty.item() == pytest.approx(sure)
