"""What each rule of the policy is worth: Dice without it, on ACDC and on other kinds of images.

    python benchmarks/policy_ablation.py --data DATA --seeds 0 1 2 --minutes 45
    python benchmarks/policy_ablation.py --data DATA --sources acdc drive hippocampus --images 2

Nothing is of a test split. On ACDC the validation patients, with all annotated slices of one
training patient as templates, another one for each seed; of the other sources images of ``train``,
with three others as templates, drawn for each seed, and of other subjects than these. Stage 1 saw
the ``train`` of most sources: ``--weights`` of a training that did not, with a ``--label``,
measures the rules on kinds of images that are new to the model. Classes that no template shows
do not count; of a volume at most twelve slices do, evenly spread.

Without a student's mask a rule is switched off in turn; ``turns`` also on images that are turned
by a quarter against the templates, and all rules on pictures with up to sixteen templates, of
which a request uses seven. With one, of a slice of each image: corruptions of the truth at four
levels of Dice, as label maps and as probabilities. Changes are paired, by image; see
``policy_tables.py``. Milliseconds are of the CPU; features are there before, but no answer. With a
student's mask VESSA's own answer is there, too.

Images are measured in rounds, few of all sources first. Writes after each source
``benchmarks/results/policy_ablation.json``, and last the tables beside it; what is there of the
same weights, policy and preprocessing is not measured again.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from acdc import RESULTS, AnnotatedSlice
from annotated_sources import dice, mean_of_classes
from policy_queries import Query, Task, tasks
from policy_tables import (
    ACDC,
    LABEL_MAP,
    LEVELS,
    PROBABILITIES,
    ROWS,
    STUDENT_ROWS,
    Cell,
    Record,
    show,
)
from student_masks import corrupted, slice_dice, softened
from vessa_client import AnyArray, SegmentationRequest, UInt8Array
from vessa_client.console import console, progress_bar
from vessa_server.api.settings import SHIPPED_WEIGHTS
from vessa_server.bank import Banks
from vessa_server.cache import NoCache
from vessa_server.cases.case import Case
from vessa_server.engine import VessaEngine
from vessa_server.features.lru import ByteLru
from vessa_server.inference.look import AnyLook, Prediction
from vessa_server.model import checkpoint
from vessa_server.model.preprocess import PREPROCESSING_VERSION
from vessa_server.model.presets import preset
from vessa_server.policy.config import POLICY_VERSION
from vessa_server.runtime.protocol import Runtime
from vessa_server.runtime.torch_runtime import TorchRuntime

# Images of a source and seed after each round.
ROUNDS = (1, 2, 4, 8)
# Name of the bank of more templates than a request uses.
MANY = "many"
Columns = list[float | None]


class MeasuredEngine(VessaEngine):
    """Counts decoder passes, and keeps answers apart from features, so that it can forget them."""

    def __init__(self, runtime: Runtime, folder: Path) -> None:
        super().__init__(runtime, Banks(folder), NoCache())
        self.answers: ByteLru[Any] = ByteLru(self.settings.feature_bytes)
        self.passes = 0

    def open(self, *arguments: Any, **options: Any) -> Case:
        """A case that remembers nothing of what was forgotten."""
        case = super().open(*arguments, **options)
        case.memory = self.answers
        return case

    def run(self, looks: Sequence[AnyLook], pause: Callable[[], object] = bool) -> list[Prediction]:
        """Run looks, and count them."""
        self.passes += len(looks)
        return super().run(looks, pause)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the sources")
    parser.add_argument("--acdc", type=Path, help="folder of ACDC, by default in DATA")
    parser.add_argument("--sources", nargs="+", help="folders; by default all of DATA")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the templates")
    parser.add_argument("--images", type=int, default=10, help="of a source and seed at most")
    parser.add_argument("--minutes", type=float, default=45, help="after which it ends")
    parser.add_argument("--weights", type=Path, default=SHIPPED_WEIGHTS / "nano")
    parser.add_argument("--label", default="shipped", help="of the weights")
    parser.add_argument("--results", type=Path, default=RESULTS / "policy_ablation.json")
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        parser.error(f"--data: no folder {arguments.data}")
    torch.set_num_threads(1)
    digest = checkpoint.digest(arguments.weights)
    record = Record.open(
        arguments.results,
        arguments.label,
        weights=digest,
        policy_version=POLICY_VERSION,
        preprocessing_version=PREPROCESSING_VERSION,
    )
    runtime = TorchRuntime(checkpoint.load(preset("nano"), arguments.weights), digest)
    names = arguments.sources or sorted(f.name for f in arguments.data.iterdir() if f.is_dir())
    folders = {name: arguments.data / name for name in names}
    if ACDC in folders and arguments.acdc:
        folders[ACDC] = arguments.acdc
    work = tasks(folders, arguments.seeds, arguments.images)
    measure(work, runtime, record, arguments.minutes)
    show(record)


def measure(work: Sequence[Task], runtime: Runtime, record: Record, minutes: float) -> None:
    """Measure what the record does not have, in rounds, until the time is over."""
    end = time.monotonic() + 60 * minutes
    most = max((len(task.queries) for task in work), default=0)
    with progress_bar() as progress:
        bar = progress.add_task("images", total=sum(len(task.queries) for task in work), note="")
        for count in sorted({*ROUNDS, most}):
            for task in work:
                known = record.cells(task.source, task.seed)
                missing = [q for q in task.queries[:count] if q.name not in known]
                if missing and time.monotonic() < end:
                    progress.update(bar, note=f"{task.source}, seed {task.seed}")
                    measure_task(task, missing, runtime, record, end)
                    console.print(f"{task.source}, seed {task.seed}: {count} images")
            done = [len(record.cells(task.source, task.seed)) for task in work]
            progress.update(bar, completed=sum(done))


def measure_task(
    task: Task, queries: Sequence[Query], runtime: Runtime, record: Record, end: float
) -> None:
    """Measure some queries of a task as long as there is time, and write them."""
    with tempfile.TemporaryDirectory() as scratch:
        engine = new_engine(task, runtime, Path(scratch))
        for query in queries:
            if time.monotonic() > end:
                break
            timed = not record.run["measured"].get(task.source)
            cell = measured(engine, query, task.asked, timed=timed)
            record.add(task.source, task.seed, query.name, cell)
            engine.memory.clear()
    record.write()


def new_engine(task: Task, runtime: Runtime, folder: Path) -> MeasuredEngine:
    """An engine with the task's templates, and with all in a second bank if those are many."""
    engine = MeasuredEngine(runtime, folder)
    for image, labels in task.templates:
        engine.bank.add(image, labels, task.classes)
    if task.more and len(task.templates) + len(task.more) > engine.settings.default_top_k:
        for image, labels in (*task.templates, *task.more):
            engine.banks.create(MANY).add(image, labels, task.classes)
    return engine


