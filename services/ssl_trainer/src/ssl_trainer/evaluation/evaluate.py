"""Evaluate a student on cases with labels, and show the scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from rich.table import Table

from ssl_trainer.data.cases import Case
from ssl_trainer.evaluation import volumes
from ssl_trainer.evaluation.metrics import METRICS, CaseScores, score
from ssl_trainer.evaluation.predictor import largest_pieces
from vessa_client import UInt8Array, files

Advance = Callable[[], object]
# Label map of each slice of an image; a :class:`Predictor` is one.
Predict = Callable[[files.ImageFile], list[UInt8Array]]


def evaluate(
    predict: Predict,
    cases: Sequence[Case],
    classes: Sequence[str],
    *,
    distances: bool = True,
    advance: Advance = lambda: None,
) -> list[CaseScores]:
    """Scores of each case that has labels."""
    scores = []
    for image, truth in _annotated(cases, len(classes)):
        predicted, spacing = volumes.stack(predict(image), image), volumes.spacing(image)
        scores.append(
            score(image.stem, predicted, truth, len(classes), spacing, distances=distances)
        )
        advance()
    return scores


def choose_one_piece(
    predict: Predict,
    cases: Sequence[Case],
    classes: Sequence[str],
    *,
    advance: Advance = lambda: None,
) -> tuple[int, ...]:
    """Values of the structures whose mean Dice over the cases rises with their largest piece alone.

    As nnU-Net decides it; on cases that are not for testing.
    """
    values, gains = tuple(range(1, 1 + len(classes))), []
    for image, truth in _annotated(cases, len(classes)):
        labels = predict(image)
        every, largest = (
            score(
                image.stem,
                volumes.stack(kept, image),
                truth,
                len(classes),
                volumes.spacing(image),
                distances=False,
            )
            for kept in (labels, list(largest_pieces(np.stack(labels), values)))
        )
        gains.append(np.subtract(largest.dice, every.dice))
        advance()
    return tuple(v for v in values if gains and np.mean(gains, axis=0)[v - 1] > 0)


def _annotated(cases: Sequence[Case], count: int) -> Iterator[tuple[files.ImageFile, UInt8Array]]:
    """Images and true labels of the cases that have some, stacked as predictions are."""
    for case in cases:
        image = case.read()
        truth = case.read_labels(image, count)
        if truth is not None:
            yield image, volumes.stack([s.astype(np.uint8) for s in truth.slices()], image)


def table(scores: Sequence[CaseScores], classes: Sequence[str], title: str) -> Table:
    """Mean ± standard deviation over cases, for each structure."""
    out = Table("Structure", "Dice", "HD95", "ASD", title=title)
    for index, name in enumerate(classes):
        cells = [mean_sd([getattr(s, m)[index] for s in scores], n) for m, n in METRICS.items()]
        out.add_row(name, *cells)
    means = [
        mean_sd([float(np.mean(getattr(s, m))) for s in scores], n) for m, n in METRICS.items()
    ]
    out.add_row("[bold]mean[/]", *means)
    return out


def mean_sd(values: list[float], digits: int) -> str:
    """Mean ± standard deviation, as text."""
    return f"{np.mean(values):.{digits}f} ± {np.std(values):.{digits}f}"
