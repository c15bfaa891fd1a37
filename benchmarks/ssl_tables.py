"""The tables of the README and of ``docs/results.md``, from the results files of ``ssl_runs.py``.

    python benchmarks/ssl_tables.py

A table stands between ``<!-- table NAME -->`` and ``<!-- end of table -->``. Scores are of volumes
in 3D, of the last student; mean ± standard deviation over seeds, whose number is in brackets. With
VESSA in the views of ``ssl_scores.py``, without it in those that are best on the very patients.
What was not run is "–".
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from acdc import RESULTS, ROOT
from ssl_results import (
    MAIN,
    RIVALS,
    WITHOUT_VESSA,
    Budget,
    Results,
    Rival,
    by_patient,
    means,
    scores,
)
from ssl_statistics import Gain, Values, permutation_p, wilcoxon_p
from ssl_tasks import METHODS, Facts
from vessa_client import files
from vessa_client.console import console

DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "results.md")
NOTHING = "–"
FIGURE = re.compile(r"\d\.\d")
# What gains over what: a method, a name of :func:`_named`, or both rivals.
RIVAL, BEST = "the fair rival", "the best without VESSA"
# Nobody knows what is best where this has not been run.
STRONGEST = "unimatch-regions"
GAINS = (
    ("vessa", RIVAL),
    ("vessa", BEST),
    ("vessa", "unimatch-regions"),
    ("vessa", "vessa-regions"),
    ("vessa-regions", "unimatch-regions"),
    ("vessa-labels", RIVAL),
    ("unimatch-regions", RIVAL),
)
VIEWS = {
    MAIN: "last",
    "last/others": "other quarter turns",
    "last/turned": "without quarter turns",
    "last/plain": "one view",
    "best/views": "best on validation",
    "best/plain": "best on validation, one view",
}

Row = list[str]


def main() -> None:
    """Write the tables into the documents."""
    for document in DOCUMENTS:
        files.write_text(document, filled(document.read_text()))
        console.print(f"{document}", highlight=False)


def filled(text: str) -> str:
    """The document with each of its tables as the results files have it."""
    return re.sub(
        r"(?<=<!-- table )([\w ]+)( -->\n).*?(?=<!-- end of table -->)",
        lambda found: f"{found[1]}{found[2]}{markdown(with_figures(TABLES[found[1]]()))}\n",
        text,
        flags=re.DOTALL,
    )


def markdown(rows: Sequence[Row]) -> str:
    """A table whose first row is its head."""
    head, *others = rows
    lines = [head, ["---"] * len(head), *others]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def with_figures(rows: Sequence[Row]) -> list[Row]:
    """A table without the rows of what has not been run; of nothing it says so."""
    head, *others = rows
    shown = [row for row in others if NOTHING not in row or any(map(FIGURE.search, row))]
    return [head, *(shown or [["not run yet", *[NOTHING] * (len(head) - 1)]])]


def mean_sd(values: Values, digits: int = 3, *, count: bool = False) -> str:
    """Mean, and deviation where there are several; with ``count`` how many there are."""
    if not len(values):
        return NOTHING
    spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{spread}{f' ({len(values)})' if count else ''}"


def signed(value: float) -> str:
    """A gain."""
    return f"{value:+.3f}".replace("-", "−")


def dice(results: Results, split: str) -> list[Row]:
    """A row for each method, a column for each budget."""
    budgets = results.budgets()
    rows = [["trained with", *(f"annotated: {_title(results, budget)}" for budget in budgets)]]
    for name, method in METHODS.items():
        cells = [_means(results, budget, name, split) for budget in budgets]
        rows.append([method.title, *(mean_sd(values, count=True) for values in cells)])
    return rows


def structures(results: Results, split: str) -> list[Row]:
    """Dice of each structure, and distances, which are measured of the usual views only."""
    unit = _unit(results, split)
    names = [c.name for c in results.task.classes]
    rows = [["annotated", "trained with", *names, f"HD95 ({unit})", f"ASD ({unit})"]]
    for budget in results.budgets():
        for name, method in METHODS.items():
            view = _view(results, budget, name, split)
            runs = results.select(budget, name)
            found = [scores(run, split, view) for run in runs]
            by_structure = np.array([v.mean(axis=0) for v in found if v is not None]).T
            if len(by_structure):
                cells = [mean_sd(values) for values in by_structure]
                cells += [mean_sd(means(runs, split, MAIN, "hd95"), 1)]
                cells += [mean_sd(means(runs, split, MAIN, "asd"), 2)]
                rows.append([_title(results, budget), method.title, *cells])
    return rows


def views(results: Results, split: str) -> list[Row]:
    """Which student, and how it is asked."""
    rows = [["annotated", "trained with", *VIEWS.values()]]
    for budget in results.budgets():
        for name, method in METHODS.items():
            runs = results.select(budget, name)
            if len(means(runs, split)):
                cells = [mean_sd(means(runs, split, view)) for view in VIEWS]
                rows.append([_title(results, budget), method.title, *cells])
    return rows


def gains(results: Results, split: str, *, unlike: bool = True) -> list[Row]:
    """Paired over patients, with or without those who lie unlike the annotated ones."""
    leave_out = () if unlike else tuple(results.task.unlike.get(split, ()))
    rows = [["annotated", "gain of", "over", *_GAIN_HEAD]]
    for budget in results.budgets():
        for method, over in GAINS:
            rival = rival_of(results, budget, method, over, split, leave_out)
            found = results.gain(budget, method, rival, split, leave_out)
            row = [_title(results, budget), METHODS[method].title, _rival_title(over, rival)]
            rows.append([*row, *_gain_cells(found)])
    return rows


_GAIN_HEAD = ("mean", "95 % interval", "p, Wilcoxon", "p, signs", "patients better", "by seed")


def _gain_cells(found: Gain | None) -> Row:
    if found is None:
        return [NOTHING] * len(_GAIN_HEAD)
    return [
        f"**{signed(found.mean)}**",
        _interval(found),
        f"{found.wilcoxon:.3f}",
        f"{found.permutation:.3f}",
        f"{found.better} of {len(found.by_patient)}",
        ", ".join(signed(value) for value in found.by_seed.values()),
    ]


def _interval(found: Gain) -> str:
    return f"{signed(found.interval[0])} to {signed(found.interval[1])}"


def annotated(results: Results, split: str) -> list[Row]:
    """Each patient annotated alone; at the end all of them, each counting once."""
    shown = ("unimatch", "unimatch-quarters", "unimatch-regions", "vessa")
    rows = [["annotated patient", *(METHODS[name].title for name in shown), "gain over " + RIVAL]]
    gained: list[float] = []
    for patient, subset in sorted(results.alone().items()):
        budget = subset, results.task.steps
        cells = [mean_sd(_means(results, budget, name, split), count=True) for name in shown]
        rival = rival_of(results, budget, "vessa", RIVAL, split)
        found = results.gain(budget, "vessa", rival, split)
        gained += [] if found is None else [found.mean]
        rows.append([patient, *cells, NOTHING if found is None else signed(found.mean)])
    values = np.array(gained)
    total = NOTHING
    if gained:
        p = f"p {wilcoxon_p(values):.3f} (Wilcoxon), {permutation_p(values):.3f} (signs)"
        better = f"{int((values > 0).sum())} of {len(values)} better"
        total = f"**{signed(float(values.mean()))}**, {better}, {p}"
    rows.append(["all", *[""] * len(shown), total])
    return rows


def cost(results: Results, split: str) -> list[Row]:
    """CPU minutes of a run, of trainer and server, and its Dice."""
    spent = ["CPU minutes: training", "server", "both"]
    rows = [["annotated", "trained with", "updates", *spent, "Dice"]]
    for budget in results.budgets():
        for name, method in METHODS.items():
            seconds = _seconds(results.select(budget, name))
            if len(seconds):
                cells = [mean_sd(values / 60, 1) for values in (*seconds.T, seconds.sum(axis=1))]
                values = mean_sd(_means(results, budget, name, split), count=True)
                rows.append([budget[0], method.title, f"{budget[1]:,}", *cells, values])
    return rows


def equal_cost(results: Results, split: str) -> list[Row]:
    """VESSA against a rival that has more updates, and costs no less."""
    head = ["annotated", "with VESSA", "CPU minutes", "without", "CPU minutes", "Dice"]
    rows = [[*head, "gain", "95 % interval", "p, Wilcoxon"]]
    for budget in results.budgets():
        minutes = _minutes(results, budget, "vessa")
        longer = [b for b in results.budgets() if b[0] == budget[0] and b[1] > budget[1]]
        for name in RIVALS:
            enough = [b for b in longer if _minutes(results, b, name) >= minutes > 0]
            if enough:
                rows.append(_at_equal_cost(results, budget, name, enough[0], split))
    return rows


def _at_equal_cost(results: Results, budget: Budget, name: str, longer: Budget, split: str) -> Row:
    rival = results.best(longer, (name,), split, beside=results.select(budget, "vessa"))
    found = results.gain(budget, "vessa", rival, split, rival_budget=longer)
    cells = [NOTHING] * 3
    if found is not None:
        cells = [f"**{signed(found.mean)}**", _interval(found), f"{found.wilcoxon:.3f}"]
    return [
        budget[0],
        f"{budget[1]:,} updates",
        f"{_minutes(results, budget, 'vessa'):.1f}",
        f"{titled(rival)}, {longer[1]:,} updates",
        f"{_minutes(results, longer, name):.1f}",
        mean_sd(_means(results, longer, name, split), count=True),
        *cells,
    ]


def summary(results: Results, split: str) -> list[Row]:
    """With and without VESSA, and what it gains."""
    head = ["annotated", f"UniMatch V2, {RIVAL}", BEST, "with VESSA"]
    rows = [[*head, f"gain over {RIVAL}", f"gain over {BEST}"]]
    for budget in results.budgets():
        row = [_title(results, budget)]
        rivals = [rival_of(results, budget, "vessa", over, split) for over in (RIVAL, BEST)]
        for own in rivals:
            runs = [] if own is None else results.select(budget, own[0])
            values = mean_sd(means(runs, split, MAIN if own is None else own[1]), count=True)
            row.append(values if own is None else f"{values}, {titled(own)}")
        row.append(mean_sd(means(results.select(budget, "vessa"), split), count=True))
        for own in rivals:
            found = results.gain(budget, "vessa", own, split)
            row.append(NOTHING if found is None else _short(found))
        rows.append(row)
    return rows


def _short(found: Gain) -> str:
    return f"**{signed(found.mean)}** ({_interval(found)}; p {found.wilcoxon:.3f})"


def bank() -> list[Row]:
    """VESSA by itself with ever more annotated patients (``bank_growth.py``)."""
    found: Facts = json.loads((RESULTS / "bank_growth.json").read_text())["patients"]
    values = [f"{row['mean_of_structures']:.3f}" for row in found.values()]
    return [["annotated patients in the bank", *found], ["VESSA alone", *values]]


def provenance(results: Results) -> list[Row]:
    """Of what the results come."""
    runs = results.runs
    shares = [run["answered"] for run in runs if run["answered"] is not None]
    facts = {
        "runs": str(len(runs)),
        "commits": _all(run["commit"][:9] for run in runs),
        "with changes that are in none": str(sum(run["uncommitted"] for run in runs)),
        "weights of VESSA": _all(run["vessa"][:12] for run in runs if run["vessa"]),
        "least share of answers": f"{min(shares):.4g}" if shares else NOTHING,
        "processors": _all(run["processor"] for run in runs),
        "Python, PyTorch": _all(f"{run['python']}, {run['torch']}" for run in runs),
    }
    return [["", ""], *([name, value or NOTHING] for name, value in facts.items())]


def _all(values: Iterable[str]) -> str:
    return "; ".join(sorted(set(values)))


def _title(results: Results, budget: Budget) -> str:
    subset, steps = budget
    return subset if steps == results.task.steps else f"{subset}, {steps:,} updates"


def _view(results: Results, budget: Budget, method: str, split: str) -> str:
    """That counts: without VESSA the best one."""
    best = None if METHODS[method].server else results.best(budget, (method,), split)
    return MAIN if best is None else best[1]


def _means(results: Results, budget: Budget, method: str, split: str) -> Values:
    """Of each run, in the view that counts."""
    view = _view(results, budget, method, split)
    return means(results.select(budget, method), split, view)


def titled(rival: Rival | None) -> str:
    """A method, and its view where that is no usual one."""
    if rival is None:
        return NOTHING
    method, view = rival
    return METHODS[method].title + ("" if view == MAIN else f", {VIEWS[view]}")


def rival_of(
    results: Results,
    budget: Budget,
    method: str,
    over: str,
    split: str,
    leave_out: Sequence[str] = (),
) -> Rival | None:
    """What a method is compared with: of the rivals the best one on the very patients and seeds."""
    rivals = {RIVAL: RIVALS, BEST: WITHOUT_VESSA}.get(over, (over,))
    if over in METHODS and METHODS[over].server:
        return (over, MAIN)
    beside = results.select(budget, method)
    strongest = by_patient(results.select(budget, STRONGEST), split)
    if over == BEST and not by_patient(beside, split).keys() <= strongest.keys():
        return None
    return results.best(budget, rivals, split, beside=beside, leave_out=leave_out)


def _rival_title(over: str, rival: Rival | None) -> str:
    if over not in (RIVAL, BEST):
        return METHODS[over].title if rival is None else titled(rival)
    return over if rival is None else f"{titled(rival)} ({over})"


def _unit(results: Results, split: str) -> str:
    """Of the distances of all runs."""
    found = {run["scores"][split]["unit"] for run in results.runs if split in run["scores"]}
    return " and ".join(sorted(found)) or "mm"


def _seconds(runs: Sequence[Facts]) -> Values:
    """CPU seconds of training and of the server, (runs, 2), where both are known."""
    found = [[run["training"], run["server"]] for run in runs]
    return np.array([own for own in found if None not in own], dtype=np.float64).reshape(-1, 2)


def _minutes(results: Results, budget: Budget, method: str) -> float:
    """CPU minutes of a run on average; 0 where none is known."""
    seconds = _seconds(results.select(budget, method))
    return float(seconds.sum(axis=1).mean() / 60) if len(seconds) else 0.0


def of(task: str, table: Callable[..., list[Row]], *arguments: object, **options: bool) -> Table:
    """A table of a task's results, read when it is written."""
    return lambda: table(Results.load(task), *arguments, **options)


Table = Callable[[], list[Row]]
TABLES: dict[str, Table] = {
    "summary": of("acdc", summary, "test"),
    "test": of("acdc", dice, "test"),
    "validation": of("acdc", dice, "val"),
    "gains": of("acdc", gains, "test"),
    "gains without unlike patients": of("acdc", gains, "test", unlike=False),
    "gains on validation patients": of("acdc", gains, "val"),
    "structures": of("acdc", structures, "test"),
    "views": of("acdc", views, "test"),
    "annotated": of("acdc", annotated, "test"),
    "annotated on validation patients": of("acdc", annotated, "val"),
    "cost": of("acdc", cost, "test"),
    "equal cost": of("acdc", equal_cost, "test"),
    "bank": bank,
    "provenance": of("acdc", provenance),
    "left atrium": of("left_atrium", dice, "test"),
    "left atrium gains": of("left_atrium", gains, "test"),
}


if __name__ == "__main__":
    main()
