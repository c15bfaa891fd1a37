"""Evaluate a student on cases with labels, and show the scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from rich.markup import escape
from rich.table import Table

from ssl_trainer.data.cases import Case
from ssl_trainer.evaluation import volumes
from ssl_trainer.evaluation.metrics import METRICS, CaseScores, distance_unit, score
from ssl_trainer.evaluation.predictor import keep_largest_components
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
    for name, image, truth in _annotated(cases, len(classes)):
        labels = predict(image)
        scores.append(_score(name, image, labels, truth, len(classes), distances=distances))
        advance()
    return scores


def choose_largest_component(
    predict: Predict,
    cases: Sequence[Case],
    classes: Sequence[str],
    *,
    advance: Advance = lambda: None,
) -> tuple[tuple[int, ...], list[CaseScores]]:
    """Values of the structures whose mean Dice rises with their largest component alone.

    As nnU-Net decides it; on cases that are not for testing. With the scores of that choice, which
    for a structure do not depend on the components of the others.
    """
    values, pairs = tuple(range(1, 1 + len(classes))), []
    for name, image, truth in _annotated(cases, len(classes)):
        labels = predict(image)
        every = one = _score(name, image, labels, truth, len(classes))
        largest = keep_largest_components(np.stack(labels), values)
        if not np.array_equal(largest, np.stack(labels)):  # distances take long
            one = _score(name, image, list(largest), truth, len(classes))
        pairs.append((every, one))
        advance()
    if not pairs:
        return (), []
    gains = np.mean([np.subtract(one.dice, every.dice) for every, one in pairs], axis=0)
    chosen = tuple(value for value, gain in zip(values, gains, strict=True) if gain > 0)
    return chosen, [
        _mixed(every, one, [value in chosen for value in values]) for every, one in pairs
    ]


def _mixed(every: CaseScores, one: CaseScores, chosen: Sequence[bool]) -> CaseScores:
    """Scores of a case: of the largest component of chosen structures, of all of the others."""

    def pick(metric: str) -> tuple[float, ...]:
        pairs = zip(getattr(every, metric), getattr(one, metric), strict=True)
        return tuple(pair[choice] for pair, choice in zip(pairs, chosen, strict=True))

    return replace(every, dice=pick("dice"), hd95=pick("hd95"), asd=pick("asd"))


def _score(
    name: str,
    image: files.ImageFile,
    labels: list[UInt8Array],
    truth: UInt8Array,
    count: int,
    *,
    distances: bool = True,
) -> CaseScores:
    predicted, spacing = volumes.stack(labels, image), volumes.spacing(image)
    return score(name, predicted, truth, count, spacing, distances=distances)


def _annotated(
    cases: Sequence[Case], count: int
) -> Iterator[tuple[str, files.ImageFile, UInt8Array]]:
    """Names, images and true labels of cases that have some, stacked as predictions are."""
    for case in cases:
        image = case.read()
        truth = case.read_labels(image, count)
        if truth is not None:
            labels = [s.astype(np.uint8) for s in truth.slices()]
            yield case.name, image, volumes.stack(labels, image)


def header(first: str, scores: Sequence[CaseScores]) -> tuple[str, ...]:
    """Titles of the columns of a table of scores, with the unit of distances."""
    unit = distance_unit(scores)
    return first, "Dice", f"HD95 ({unit})", f"ASD ({unit})"


def table(scores: Sequence[CaseScores], classes: Sequence[str], title: str) -> Table:
    """Mean ± standard deviation over cases, for each structure."""
    out = Table(*header("Structure", scores), title=title)
    for index, name in enumerate(classes):
        cells = [mean_sd([getattr(s, m)[index] for s in scores], n) for m, n in METRICS.items()]
        out.add_row(escape(name), *cells)
    means = [
        mean_sd([float(np.mean(getattr(s, m))) for s in scores], n) for m, n in METRICS.items()
    ]
    out.add_row("[bold]mean[/]", *means)
    return out


def mean_sd(values: list[float], digits: int) -> str:
    """Mean ± standard deviation, as text."""
    return f"{np.mean(values):.{digits}f} ± {np.std(values):.{digits}f}"