def measured(engine: MeasuredEngine, query: Query, names: tuple[str, ...], *, timed: bool) -> Cell:
    """All rows of both tables for one query."""
    return {
        "subject": query.subject,
        "volume": bool(query.volume),
        "alone": alone(engine, query, names, timed=timed),
        "student": with_student(engine, query, names, timed=timed),
    }


def alone(
    engine: MeasuredEngine, query: Query, names: tuple[str, ...], *, timed: bool
) -> dict[str, Columns]:
    """Dice, passes and milliseconds of each row without a student's mask."""
    found = columns()
    for row in ROWS:
        bank = MANY if row.many else ""
        if (row.volumes and not query.volume) or bank not in ("", *engine.banks.names()):
            add(found, None, None, None)
            continue
        shown = query.turned() if row.turned else query

        requests = [
            replace(shown.request(z, names), policy_off=row.off, bank=bank)
            for z in range(len(shown.slices))
        ]
        segment = partial(segmented_anew, engine, requests)
        labels_ZHW, passes, _ = spent(engine, segment)
        score = mean_of_classes(dice(labels_ZHW, shown.labels_ZHW, len(names)))
        # Again: features are there now.
        milliseconds = spent(engine, segment)[2] / len(shown.slices) if timed else None
        add(found, score, passes / len(shown.slices), milliseconds)
    return found


