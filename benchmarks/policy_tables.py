"""What ``policy_ablation.py`` measures, keeps and shows: rows, results file, changes and tables.

A change is Dice without a rule less Dice with all rules, of the same image with the same templates;
where it is below zero the rule helps. A subject's change with the templates of a seed is the mean
over its images; of a source, the mean over subjects and seeds. Intervals are 95 % bootstrap
intervals: subjects and seeds are drawn again, and for several sources the sources, too.

Axes: S subjects, N seeds, R draws.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from acdc import circumstances
from ssl_tables import markdown
from vessa_client import files
from vessa_client.console import console

ACDC, OUTSIDE = "acdc", "outside ACDC"
ALL, BEFORE, OVERALL = "all rules", "before", "overall"
LEVELS = (0.3, 0.5, 0.7, 0.9)
LABEL_MAP, PROBABILITIES = KINDS = ("label map", "probabilities")
DRAWS = 2000
WIDE = 250
NOTE = (
    "Dice of all rules, mean ± standard deviation over seeds of the templates; the other columns "
    "are changes in hundredths of Dice where rules are off, with 95 % bootstrap intervals over "
    "subjects, seeds and, outside of ACDC, sources. Below zero: the rule helps."
)

Values = npt.NDArray[np.float64]
Summary = dict[str, Any]
# What was measured of an image.
Cell = dict[str, Any]
# Cells by seed and image.
Cells = Mapping[str, Mapping[str, Cell]]


@dataclass(frozen=True)
class Row:
    """Rules that are off, and where that can change anything.

    Attributes:
        name: of the row.
        off: the rules.
        against: the row that it is compared with; None where its own Dice is shown.
        volumes: whether it is for volumes alone.
        turned: whether images are turned by a quarter.
        many: whether there are more templates than a request uses, and pictures are asked.
    """

    name: str
    off: tuple[str, ...] = ()
    against: str | None = ALL
    volumes: bool = False
    turned: bool = False
    many: bool = False


ROWS = (
    Row(ALL, against=None),
    Row("no turns", ("turns",)),
    Row("no focus", ("focus",)),
    Row("no votes", ("votes",), volumes=True),
    Row("five steps", ("turns", "focus", "votes")),
    Row("turned image", against=None, turned=True),
    Row("turned image, no turns", ("turns",), "turned image", turned=True),
    Row("many templates", against=None, many=True),
)
STUDENT_ROWS = (
    Row(ALL, against=None),
    Row("no own_share", ("own_share",)),
    Row("no student_window", ("student_window",)),
    Row("no keep_unsure", ("keep_unsure",)),
    Row("none of these", ("own_share", "student_window", "keep_unsure")),
)


class Record:
    """The results file: what was measured with weights of one label.

    What it had of the label of another identity is replaced once something is measured.
    """

    def __init__(self, file: Path, label: str, runs: dict[str, Any], run: dict[str, Any]) -> None:
        self.file = file
        self.label = label
        self.runs = runs
        self.run = run
        self._session: dict[str, object] | None = circumstances()

    @staticmethod
    def open(file: Path, label: str, **identity: str) -> Record:
        """Read the file; what it has of this label counts if its identity is the same."""
        runs = json.loads(file.read_text())["runs"] if file.is_file() else {}
        rows = {"rows": [r.name for r in ROWS], "student_rows": [r.name for r in STUDENT_ROWS]}
        known = runs.get(label, {})
        wanted = identity | rows
        same = {key: known.get(key) for key in wanted} == wanted
        return Record(file, label, runs, known if same else {**wanted, "measured": {}})

    def cells(self, source: str, seed: int) -> dict[str, Cell]:
        """Images that were measured with the templates of a seed."""
        found: dict[str, Cell] = self.run["measured"].get(source, {}).get(str(seed), {})
        return found

    def add(self, source: str, seed: int, image: str, cell: Cell) -> None:
        """Keep what was measured of an image; with the first one, the circumstances."""
        if self._session is not None:
            self.run.setdefault("sessions", []).append(self._session)
            self._session = None
        self.run["measured"].setdefault(source, {}).setdefault(str(seed), {})[image] = cell

    def write(self, **more: object) -> None:
        """Write the file, with ``more`` of the run, if something was measured."""
        if not self.run["measured"]:
            return
        self.run.update(more)
        self.runs[self.label] = self.run
        text = json.dumps({"runs": self.runs}, indent=1)
        # Lists of numbers, and what has nothing but them, in one line.
        text = re.sub(r"\[[^\[\]{}]*\]", lambda found: re.sub(r"\s+", " ", found[0]), text)
        files.write_text(self.file, text + "\n")


def matrix(
    cells: Cells, seeds: Sequence[str], values: Callable[[Cell], Sequence[float | None]]
) -> Values:
    """Mean of the values of a subject's images with the templates of each seed, (S, N).

    NaN where there is none.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for seed, images in cells.items():
        for cell in images.values():
            known = [value for value in values(cell) if value is not None]
            found.setdefault(cell["subject"], {}).setdefault(seed, []).extend(known)
    table = [[by_seed.get(seed) or [np.nan] for seed in seeds] for by_seed in found.values()]
    return np.array([[np.mean(known) for known in row] for row in table], dtype=np.float64)


