"""The committed results of the comparison: one line for each run.

Axes: N volumes, C structures.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from acdc import RESULTS
from ssl_statistics import Gain, Scores, Values, gain
from ssl_tasks import METHODS, Facts, Task
from vessa_client import files

# Of a split, as checkpoint and views: what the comparison is about.
MAIN = "last/views"
# Views of which the best one counts for a rival: none of them is to harm it.
VIEWS = (MAIN, "last/turned", "last/plain")
# UniMatch V2 turned by quarters or not: the better one counts as VESSA's rival.
RIVALS = ("unimatch", "unimatch-quarters")
WITHOUT_VESSA = tuple(name for name, method in METHODS.items() if not method.server)
# Whose labels, and how many updates.
Budget = tuple[str, int]
# A method, and how its students are asked.
Rival = tuple[str, str]


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


@dataclass(frozen=True)
class Results:
    """The runs of a task."""

    task: Task
    runs: list[Facts]

    @staticmethod
    def load(name: str) -> Results:
        """The committed ones."""
        return Results(Task.load(name), read(results_of(name)))

    def budgets(self) -> list[Budget]:
        """Of subsets named by their size: with the usual updates, and with others that were run.

        But for those of equal time.
        """
        found = [(name, self.task.steps) for name in self.task.subsets if name.isdigit()]
        found += [(f["subset"], f["steps"]) for f in self.runs if not f["equal_time"]]
        known = {budget for budget in found if budget[0].isdigit()}
        return sorted(known, key=lambda budget: (budget[1], int(budget[0])))

    def alone(self) -> dict[str, str]:
        """Names of the subsets of one patient, by that patient."""
        return {own[0]: name for name, own in self.task.subsets.items() if len(own) == 1}

    def select(self, budget: Budget, method: str) -> list[Facts]:
        """Runs of a method, by seed."""
        found = [facts for facts in self.runs if key(facts)[:3] == (budget[0], method, budget[1])]
        return sorted(found, key=lambda facts: int(facts["seed"]))

    def best(self, budget: Budget, methods: Sequence[str], split: str = "test") -> Rival | None:
        """The method and view with the highest mean Dice over runs; None where none was scored."""
        found = {
            (name, view): means(self.select(budget, name), split, view)
            for name in methods
            for view in VIEWS
        }
        return max(
            (rival for rival, values in found.items() if len(values)),
            key=lambda rival: float(found[rival].mean()),
            default=None,
        )

    def rival(self, budget: Budget, split: str = "test") -> Rival | None:
        """The fair rival: of :data:`RIVALS`, in any view, what is best on the very patients.

        So it is chosen in its own favour.
        """
        return self.best(budget, RIVALS, split)

    def gain(
        self,
        budget: Budget,
        method: str,
        rival: Rival | None,
        split: str = "test",
        leave_out: Sequence[str] = (),
        *,
        steps: int | None = None,
    ) -> Gain | None:
        """Of a method over a rival, with the seeds that both have; None without any.

        Args:
            budget: of the rival.
            method: that gains.
            rival: that it is compared with, in its view.
            split: whose patients count.
            leave_out: those who do not.
            steps: updates of the method, where they are others.
        """
        if rival is None:
            return None
        own = self.select((budget[0], budget[1] if steps is None else steps), method)
        others = by_patient(self.select(budget, rival[0]), split, rival[1])
        return gain(by_patient(own, split), others, leave_out)
