"""The tables of the README and of ``docs/results.md``, from the results files of ``ssl_arms.py``.

    python benchmarks/ssl_tables.py

A table stands between ``<!-- table NAME -->`` and ``<!-- end of table -->``. Scores are 3D scores
over the volumes of a split, mean ± standard deviation over seeds; distances in voxels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial

import numpy as np
import numpy.typing as npt

from acdc import ROOT
from ssl_cells import Facts, committed_cells
from vessa_client import files
from vessa_client.console import console

DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "results.md")
# Of scores of several views and the pieces that a run keeps; without it, one view and all pieces.
AS_PREDICTED = "_as_predicted"
ALONE, WITH_VESSA = "UniMatch V2", "UniMatch V2 + VESSA"
PAIR = {"unimatch": ALONE, "mutual": WITH_VESSA}
# Patients who are stored turned against the annotated ones.
TURNED = {"val": ("082", "087"), "test": ("068",)}
# Each patient that was annotated alone: task, and the arm with VESSA.
ANNOTATED = {
    "99": ("acdc", "mutual"),
    "38": ("acdc_patient038", "mutual-sixteen"),
    "50": ("acdc_patient050", "mutual"),
    "21": ("acdc_patient021", "mutual-sixteen-unpooled"),
    "58": ("acdc_patient058", "mutual"),
    "49": ("acdc_patient049", "mutual"),
    "100": ("acdc_patient100", "mutual"),
}

Row = list[str]
Values = npt.NDArray[np.float64]


def main() -> None:
    """Write the tables into the documents."""
    for document in DOCUMENTS:
        files.write_text(document, filled(document.read_text()))
        console.print(f"{document}", highlight=False)


def filled(text: str) -> str:
    """The document with each of its tables as the results files have it."""
    return re.sub(
        r"(?<=<!-- table )([\w ]+)( -->\n).*?(?=<!-- end of table -->)",
        lambda found: f"{found[1]}{found[2]}{markdown(TABLES[found[1]]())}\n",
        text,
        flags=re.DOTALL,
    )


def markdown(rows: Sequence[Row]) -> str:
    """A table whose first row is its head."""
    head, *others = rows
    lines = [head, ["---"] * len(head), *others]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@cache
def usual(task: str) -> list[Facts]:
    """Trainings of the usual length, which have the same axis."""
    return [cell for cell in committed_cells(task) if "steps" not in cell["settings"]]


def runs(cases: int, arm: str, task: str = "acdc") -> list[Facts]:
    """Trainings of an arm of the usual length, by seed."""
    found = [cell for cell in usual(task) if (cell["cases"], cell["arm"]) == (cases, arm)]
    return sorted(found, key=lambda cell: int(cell["seed"]))


def patient(volume: Facts) -> str:
    """The number of a scored volume's patient."""
    return str(volume["name"]).split("_")[0].removeprefix("patient")


def dice(cell: Facts, split: str, patients: Sequence[str] = (), *, others: bool = False) -> float:
    """Mean Dice over volumes and structures: of all patients, of some, or of the others.

    NaN where the split was not scored.
    """
    values = [
        volume["dice"]
        for volume in cell.get(split, ())
        if not patients or (patient(volume) in patients) != others
    ]
    return float(np.mean(values)) if values else float("nan")


def mean_dice(cells: Sequence[Facts], split: str) -> str:
    """Mean and deviation over trainings of the Dice of all patients and structures."""
    return mean_sd(np.array([dice(cell, split) for cell in cells]), 3)


def columns(cells: Sequence[Facts], split: str) -> Row:
    """Scores of each structure, their mean, HD95 and ASD."""
    by_structure = np.array([np.mean([v["dice"] for v in c[split]], axis=0) for c in cells])
    far, near = (
        np.array([np.mean([v[name] for v in c[split]]) for c in cells]) for name in ("hd95", "asd")
    )
    structures = [mean_sd(values, 3) for values in by_structure.T]
    mean = f"**{mean_sd(by_structure.mean(axis=1), 3)}**"
    return [*structures, mean, mean_sd(far, 1), mean_sd(near, 2)]


