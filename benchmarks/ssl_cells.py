"""Tasks, arms and cells of the comparison of UniMatch V2 with and without VESSA."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from acdc import RESULTS
from ssl_trainer.config import parse, to_dict
from ssl_trainer.data.cases import find, read_slices
from vessa_client import AnyArray, ClassDefinition, UInt8Array

TASKS = Path(__file__).parent / "tasks"
TASK_NAMES = sorted(file.stem for file in TASKS.glob("*.yaml"))
CELL = "cell.json"
Facts = dict[str, Any]
# What an arm changes, and which server it asks: none, VESSA, or one fitted to the bank.
ARMS: dict[str, tuple[str, Facts]] = {
    "supervised": ("", {"unimatch": {"weight": 0.0}}),
    "unimatch": ("", {}),
    "one-way": ("plain", {"assistant": {"feedback_start": 1.0, "weight_end": 0.0}}),
    "mutual": ("plain", {}),
    "mutual-student": ("plain", {"assistant": {"feedback_from": "student"}}),
    "mutual-adapted": ("adapted", {}),
    "mutual-constant": ("plain", {"assistant": {"weight_end": 1.0}}),
    "mutual-falling": ("plain", {"assistant": {"weight_end": 0.0}}),
    "mutual-unweighted": ("plain", {"assistant": {"confidence_weighting": False}}),
    "mutual-every-second": ("plain", {"assistant": {"every": 2, "spread_epochs": 2}}),
    "mutual-unpooled": ("plain", {"assistant": {"teacher_share": 0.0}}),
    "mutual-pooled-early": ("plain", {"assistant": {"teacher_share_at": 0.2}}),
    "mutual-not-overruling": ("plain", {"assistant": {"overrule": False}}),
    # As it was before slices were looked at together and labels pooled.
    "mutual-alone": (
        "plain",
        {"assistant": {"volume_slices": 0, "teacher_share": 0.0, "ahead": 1}},
    ),
}


@dataclass(frozen=True)
class Cell:
    """One training. ``config`` has every key; where it asks a server, it does not say where."""

    arm: str
    cases: int
    seed: int
    config: Facts

    @property
    def digest(self) -> str:
        """Of all that differs from the defaults, wherever the data lie."""
        data = {key: value for key, value in self.config["data"].items() if key != "root"}
        plain = json.dumps([data, settings(self.config)], sort_keys=True)
        return hashlib.sha256(plain.encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        """Unique among all cells of a task."""
        return f"cases_{self.cases}/{self.arm}-{self.digest}/seed_{self.seed}"


@dataclass(frozen=True)
class Task:
    """A data set, its classes, its labelled subsets, and what all arms share."""

    name: str
    root: Path
    classes: tuple[ClassDefinition, ...]
    labelled: dict[int, list[str]]
    train: Facts
    # Other settings, of UniMatch V2 alone or with VESSA: what was tried before those were chosen.
    variants: dict[str, Facts]

    @staticmethod
    def load(name: str, data: Path) -> Task:
        """Read a task's file."""
        content = read_task(name)
        classes = tuple(ClassDefinition(**c) for c in content["classes"])
        root = (data / content["folder"]).resolve()
        variants = content.get("variants", {})
        return Task(name, root, classes, content["labelled"], content["train"], variants)

    def asks(self, arm: str) -> str:
        """Which server an arm asks; empty for none."""
        if arm in ARMS:
            return ARMS[arm][0]
        return "plain" if "assistant" in self.variants[arm] else ""

    def cell(self, arm: str, cases: int, seed: int, steps: int | None = None) -> Cell:
        """A cell of an arm or a variant; ``steps`` in place of the task's."""
        data = {
            "root": str(self.root),
            "classes": [c.name for c in self.classes],
            "labelled": self.labelled[cases],
        }
        own: Facts = {"data": data, "seed": seed}
        train = self.train
        if self.asks(arm):
            own["assistant"] = {"server": "given on the command line"}
        else:
            train = {key: value for key, value in train.items() if key != "assistant"}
        if steps is not None:
            own["steps"] = steps
        changes = ARMS[arm][1] if arm in ARMS else self.variants[arm]
        config = to_dict(parse(_merged(_merged(train, own), changes)))
        return Cell(arm, cases, seed, config)

    def templates(self, cases: int) -> Iterator[tuple[AnyArray, UInt8Array, str]]:
        """The annotated slices of the labelled cases: image, labels, name."""
        labelled = find(parse(self.cell("unimatch", cases, 0).config).data).labelled
        for item in read_slices(labelled, len(self.classes), labelled=True):
            if item.labels is not None and item.labels.any():
                yield item.image, item.labels, item.key

    @property
    def results(self) -> Path:
        """The committed results."""
        return results_of(self.name)

    def cells(self, out: Path) -> Path:
        """The folder of the task's cells: names are unique within a task only."""
        return out / self.name

    def done(self, folder: Path) -> dict[str, Facts]:
        """Finished cells by name: the committed ones and those of ``folder``."""
        committed = committed_cells(self.name) if self.results.is_file() else []
        trained = [json.loads(file.read_text()) for file in folder.glob(f"*/*/*/{CELL}")]
        found = {facts["name"]: facts for facts in [*committed, *trained]}
        return {name: found[name] for name in sorted(found)}


def results_of(task: str) -> Path:
    """The committed results of a task."""
    return RESULTS / f"ssl_{task}.json"


def committed_cells(task: str) -> list[Facts]:
    """All cells of the committed results of a task."""
    cells: list[Facts] = json.loads(results_of(task).read_text())["cells"]
    return cells


def read_task(name: str) -> Facts:
    """A task's file; with ``like`` it says only what differs from another task."""
    content: Facts = yaml.safe_load((TASKS / f"{name}.yaml").read_text())
    return {**read_task(content["like"]), **content} if "like" in content else content


def settings(config: Facts) -> Facts:
    """What differs from the defaults, apart from data and seed."""
    shared = {key: value for key, value in config.items() if key not in ("data", "seed")}
    return _difference(shared, to_dict(parse({"data": config["data"]})))


def _difference(own: Facts, plain: Facts) -> Facts:
    out = {}
    for key, value in own.items():
        known = plain[key]
        both = isinstance(value, dict) and isinstance(known, dict)
        differs = _difference(value, known) if both else value
        if value != known:
            out[key] = differs
    return out


def _merged(base: Facts, over: Facts) -> Facts:
    """``base`` with the keys of ``over``, at every depth."""
    out = dict(base)
    for key, value in over.items():
        known = out.get(key)
        both = isinstance(value, dict) and isinstance(known, dict)
        out[key] = _merged(known, value) if both else value  # type: ignore[arg-type]
    return out
