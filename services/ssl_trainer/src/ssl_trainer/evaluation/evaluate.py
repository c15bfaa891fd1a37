"""Evaluate a student on cases with labels, and show the scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from rich.table import Table

from ssl_trainer.data.cases import Case
from ssl_trainer.evaluation import volumes
from ssl_trainer.evaluation.metrics import METRICS, CaseScores, score
from ssl_trainer.evaluation.predictor import Predictor

Advance = Callable[[], object]


def evaluate(
    predictor: Predictor,
    cases: Sequence[Case],
    classes: Sequence[str],
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
        predicted = volumes.stack(predictor(image), image)
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


def choose_one_piece(
    predictor: Predictor,
    cases: Sequence[Case],
    classes: Sequence[str],
    *,
    advance: Advance = lambda: None,
) -> tuple[int, ...]:
    """Values of the structures whose mean Dice over the cases rises with their largest piece alone.

    As nnU-Net decides it; on cases that are not for testing. Advances twice for each case.
    """
    values = tuple(range(1, 1 + len(classes)))
    pieces = [
        evaluate(
            replace(predictor, one_piece=kept), cases, classes, distances=False, advance=advance
        )
        for kept in ((), values)
    ]
    if not pieces[0]:
        return ()
    all_C, largest_C = (np.mean([s.dice for s in scores], axis=0) for scores in pieces)
    return tuple(v for v in values if largest_C[v - 1] > all_C[v - 1])


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