def mean_of_known(values: Values, axis: int | None = None) -> Values:
    """Mean without NaN; NaN where there is nothing else."""
    count = (~np.isnan(values)).sum(axis=axis)
    total = np.nansum(values, axis=axis)
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan))


def resampled(values_SN: Values, rng: np.random.Generator) -> Values:
    """Means over subjects and seeds that are drawn again, (R,); NaN where none is known."""
    subjects, seeds = values_SN.shape
    times_RS = rng.multinomial(subjects, np.full(subjects, 1 / subjects), size=DRAWS)
    times_RN = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=DRAWS)
    known_SN = (~np.isnan(values_SN)).astype(np.float64)
    total_R = ((times_RS @ np.nan_to_num(values_SN)) * times_RN).sum(axis=1)
    count_R = ((times_RS @ known_SN) * times_RN).sum(axis=1)
    return np.where(count_R > 0, total_R / np.maximum(count_R, 1), np.nan)


def summary(sources: Sequence[Values]) -> Summary | None:
    """Mean over sources of their means, its interval, and deviation over seeds; None of nothing."""
    known = [values_SN for values_SN in sources if not np.isnan(values_SN).all()]
    if not known:
        return None
    rng = np.random.default_rng(0)
    draws_QR = np.stack([resampled(values_SN, rng) for values_SN in known])
    chosen_QR = rng.integers(len(known), size=draws_QR.shape)
    drawn_R = mean_of_known(np.take_along_axis(draws_QR, chosen_QR, axis=0), axis=0)
    low, high = np.nanpercentile(drawn_R, [2.5, 97.5])
    by_seed_QN = np.stack([mean_of_known(values_SN, axis=0) for values_SN in known])
    by_seed = mean_of_known(by_seed_QN, axis=0)
    by_seed = by_seed[~np.isnan(by_seed)]
    return {
        "mean": round(float(np.mean([mean_of_known(values_SN) for values_SN in known])), 5),
        "interval": [round(float(low), 5), round(float(high), 5)],
        "sd_of_seeds": round(float(by_seed.std(ddof=1)), 5) if len(by_seed) > 1 else None,
        "sources": len(known),
        "subjects": sum(len(values_SN) for values_SN in known),
    }


def tables(measured: Mapping[str, Cells]) -> dict[str, Any]:
    """All that is shown, for each source and for all but ACDC together."""
    seeds = sorted({seed for cells in measured.values() for seed in cells})
    groups = {source: [cells] for source, cells in measured.items()}
    others = [cells for source, cells in measured.items() if source != ACDC]
    pictures = [cells for cells in others if not of_volumes(cells)]
    both = 0 < len(pictures) < len(others)
    groups |= {OUTSIDE: others} if others else {}
    groups |= {f"{OUTSIDE}, pictures": pictures} if both else {}
    groups |= {f"{OUTSIDE}, volumes": [c for c in others if of_volumes(c)]} if both else {}
    return {
        "alone": {name: alone(cells, seeds) for name, cells in groups.items()},
        "student": {name: by_mask(cells, seeds) for name, cells in groups.items()},
        "cost": costs(measured),
    }


def of_volumes(cells: Cells) -> bool:
    """Whether the images of a source are volumes."""
    return any(cell["volume"] for images in cells.values() for cell in images.values())


def alone(cells: Sequence[Cells], seeds: Sequence[str]) -> dict[str, Summary | None]:
    """Dice, or its change, of each row without a student's mask."""
    names = [row.name for row in ROWS]

    def column(index: int, base: int | None) -> Summary | None:
        def values(cell: Cell) -> list[float | None]:
            return [changed(cell["alone"]["dice"], index, base)]

        return summary([matrix(c, seeds, values) for c in cells])

    return {
        row.name: column(index, None if row.against is None else names.index(row.against))
        for index, row in enumerate(ROWS)
    }


