"""Evaluate a student on cases with labels, and show the scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from rich.table import Table
from torch import nn

from ssl_trainer.data.cases import Case
from ssl_trainer.evaluation import volumes
from ssl_trainer.evaluation.metrics import METRICS, CaseScores, score

Advance = Callable[[], object]


def evaluate(
    student: nn.Module,
    cases: Sequence[Case],
    classes: Sequence[str],
    size: int,
    *,
    distances: bool = True,
    advance: Advance = lambda: None,
) -> list[CaseScores]:
    """Scores of each case that has labels."""
    scores = []
    for case in cases:
        image = case.read()
        truth = case.read_labels(image, len(classes))
        if truth is None:
            continue
        predicted = volumes.stack(volumes.predict_slices(student, image, size), image)
        expected = volumes.stack([s.astype(np.uint8) for s in truth.slices()], image)
        scores.append(
            score(
                image.stem,
                predicted,
                expected,
                len(classes),
                volumes.spacing(image),
                distances=distances,
            )
        )
        advance()
    return scores


def table(scores: Sequence[CaseScores], classes: Sequence[str], title: str) -> Table:
    """Mean ± standard deviation over cases, for each structure."""
    out = Table("Structure", "Dice", "HD95", "ASD", title=title)
    for index, name in enumerate(classes):
        out.add_row(name, *(_mean_sd([getattr(s, m)[index] for s in scores]) for m in METRICS))
    out.add_row(
        "[bold]mean[/]",
        *(_mean_sd([float(np.mean(getattr(s, m))) for s in scores]) for m in METRICS),
    )
    return out


def _mean_sd(values: list[float]) -> str:
    digits = 3 if max(values) <= 1 else 1
    return f"{np.mean(values):.{digits}f} ± {np.std(values):.{digits}f}"