def with_student(
    engine: MeasuredEngine, query: Query, names: tuple[str, ...], *, timed: bool
) -> dict[str, dict[str, Columns]]:
    """The same of each student's mask of a slice, whose own Dice comes first."""
    seed = zlib.crc32(query.name.encode())
    shown = np.flatnonzero(query.labels_ZHW.any(axis=(1, 2)))
    z = int(np.random.default_rng(seed).choice(shown))
    truth = query.labels_ZHW[z]
    masks = students_masks(query, z, len(names), seed)
    found = {mask: columns() for mask in masks}
    for mask, student in masks.items():
        before = slice_dice(as_labels(student), truth, len(names))
        found[mask]["dice"].append(round(before, 4))
    engine.answers.clear()
    for row in STUDENT_ROWS:
        request = replace(query.request(z, names), policy_off=row.off)
        engine.segment(request)
        for mask, student in masks.items():
            ask = partial(segmented, engine, replace(request, student_mask=student))
            labels, passes, _ = spent(engine, ask)
            milliseconds = spent(engine, ask)[2] if timed else None
            add(found[mask], slice_dice(labels, truth, len(names)), passes, milliseconds)
    return found


def students_masks(query: Query, z: int, classes: int, seed: int) -> dict[str, AnyArray]:
    """Corruptions of a slice's truth, by kind and level, as far as there are some."""
    item = AnnotatedSlice(query.name, query.slices[z], query.labels_ZHW[z])
    found: dict[str, AnyArray] = {}
    for level in LEVELS:
        for mask in corrupted([item], level, seed, classes):
            found[f"{LABEL_MAP} {level}"] = mask.labels
            found[f"{PROBABILITIES} {level}"] = softened(mask.labels, classes)
    return found


def as_labels(student: AnyArray) -> UInt8Array:
    """A student's label map, or the one of its probabilities."""
    if student.ndim == 2:
        return student.astype(np.uint8)
    background_1HW = 1 - student.sum(axis=0, keepdims=True)
    labels: UInt8Array = np.concatenate([background_1HW, student]).argmax(axis=0).astype(np.uint8)
    return labels


def segmented(engine: MeasuredEngine, request: SegmentationRequest) -> UInt8Array:
    """The labels of a slice."""
    return engine.segment(request).labels


def segmented_anew(engine: MeasuredEngine, requests: Sequence[SegmentationRequest]) -> UInt8Array:
    """Labels of slices, (Z, H, W), of which no answer is there."""
    engine.answers.clear()
    return np.stack([segmented(engine, request) for request in requests])


def spent(
    engine: MeasuredEngine, action: Callable[[], UInt8Array]
) -> tuple[UInt8Array, int, float]:
    """What an action gives, its decoder passes, and its milliseconds of the CPU."""
    passes, start = engine.passes, time.process_time()
    found = action()
    return found, engine.passes - passes, 1000 * (time.process_time() - start)


def columns() -> dict[str, Columns]:
    """A value for each row, once all were added."""
    return {"dice": [], "passes": [], "milliseconds": []}


def add(
    found: dict[str, Columns], score: float | None, passes: float | None, spent: float | None
) -> None:
    """Add a row; None where it does not apply or was not timed."""
    for name, value, digits in zip(found, (score, passes, spent), (4, 2, 1), strict=True):
        found[name].append(None if value is None else round(float(value), digits))


if __name__ == "__main__":
    main()
