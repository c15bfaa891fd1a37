"""Answers of the shipped weights stay what they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import golden_answers

# Machines round differently; on one machine answers are the same bit for bit.
LEAST_EQUAL = 0.999


def test_answers_of_the_shipped_weights_are_the_golden_ones(tmp_path: Path) -> None:
    engine = golden_answers.engine(tmp_path)
    with np.load(golden_answers.FILE) as golden:
        expected = dict(golden)
    equal = {}
    for request in golden_answers.requests():
        labels = engine.segment(request).labels
        equal[request.request_id] = float((labels == expected[request.request_id]).mean())
    assert set(equal) == set(expected)
    differing = {name: share for name, share in equal.items() if share < LEAST_EQUAL}
    assert not differing