def by_mask(cells: Sequence[Cells], seeds: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Dice before and after, and its change of each other row, by kind and level of the masks."""
    found: dict[str, dict[str, Any]] = {}
    for kind in KINDS:
        by_level = {str(level): [f"{kind} {level}"] for level in LEVELS}
        by_level[OVERALL] = [f"{kind} {level}" for level in LEVELS]
        found[kind] = {
            level: with_student(cells, seeds, masks) for level, masks in by_level.items()
        }
    return found


def with_student(
    cells: Sequence[Cells], seeds: Sequence[str], masks: Sequence[str]
) -> dict[str, Summary | None]:
    """Dice before and after, and its change of each other row, of some students' masks."""

    def column(index: int, base: int | None) -> Summary | None:
        def values(cell: Cell) -> list[float | None]:
            known = [cell["student"][mask]["dice"] for mask in masks if mask in cell["student"]]
            return [changed(dice, index, base) for dice in known]

        return summary([matrix(c, seeds, values) for c in cells])

    # The first value is of the mask itself.
    rows = enumerate(STUDENT_ROWS, start=1)
    return {BEFORE: column(0, None)} | {
        row.name: column(index, None if row.against is None else 1) for index, row in rows
    }


def changed(dice: Sequence[float | None], index: int, base: int | None) -> float | None:
    """A row's Dice, or how far it is above that of another row; None where a row does not apply."""
    value, before = dice[index], 0.0 if base is None else dice[base]
    return None if value is None or before is None else value - before


def costs(measured: Mapping[str, Cells]) -> dict[str, dict[str, dict[str, float]]]:
    """Decoder passes and milliseconds of a request, mean over the sources, for each row."""
    spent: dict[tuple[str, str, str], dict[str, list[float]]] = {}

    def add(source: str, kind: str, rows: Sequence[Row], cell: Cell) -> None:
        for measure in ("passes", "milliseconds"):
            for row, value in zip(rows, cell[measure], strict=False):
                if value is not None:
                    by_source = spent.setdefault((kind, row.name, measure), {})
                    by_source.setdefault(source, []).append(value)

    for source, cells in measured.items():
        for cell in (cell for images in cells.values() for cell in images.values()):
            add(source, "volumes" if cell["volume"] else "pictures", ROWS, cell["alone"])
            for mask, found in cell["student"].items():
                add(source, mask.rsplit(" ", 1)[0], STUDENT_ROWS, found)
    means: dict[str, dict[str, dict[str, float]]] = {}
    for (kind, row, measure), by_source in spent.items():
        mean = float(np.mean([np.mean(values) for values in by_source.values()]))
        means.setdefault(kind, {}).setdefault(row, {})[measure] = round(mean, 2)
    return means


def texts(found: dict[str, Any]) -> dict[str, list[list[str]]]:
    """The tables as rows of text, the first one the head, by title."""
    head = [row.name for row in ROWS]
    rows = [["", "subjects", *head]]
    for source, columns in found["alone"].items():
        rows.append([source, str(columns[ALL]["subjects"]), *as_text(columns, ROWS)])
    student_rows = [["", "masks", "Dice", BEFORE, *(row.name for row in STUDENT_ROWS)]]
    for source, kinds in found["student"].items():
        for kind, levels in kinds.items():
            shown = levels if source in (ACDC, OUTSIDE) else {OVERALL: levels[OVERALL]}
            for level, columns in shown.items():
                before = columns[BEFORE]
                if before is not None:
                    cells = [f"{before['mean']:.3f}", *as_text(columns, STUDENT_ROWS)]
                    student_rows.append([source, kind, level, *cells])
    cost_rows = [["requests", "row", "decoder passes", "CPU ms"]]
    for kind, by_row in found["cost"].items():
        for name, cost in by_row.items():
            spent = cost.get("milliseconds")
            text = "" if spent is None else f"{spent:.1f}"
            cost_rows.append([kind, name, f"{cost['passes']:.2f}", text])
    return {
        "Without a student's mask": rows,
        "With a student's mask": student_rows,
        "Cost of a request": cost_rows,
    }


def as_text(columns: Mapping[str, Summary | None], rows: Sequence[Row]) -> list[str]:
    """Dice ± deviation over seeds; changes in hundredths with their interval."""
    found = []
    for row in rows:
        value = columns[row.name]
        if value is None:
            found.append("")
        elif row.against is None:
            deviation = value["sd_of_seeds"]
            more = "" if deviation is None else f" ± {deviation:.3f}"
            found.append(f"{value['mean']:.3f}{more}")
        else:
            low, high = (100 * bound for bound in value["interval"])
            mean = 100 * value["mean"]
            changes = mean or low or high
            found.append(f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]" if changes else "0")
    return found


def show(record: Record) -> None:
    """Compute the tables, write them into the results file and beside it, and print them."""
    if not record.run["measured"]:
        console.print("Nothing was measured")
        return
    found = tables(record.run["measured"])
    record.write(tables=found)
    document = [f"# Rules of the policy, {record.label}\n", f"{NOTE}\n"]
    wide = Console(width=WIDE)
    for title, rows in texts(found).items():
        table = Table(*rows[0], title=title)
        for row in rows[1:]:
            table.add_row(*row)
        wide.print(table)
        document += [f"## {title}\n", markdown(rows) + "\n"]
    path = record.file.with_name(f"{record.file.stem}_{record.label.replace(' ', '_')}.md")
    files.write_text(path, "\n".join(document))
    console.print(f"Results {record.file}, {path}", highlight=False)
