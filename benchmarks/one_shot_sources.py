"""One-shot Dice on the test images of each source but ACDC, with three templates of its own.

    python benchmarks/one_shot_sources.py --data DATA --label shipped --seeds 0
    python benchmarks/one_shot_sources.py --data DATA --rows "all rules" --picture sources.png
    python benchmarks/one_shot_sources.py --data DATA --split train --images 12 --sources ct_liver

Templates are images of the source's ``train``, drawn at random until they show every class.
Volumes are sliced along axis 2: every annotated slice of three of them is a template, of left atria
every second one; those of ``test`` are scored as a whole. Dice of a class counts where the truth or
the answer has it; means are over the classes of an image, the images of a source, and the sources.
``five steps`` is the paper's: no turns, no second looks, each slice alone; other rows leave out one
of these rules. To choose between rules or trainings, ``--split train`` scores images of ``train``,
of other subjects than the templates', in sources that the training did not see.

Seconds are of a request: the first of a bank, whose templates have to be computed; the first of
each other image (of volumes, of each other slice); and one that was made before.

Writes ``benchmarks/results/one_shot_sources.json``; rows that are there and were not measured
again stay, each with its weights and commit.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from rich.table import Table

from ablations import RULES, settings
from acdc import RESULTS, AnnotatedSlice, circumstances, new_engine
from annotated_sources import Item, Scores, Source, choose, dice, mean_of_classes, renumber
from baselines import copy_mask, matched_template
from vessa_client import (
    ClassDefinition,
    SegmentationRequest,
    UInt8Array,
    files,
    pictures,
)
from vessa_client.console import console
from vessa_server.api.settings import SHIPPED_WEIGHTS
from vessa_server.bank import TemplateBank
from vessa_server.engine import VessaEngine
from vessa_server.model import checkpoint
from vessa_server.model.presets import preset
from vessa_server.model.vessa import Vessa

COPY = "copy of the best template"
ROWS = (*RULES, COPY)
USUAL = ("all rules", "five steps", COPY)
TEMPLATES = 3
# Which of a volume's annotated slices are templates.
EVERY = {"left_atrium": 2}
FIRST, NEXT, AGAIN = "first of a bank", "first of an image", "made before"
TILE, SOURCES_IN_A_ROW = 128, 2


@dataclass(frozen=True)
class Measured:
    """A row on one source with the templates of one seed."""

    mean: float
    seconds: dict[str, float]
    templates: list[str]
    images: dict[str, Scores]


# Of each source what was measured with each seed.
Found = dict[str, dict[int, Measured]]


@dataclass
class Method:
    """What a row does on one bank, and how many seconds its requests took."""

    row: str
    source: Source
    engine: VessaEngine
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def segment(self, image: files.ImageFile) -> UInt8Array:
        """Labels of all slices, (Z, H, W)."""
        slices = range(image.depth)
        if self.row == COPY:
            return np.stack([copy_mask(self.template(image, z), image.slice(z)) for z in slices])
        found = [self._ask(image, z, NEXT if self.seconds else FIRST) for z in slices]
        for z in slices:
            self._ask(image, z, AGAIN)
        return np.stack(found)

    def template(self, image: files.ImageFile, index: int) -> AnnotatedSlice:
        """The one that most classes of a slice retrieve."""
        return matched_template(self.engine, image.slice(index), self.source.names)

    def _ask(self, image: files.ImageFile, index: int, kind: str) -> UInt8Array:
        request = SegmentationRequest(image=image.slice(index), volume=image.sample())
        start = time.perf_counter()
        result = self.engine.segment(request)
        self.seconds.setdefault(kind, []).append(time.perf_counter() - start)
        return renumber(result.labels, [c.class_name for c in result.classes], self.source.names)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the sources")
    parser.add_argument("--weights", type=Path, default=SHIPPED_WEIGHTS / "nano")
    parser.add_argument("--label", default="shipped", help="of the weights, before each row")
    parser.add_argument("--sources", nargs="+", help="folders; by default all but acdc")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the templates")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=USUAL)
    parser.add_argument("--split", choices=("test", "train"), default="test", help="to score")
    parser.add_argument("--images", type=int, default=1000, help="of a source at most")
    parser.add_argument("--results", type=Path, default=RESULTS / "one_shot_sources.json")
    parser.add_argument("--picture", type=Path, help="PNG of an image of each source, first row")
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        parser.error(f"--data: no folder {arguments.data}")
    torch.set_num_threads(1)
    names = arguments.sources or sorted(
        f.name for f in arguments.data.iterdir() if f.is_dir() and f.name != "acdc"
    )
    runner = Runner(arguments)
    for name in names:
        runner.measure(Source.of(arguments.data / name))
    show(runner.found, f"Dice, {arguments.label}, {TEMPLATES} templates")
    write(arguments, runner)
    if arguments.picture:
        files.write_picture(arguments.picture, gallery(list(runner.panels.values())))
        console.print(f"Picture {arguments.picture}", highlight=False)


class Runner:
    """Measures the rows of the arguments, source by source."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.model: Vessa = checkpoint.load(preset("nano"), arguments.weights)
        self.digest = checkpoint.digest(arguments.weights)
        self.found: dict[str, Found] = {row: {} for row in arguments.rows}
        self.panels: dict[str, UInt8Array] = {}

    def measure(self, source: Source) -> None:
        """All rows and seeds."""
        train = [item for item in source.items("train") if item.shown()]
        test = source.items("test") if self.arguments.split == "test" else []
        name = source.folder.name
        shown = [item.shown() for item in train]
        for row in self.arguments.rows:
            found = self.found[row].setdefault(name, {})
            for seed in self.arguments.seeds:
                templates = [train[index] for index in choose(shown, TEMPLATES, seed)]
                seen = {source.subject(item) for item in templates}
                others = test or [item for item in train if source.subject(item) not in seen]
                scored = [others[i] for i in files.spread(len(others), self.arguments.images)]
                with self.method(row, source, templates) as method:
                    found[seed] = measured(method, templates, scored)
                    text = f"{name}, {row}, seed {seed}: {found[seed].mean:.3f}"
                    console.print(text, highlight=False)
                    if self.arguments.picture and name not in self.panels:
                        self.panels[name] = panel(method, scored, found[seed])

    @contextlib.contextmanager
    def method(self, row: str, source: Source, templates: Sequence[Item]) -> Iterator[Method]:
        """The row on a bank of the templates; nothing that another one computed is reused."""
        classes = [ClassDefinition(name=name, description="") for name in source.names]
        with tempfile.TemporaryDirectory() as scratch:
            bank = TemplateBank(Path(scratch))
            for item in templates:
                for z in item.annotated(EVERY.get(source.folder.name, 1)):
                    bank.add(item.image.slice(z), item.labels_ZHW[z], classes)
            engine = new_engine(
                self.model, self.digest, bank, settings("all rules" if row == COPY else row)
            )
            yield Method(row, source, engine)


