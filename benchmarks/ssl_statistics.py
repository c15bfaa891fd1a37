"""What one method gains over another: paired over patients, with its uncertainty.

Axes: N patients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

Values = npt.NDArray[np.float64]
RESAMPLES, COVERAGE = 10_000, 0.95
# Of patients whose signs are all tried: a million sums.
MOST = 20
# Sums that differ by less are the same, and gains that agree in so many decimals.
ROUNDING, DECIMALS = 1e-12, 9


@dataclass(frozen=True)
class Gain:
    """Of patients, each the mean over volumes, structures and seeds.

    Attributes:
        by_patient: the gain of each.
        by_seed: the mean gain over patients with each seed.
        mean: over patients.
        interval: of the mean, from a bootstrap over patients. Other seeds, and another annotated
            patient, are no part of it.
        wilcoxon, permutation: two-sided p of the signed ranks, and of the mean, if signs were
            chance.
    """

    by_patient: dict[str, float]
    by_seed: dict[int, float]
    mean: float
    interval: tuple[float, float]
    wilcoxon: float
    permutation: float

    @property
    def better(self) -> int:
        """Patients who gain."""
        return sum(value > 0 for value in self.by_patient.values())


# Score of each patient, by seed.
Scores = Mapping[int, Mapping[str, float]]


def gain(scores: Scores, rival: Scores, leave_out: Sequence[str] = ()) -> Gain | None:
    """Of the seeds that both have; None where there are none, or no patients.

    Args:
        scores: of a method.
        rival: of another one, with the same patients.
        leave_out: patients who do not count.

    Raises:
        ValueError: the patients differ.
    """
    seeds = sorted(scores.keys() & rival.keys())
    if not seeds:
        return None
    patients = sorted(scores[seeds[0]])
    if any(sorted(own[seed]) != patients for own in (scores, rival) for seed in seeds):
        raise ValueError("scores are of other patients than the rival's; score both again")
    patients = [patient for patient in patients if patient not in leave_out]
    if not patients:
        return None
    table_SN = np.array([[scores[s][p] - rival[s][p] for p in patients] for s in seeds])
    gains_N = table_SN.mean(axis=0)
    return Gain(
        by_patient=dict(zip(patients, gains_N.tolist(), strict=True)),
        by_seed=dict(zip(seeds, table_SN.mean(axis=1).tolist(), strict=True)),
        mean=float(gains_N.mean()),
        interval=bootstrap_interval(gains_N),
        wilcoxon=wilcoxon_p(gains_N),
        permutation=permutation_p(gains_N),
    )


def permutation_p(gains_N: Values) -> float:
    """Exact two-sided p of the mean, if each gain's sign were chance: all signs are tried.

    Raises:
        ValueError: of more than :data:`MOST` patients.
    """
    count = len(gains_N)
    if count > MOST:
        raise ValueError(f"{count} patients, expected {MOST} at most: all signs are tried")
    sums = np.zeros(1)
    for value in gains_N:
        sums = np.concatenate([sums + value, sums - value])
    return float(np.mean(np.abs(sums) >= abs(gains_N.sum()) - ROUNDING))


def wilcoxon_p(gains_N: Values) -> float:
    """Exact two-sided p of Wilcoxon's signed ranks, also of equal gains; zeros are left out."""
    some = gains_N[np.abs(gains_N) > ROUNDING]
    ranks: Values = stats.rankdata(np.abs(some).round(DECIMALS))  # ties, but for rounding
    return permutation_p(np.sign(some) * ranks)


def bootstrap_interval(gains_N: Values, seed: int = 0) -> tuple[float, float]:
    """Of the mean, by a bootstrap that corrects bias and skewness (BCa).

    Of ten values it covers a little less than it should: percentiles alone cover less still.
    """
    if np.ptp(gains_N) < ROUNDING:
        return float(gains_N.min()), float(gains_N.max())
    found = stats.bootstrap(
        (gains_N,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=COVERAGE,
        method="BCa",
        rng=np.random.default_rng(seed),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)