def late(values: Sequence[float]) -> float:
    """Mean over the last fifth of a curve; NaN without one."""
    return float(np.mean(values[-max(1, len(values) // 5) :])) if values else float("nan")


def unlabelled(cells: Sequence[Facts]) -> Values:
    """Dice of the teacher's labels of unlabelled slices in the last fifth of each run.

    Of all structures together, in the batches that were logged.
    """
    return np.array([late(cell["curves"].get("quality/teacher", [])) for cell in cells])


def mean_sd(values: Values, digits: int) -> str:
    """Mean, and deviation where there are several."""
    if np.isnan(values).any():
        return "–"
    spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{spread}"


def by_arm(arms: Mapping[str, str] = PAIR) -> Iterator[tuple[Row, list[Facts]]]:
    """How a row begins, and its trainings: one, three and seven annotated patients, each arm."""
    for cases in (1, 3, 7):
        for arm, name in arms.items():
            yield [str(cases), name], runs(cases, arm)


def scores(split: str) -> list[Row]:
    """All structures with one, three and seven annotated patients."""
    head = ["annotated", "trained with", "seeds", "right ventricle", "myocardium"]
    rows = [[*head, "left ventricle", "mean", "HD95", "ASD"]]
    for row, trained in by_arm({"supervised": "labelled slices only", **PAIR}):
        cells = [cell for cell in trained if split in cell]
        if cells:
            rows.append([*row, str(len(cells)), *columns(cells, split)])
    return rows


def summary() -> list[Row]:
    """Mean Dice on test patients, of what ``ssl-trainer predict`` writes and of one view."""
    head = ["annotated", f"{ALONE}, as predicted", "with VESSA", f"{ALONE}, one view"]
    rows = [[*head, "with VESSA"]]
    for cases in (1, 3, 7):
        splits = ("test" + AS_PREDICTED, "test")
        means = [mean_dice(runs(cases, arm), split) for split in splits for arm in PAIR]
        rows.append([str(cases), *means])
    return rows


def seeds(split: str) -> list[Row]:
    """Mean Dice of each seed."""
    rows = [["annotated", "trained with", "seed 0", "seed 1", "seed 2", "mean"]]
    for row, cells in by_arm():
        values = [f"{dice(cell, split):.3f}" for cell in cells]
        rows.append([*row, *values, mean_dice(cells, split)])
    return rows


def turned() -> list[Row]:
    """Patients who lie unlike the annotated ones, and the others."""
    head = ["annotated", "trained with", "82 and 87", "other validation patients", "68"]
    rows = [[*head, "other test patients"]]
    for row, cells in by_arm():
        means = [
            np.mean([dice(cell, split, patients, others=others) for cell in cells])
            for split, patients in TURNED.items()
            for others in (False, True)
        ]
        rows.append([*row, *(f"{mean:.3f}" for mean in means)])
    return rows


def annotated() -> list[Row]:
    """Validation and unlabelled patients by who is annotated."""
    head = ["annotated patient", f"{ALONE}, validation", "with VESSA", f"{ALONE}, unlabelled"]
    rows = [[*head, "with VESSA", f"{ALONE}, HD95 on validation", "with VESSA"]]
    for name, (task, arm) in ANNOTATED.items():
        both = runs(1, "unimatch", task), runs(1, arm, task)
        found = [
            (
                mean_dice(cells, "val"),
                mean_sd(unlabelled(cells), 3),
                f"{np.mean([v['hd95'] for cell in cells for v in cell['val']]):.1f}",
            )
            for cells in both
        ]
        row = [
            value
            for without, with_vessa in zip(*found, strict=True)
            for value in (without, with_vessa)
        ]
        rows.append([name, row[0], f"**{row[1]}**", row[2], f"**{row[3]}**", *row[4:]])
    return rows


def compared(arms: Sequence[tuple[int, str, str]]) -> list[Row]:
    """Mean Dice of arms, given as number of annotated patients, arm, and what to call it."""
    rows = [["", "seeds", "validation", "test", "unlabelled"]]
    for cases, arm, name in arms:
        cells = runs(cases, arm)
        means = [mean_dice(cells, split) for split in ("val", "test")]
        late_dice = mean_sd(unlabelled(cells), 3)
        rows.append([f"{cases}: {name}", str(len(cells)), *means, late_dice])
    return rows


ABLATIONS = (
    (1, "unimatch", ALONE),
    (1, "one-way", "one-way: no masks go back, weight falls to 0"),
    (1, "mutual", "mutual"),
    (1, "mutual-not-overruling", "mutual, not overruling, all pieces"),
    (1, "mutual-pooled-early", "mutual, labels pooled early"),
    (1, "mutual-unweighted", "mutual, without confidence weighting"),
    (1, "mutual-adapted", "mutual, VESSA fitted to the bank"),
    (3, "unimatch", ALONE),
    (3, "mutual", "mutual"),
    (3, "mutual-all-pieces", "mutual, all pieces"),
    (3, "mutual-not-overruling", "mutual, not overruling, all pieces"),
    (3, "mutual-constant", "mutual, weight stays"),
    (3, "mutual-falling", "mutual, weight falls"),
)
TABLES: dict[str, Callable[[], list[Row]]] = {
    "summary": summary,
    "test": partial(scores, "test"),
    "validation": partial(scores, "val"),
    "test as predicted": partial(scores, "test" + AS_PREDICTED),
    "seeds test": partial(seeds, "test"),
    "seeds test as predicted": partial(seeds, "test" + AS_PREDICTED),
    "turned": turned,
    "annotated": annotated,
    "ablations": partial(compared, ABLATIONS),
}


if __name__ == "__main__":
    main()
