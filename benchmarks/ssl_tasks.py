"""Tasks, methods and runs of the comparison of semi-supervised methods with and without VESSA."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ssl_trainer.config import parse, to_dict
from ssl_trainer.data.cases import find
from ssl_trainer.data.slices import read_slices
from vessa_client import AnyArray, ClassDefinition, UInt8Array

TASKS = Path(__file__).parent / "tasks"
TASK_NAMES = sorted(file.stem for file in TASKS.glob("*.yaml"))
Facts = dict[str, Any]


@dataclass(frozen=True)
class Method:
    """What is compared.

    Attributes:
        title: in tables.
        changes: of the settings that all methods share.
        server: whether VESSA is asked.
    """

    title: str
    changes: Facts
    server: bool = False


# Half of the images are turned by a random quarter and mirrored, as by UniMatch on ACDC.
_QUARTERS = {"quarter_turns": 0.5}
WHOLE: Facts = {"regions": False}
METHODS = {
    "supervised": Method("labelled slices only", WHOLE | {"unimatch": {"weight": 0.0}}),
    "mean-teacher": Method("Mean Teacher", WHOLE | {"method": "mean-teacher"}),
    "cps": Method("CPS", WHOLE | {"method": "cps"}),
    "bcp": Method("BCP", WHOLE | {"method": "bcp"}),
    "unimatch": Method("UniMatch V2", WHOLE),
    "unimatch-quarters": Method(
        "UniMatch V2, turned by quarters",
        WHOLE | {"augmentation": _QUARTERS, "labelled_augmentation": {"geometry": _QUARTERS}},
    ),
    "unimatch-regions": Method("UniMatch V2, regions", {}),
    "vessa-labels": Method("VESSA: labels only", WHOLE, server=True),
    "vessa-regions": Method("VESSA: regions only", {"assistant": {"weight": 0.0}}, server=True),
    "vessa": Method("VESSA: regions and labels", {}, server=True),
}


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        config: every key of the trainer's; the server is given when it is there.
    """

    subset: str
    method: str
    seed: int
    steps: int
    config: Facts

    @property
    def name(self) -> str:
        """Of its folder, unique in a task."""
        return f"{self.subset}/{self.method}/steps_{self.steps}/seed_{self.seed}"

    @property
    def server(self) -> bool:
        """Whether it asks VESSA."""
        return METHODS[self.method].server

    @property
    def key(self) -> tuple[str, str, int, int]:
        """Of its results."""
        return self.subset, self.method, self.steps, self.seed

    @property
    def settings(self) -> Facts:
        """All that matter: not where the data lie, and nothing of VESSA where it is not asked."""
        data = {key: value for key, value in self.config["data"].items() if key != "root"}
        found = {**self.config, "data": data}
        if not self.server:
            del found["assistant"]
        return found


@dataclass(frozen=True)
class Task:
    """A data set, its classes, its annotated subsets, and what all methods share.

    Attributes:
        unlike: patients of each split who lie unlike the annotated ones.
    """

    name: str
    root: Path
    classes: tuple[ClassDefinition, ...]
    subsets: dict[str, list[str]]
    train: Facts
    unlike: dict[str, list[str]]

    @staticmethod
    def load(name: str, data: Path = Path()) -> Task:
        """Read a task's file; ``data`` is the folder of the data sets."""
        content = yaml.safe_load((TASKS / f"{name}.yaml").read_text())
        classes = tuple(ClassDefinition(**c) for c in content["classes"])
        root = (data / content["folder"]).resolve()
        return Task(name, root, classes, content["subsets"], content["train"], content["unlike"])

    @property
    def steps(self) -> int:
        """Updates of a run where nothing else is said."""
        return int(self.train["steps"])

    def run(self, subset: str, method: str, seed: int, steps: int | None = None) -> Run:
        """A run; ``steps`` in place of the task's."""
        data = {
            "root": str(self.root),
            "classes": [c.name for c in self.classes],
            "labelled": self.subsets[subset],
        }
        steps = self.steps if steps is None else steps
        own: Facts = {"data": data, "seed": seed, "steps": steps}
        # A run with VESSA is one with all of its answers: it fails as soon as the server is away.
        own["assistant"] = {"required": METHODS[method].server}
        # Changes are of all settings: a part of the file's would drop defaults that depend on it.
        shared = to_dict(parse(merged(self.train, own)))
        config = to_dict(parse(merged(shared, METHODS[method].changes)))
        return Run(subset, method, seed, steps, config)

    def templates(self, subset: str) -> Iterator[tuple[AnyArray, UInt8Array, str]]:
        """The annotated slices of a subset: image, labels, name."""
        labelled = find(parse(self.run(subset, "unimatch", 0).config).data).labelled
        for item in read_slices(labelled, len(self.classes), labelled=True):
            if item.labels is not None and item.labels.any():
                yield item.image, item.labels, item.key


def differences(config: Facts) -> Facts:
    """What of a configuration differs from the defaults, apart from data and seed."""
    shared = {key: value for key, value in config.items() if key not in ("data", "seed")}
    return _difference(shared, to_dict(parse({"data": config["data"]})))


def agree(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two configurations have the same values of all keys that both have.

    So a result stays one where the trainer gains a key, and does not where a default changes.
    """
    return all(
        agree(one[key], other[key])
        if isinstance(one[key], Mapping) and isinstance(other[key], Mapping)
        else one[key] == other[key]
        for key in one.keys() & other.keys()
    )


def merged(base: Facts, over: Facts) -> Facts:
    """``base`` with the keys of ``over``, at every depth."""
    out = dict(base)
    for key, value in over.items():
        known = out.get(key)
        both = isinstance(value, dict) and isinstance(known, dict)
        out[key] = merged(known, value) if both else value  # type: ignore[arg-type]
    return out


def _difference(own: Facts, plain: Facts) -> Facts:
    out = {}
    for key, value in own.items():
        known = plain[key]
        both = isinstance(value, dict) and isinstance(known, dict)
        if value != known:
            out[key] = _difference(value, known) if both else value
    return out
