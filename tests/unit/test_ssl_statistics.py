"""Gains over patients, against SciPy, brute force, and what must hold of any gain."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ssl_statistics import MOST, bootstrap_interval, gain, permutation_p, wilcoxon_p

VALUES = st.lists(st.floats(-0.5, 0.5), min_size=1, max_size=9)
# Few different ones, so that some are equal.
COARSE = st.lists(st.integers(-3, 3).map(lambda n: n / 10), min_size=1, max_size=9)


@given(VALUES | COARSE)
def test_permutation_p_is_the_share_of_signs_with_such_a_mean(values: list[float]) -> None:
    sums = [
        abs(sum(s * v for s, v in zip(signs, values, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(values))
    ]
    expected = np.mean([total >= abs(sum(values)) - 1e-12 for total in sums])
    assert permutation_p(np.array(values)) == pytest.approx(expected)


@given(st.integers(0, 2**32 - 1), st.integers(3, 9))
def test_p_are_those_of_scipy(seed: int, count: int) -> None:
    gains = np.random.default_rng(seed).normal(0.2, 1, count)
    assert wilcoxon_p(gains) == pytest.approx(stats.wilcoxon(gains, method="exact").pvalue)
    found = stats.permutation_test(
        (gains,), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert permutation_p(gains) == pytest.approx(found.pvalue)


@given(COARSE)
def test_wilcoxon_of_equal_gains_is_that_of_all_signs_of_their_ranks(values: list[float]) -> None:
    some = [value for value in values if value]
    ranks = stats.rankdata(np.abs(some)) if some else []
    observed = abs(sum(np.sign(v) * r for v, r in zip(some, ranks, strict=True)))
    totals = [
        abs(sum(s * r for s, r in zip(signs, ranks, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(some))
    ]
    assert wilcoxon_p(np.array(values)) == pytest.approx(np.mean(np.array(totals) >= observed))


def test_the_interval_is_that_of_scipy_and_the_same_each_time() -> None:
    gains = np.random.default_rng(1).normal(0.03, 0.05, 10)
    low, high = bootstrap_interval(gains)
    assert (low, high) == bootstrap_interval(gains)
    options = {"method": "BCa", "n_resamples": 10_000, "rng": np.random.default_rng(2)}
    expected = stats.bootstrap((gains,), np.mean, **options).confidence_interval
    assert low == pytest.approx(expected.low, abs=0.002)
    assert high == pytest.approx(expected.high, abs=0.002)
    assert low < gains.mean() < high


def test_too_many_patients_to_try_all_signs_are_refused() -> None:
    with pytest.raises(ValueError, match=str(MOST)):
        permutation_p(np.ones(MOST + 1))


def test_a_gain_is_of_the_seeds_that_both_have_each_patient_once() -> None:
    scores = {0: {"a": 0.9, "b": 0.5, "c": 0.6}, 1: {"a": 0.7, "b": 0.5, "c": 0.6}, 2: {"a": 0.0}}
    rival = {0: {"a": 0.5, "b": 0.6, "c": 0.4}, 1: {"a": 0.5, "b": 0.6, "c": 0.4}, 3: {"a": 1.0}}
    found = gain(scores, rival)
    assert found is not None
    assert found.by_patient == pytest.approx({"a": 0.3, "b": -0.1, "c": 0.2})
    assert found.by_seed == pytest.approx({0: 0.5 / 3, 1: 0.1})
    assert found.mean == pytest.approx(0.4 / 3)
    assert found.better == 2
    without = gain(scores, rival, ("a",))
    assert without is not None
    assert without.mean == pytest.approx(0.05)
    assert gain(scores, {4: {"a": 1.0}}) is None
    assert gain(scores, rival, ("a", "b", "c")) is None


def test_scores_of_other_patients_are_refused() -> None:
    with pytest.raises(ValueError, match="other patients"):
        gain({0: {"a": 1.0}}, {0: {"b": 1.0}})
