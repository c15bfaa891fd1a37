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
VIEWS = (MAIN, "last/others", "last/turned", "last/plain")
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
        """Of subsets named by their size: with the usual updates, and with others that were run."""
        found = [(name, self.task.steps) for name in self.task.subsets if name.isdigit()]
        found += [(facts["subset"], facts["steps"]) for facts in self.runs]
        known = {budget for budget in found if budget[0].isdigit()}
        return sorted(known, key=lambda budget: (budget[1], int(budget[0])))

    def alone(self) -> dict[str, str]:
        """Names of the subsets of one patient, by that patient."""
        return {own[0]: name for name, own in self.task.subsets.items() if len(own) == 1}

    def select(self, budget: Budget, method: str) -> list[Facts]:
        """Runs of a method, by seed."""
        found = [facts for facts in self.runs if key(facts)[:3] == (budget[0], method, budget[1])]
        return sorted(found, key=lambda facts: int(facts["seed"]))

    def best(
        self,
        budget: Budget,
        methods: Sequence[str],
        split: str = "test",
        *,
        beside: Sequence[Facts] = (),
        leave_out: Sequence[str] = (),
    ) -> Rival | None:
        """The method and view with the highest mean Dice; None where none was scored.

        Of those with the most seeds: a mean of others would be of other trainings.

        Args:
            budget: of the methods.
            methods: of which one is chosen.
            split: whose patients count.
            beside: runs that it is compared with, whose seeds alone count; all without.
            leave_out: patients who do not count.
        """
        seeds = by_patient(beside, split).keys()
        found: dict[Rival, list[float]] = {}
        for name in methods:
            for view in VIEWS:
                scored = by_patient(self.select(budget, name), split, view)
                values = [
                    dice
                    for seed, own in scored.items()
                    if not beside or seed in seeds
                    for patient, dice in own.items()
                    if patient not in leave_out
                ]
                if values:
                    found[name, view] = values
        return max(found, key=lambda r: (len(found[r]), np.mean(found[r])), default=None)

    def gain(
        self,
        budget: Budget,
        method: str,
        rival: Rival | None,
        split: str = "test",
        leave_out: Sequence[str] = (),
        *,
        rival_budget: Budget | None = None,
    ) -> Gain | None:
        """Of a method over a rival, with the seeds that both have; None without any.

        Args:
            budget: of the method, and of the rival where nothing else is said.
            method: that gains.
            rival: that it is compared with, in its view.
            split: whose patients count.
            leave_out: those who do not.
            rival_budget: of the rival.
        """
        if rival is None:
            return None
        others = self.select(rival_budget or budget, rival[0])
        own = by_patient(self.select(budget, method), split)
        return gain(own, by_patient(others, split, rival[1]), leave_out)
