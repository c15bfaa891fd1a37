"""The committed results of the comparison: one line for each run.

Axes: N volumes, C structures.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from acdc import RESULTS
from ssl_statistics import Scores, Values
from ssl_tasks import Facts, Task
from vessa_client import files

# Of a split, as checkpoint and views: what the comparison is about.
MAIN = "last/views"


def results_of(task: str) -> Path:
    """The file of a task."""
    return RESULTS / f"ssl_{task}.json"


def read(file: Path) -> list[Facts]:
    """All runs of a file; none where it is missing."""
    if not file.is_file():
        return []
    runs: list[Facts] = json.loads(file.read_text())["runs"]
    return runs


def write(file: Path, task: Task, runs: Iterable[Facts]) -> None:
    """Write runs in place of those of the same key; the others stay."""
    found = {key(facts): facts for facts in [*read(file), *runs]}
    lines = ",\n".join(json.dumps(found[name]) for name in sorted(found))
    names = json.dumps([c.name for c in task.classes])
    files.write_text(file, f'{{"structures": {names}, "runs": [\n{lines}\n]}}\n')


def key(facts: Facts) -> tuple[str, str, int, int]:
    """As :attr:`ssl_tasks.Run.key`."""
    return facts["subset"], facts["method"], facts["steps"], facts["seed"]


def select(runs: Iterable[Facts], subset: str, method: str, steps: int) -> list[Facts]:
    """Runs of one kind, by seed."""
    found = [facts for facts in runs if key(facts)[:3] == (subset, method, steps)]
    return sorted(found, key=lambda facts: int(facts["seed"]))


def scores(facts: Facts, split: str, view: str = MAIN, metric: str = "dice") -> Values | None:
    """(N, C) of the volumes of a split; None where it was not scored."""
    try:
        return np.array(facts["scores"][split][view][metric], dtype=np.float64)
    except KeyError:
        return None


def means(runs: Sequence[Facts], split: str, view: str = MAIN, metric: str = "dice") -> Values:
    """Mean over volumes and structures of each run that has it."""
    found = [scores(facts, split, view, metric) for facts in runs]
    return np.array([values.mean() for values in found if values is not None])


def by_patient(runs: Sequence[Facts], split: str, view: str = MAIN) -> Scores:
    """Dice of each patient by seed: mean over volumes and structures."""
    out: dict[int, dict[str, float]] = {}
    for facts in runs:
        dice_NC = scores(facts, split, view)
        if dice_NC is not None:
            volumes: dict[str, list[float]] = {}
            for patient, dice in zip(facts["scores"][split]["patients"], dice_NC, strict=True):
                volumes.setdefault(patient, []).append(float(dice.mean()))
            out[facts["seed"]] = {name: float(np.mean(own)) for name, own in volumes.items()}
    return out
