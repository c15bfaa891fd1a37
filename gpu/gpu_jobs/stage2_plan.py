"""Which runs of the comparison a job of Stage 2 makes, in which order, and how many at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpu_jobs.errors import JobError
from ssl_tasks import METHODS, Run, Task


def results_file(task: str) -> str:
    """Name of the results of runs on a GPU, whose images are other than those of runs elsewhere."""
    return f"ssl_{task}_gpu.json"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Settings of a job of Stage 2.

    Attributes:
        subsets, methods, seeds, steps: whose runs are made.
        workers: how many side by side, at most.
        compile: whether students are compiled.
    """

    subsets: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: tuple[int, ...]
    workers: int
    compile: bool

    @staticmethod
    def of(task: Task, settings: dict[str, Any]) -> Plan:
        """Of a job's settings; where several values may stand, one may stand alone.

        Raises:
            JobError: names the setting that is wrong, and what was expected.
        """
        names = list(Plan.__dataclass_fields__)
        if set(settings) != set(names):
            wrong = sorted(set(settings) ^ set(names))
            raise JobError(f"settings: {', '.join(wrong)}: expected {', '.join(names)}")
        return Plan(
            subsets=_known("subsets", map(str, _several(settings["subsets"])), task.subsets),
            methods=_known("methods", _several(settings["methods"]), METHODS),
            seeds=tuple(_whole("seeds", value, 0) for value in _several(settings["seeds"])),
            steps=tuple(_whole("steps", value, 1) for value in _several(settings["steps"])),
            workers=_whole("workers", settings["workers"], 1),
            compile=_switch("compile", settings["compile"]),
        )

    def runs(self, task: Task) -> list[Run]:
        """In the order in which they begin: so that methods of the same seed can be compared."""
        return [
            task.run(subset, method, seed, steps)
            for steps in self.steps
            for seed in self.seeds
            for subset in self.subsets
            for method in self.methods
        ]


def _several(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _known(name: str, values: Any, known: Any) -> tuple[str, ...]:
    found = tuple(values)
    for value in found:
        if value not in known:
            raise JobError(f"settings: {name}: {value!r}, expected some of {', '.join(known)}")
    return found


def _whole(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise JobError(f"settings: {name}: {value!r}, expected whole numbers from {least}")
    return value


def _switch(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise JobError(f"settings: {name}: {value!r}, expected true or false")
    return value