def measured(method: Method, templates: Sequence[Item], test: Sequence[Item]) -> Measured:
    """Dice of each class of each image, their mean, and the mean seconds of a request."""
    count = len(method.source.names)
    images = {
        item.image.stem: dice(method.segment(item.image), item.labels_ZHW, count) for item in test
    }
    means = [mean for scores in images.values() if (mean := mean_of_classes(scores)) is not None]
    return Measured(
        mean=float(np.mean(means)),
        seconds={kind: float(np.mean(spent)) for kind, spent in method.seconds.items()},
        templates=[item.image.stem for item in templates],
        images=images,
    )


def over_seeds(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and standard deviation; None for the latter where there is one seed."""
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "sd": sd}


def of_sources(found: Found) -> dict[str, float | None]:
    """Mean over the sources, and its deviation over seeds."""
    seeds = next(iter(found.values()))
    means = [np.mean([by_seed[seed].mean for by_seed in found.values()]) for seed in seeds]
    return over_seeds([float(mean) for mean in means])


def write(arguments: argparse.Namespace, runner: Runner) -> None:
    """Add the rows to the results, with the circumstances."""
    file: Path = arguments.results
    rows = json.loads(file.read_text())["rows"] if file.is_file() else {}
    facts = circumstances(seeds=arguments.seeds, templates=TEMPLATES, split=arguments.split)
    for row, found in runner.found.items():
        kinds = {kind for by_seed in found.values() for m in by_seed.values() for kind in m.seconds}
        spent = {
            kind: float(np.mean([m.seconds[kind] for s in found.values() for m in s.values()]))
            for kind in (FIRST, NEXT, AGAIN)
            if kind in kinds
        }
        rows[f"{arguments.label}: {row}"] = {
            "weights": runner.digest,
            "commit": facts["commit"],
            "machine": facts["machine"],
            **of_sources(found),
            "seconds": spent,
            "sources": {
                name: {
                    **over_seeds([m.mean for m in by_seed.values()]),
                    "seeds": {seed: asdict(m) for seed, m in by_seed.items()},
                }
                for name, by_seed in found.items()
            },
        }
    text = json.dumps({**facts, "rows": rows}, indent=1)
    # The scores of an image in one line.
    text = re.sub(r"\[[^\[\]{}]*\]", lambda found: re.sub(r"\s+", " ", found[0]), text)
    files.write_text(file, text + "\n")
    console.print(f"Results {file}", highlight=False)


def show(found: dict[str, Found], title: str) -> None:
    """Print the table."""
    table = Table("source", *found, title=title)

    def add(name: str, cells: Sequence[dict[str, float | None]]) -> None:
        texts = [f"{c['mean']:.3f}" + (f" ± {c['sd']:.3f}" if c["sd"] else "") for c in cells]
        table.add_row(name, *texts)

    for name in next(iter(found.values())):
        add(name, [over_seeds([m.mean for m in row[name].values()]) for row in found.values()])
    add("mean", [of_sources(row) for row in found.values()])
    console.print(table)


def panel(method: Method, test: Sequence[Item], found: Measured) -> UInt8Array:
    """Image, best template, prediction and truth of the test image of median Dice.

    Of a volume the slice in which the structures are largest.
    """
    ranked = sorted(test, key=lambda item: mean_of_classes(found.images[item.image.stem]) or 0.0)
    item = ranked[len(ranked) // 2]
    z = int((item.labels_ZHW > 0).sum(axis=(1, 2)).argmax())
    image, template = item.image.slice(z), method.template(item.image, z)
    mean = mean_of_classes(found.images[item.image.stem])
    return pictures.panels(
        [
            (method.source.folder.name, pictures.overlay(image, np.zeros(image.shape[:2]))),
            ("template", pictures.overlay(template.image, template.labels)),
            (f"{method.row}: {mean:.2f}", pictures.overlay(image, method.segment(item.image)[z])),
            ("truth", pictures.overlay(image, item.labels_ZHW[z])),
        ],
        # Wide images are made low, so that columns stay narrow.
        height=round(TILE * min(1.0, image.shape[0] / image.shape[1])),
    )


def gallery(panels: Sequence[UInt8Array]) -> UInt8Array:
    """Some sources beside each other, in columns."""
    columns = [pictures.rows(list(panels[i::SOURCES_IN_A_ROW])) for i in range(SOURCES_IN_A_ROW)]
    height = max(len(column) for column in columns)
    padded = [np.pad(c, ((0, height - len(c)), (0, 12), (0, 0))) for c in columns]
    return np.concatenate(padded, axis=1)


if __name__ == "__main__":
    main()
