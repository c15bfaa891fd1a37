"""What tables and pictures make of runs, also of few; and what methods change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ssl_pictures
import ssl_results
import ssl_tables
from ssl_results import RIVALS, Results
from ssl_tasks import METHODS, TASK_NAMES, Task, agree, differences

PATIENTS = [f"patient{number:03d}" for number in (11, 13, 22, 68)]
Run = dict[str, Any]


def run(
    method: str, dice: float, *, seed: int = 0, subset: str = "1", steps: int = 2500, **facts: Any
) -> Run:
    """A run whose patients have a Dice around ``dice``, two volumes each."""
    rng = np.random.default_rng([seed, len(method)])
    table = np.clip(dice + rng.normal(0, 0.01, (len(PATIENTS), 3)), 0, 1).repeat(2, axis=0)
    scores = {view: {"dice": table.tolist()} for view in ssl_tables.VIEWS}
    scores["last/views"] |= {"hd95": (20 * (1 - table)).tolist(), "asd": (1 - table).tolist()}
    both: Run = {"patients": [name for name in PATIENTS for _ in range(2)], "unit": "mm", **scores}
    return {
        "subset": subset,
        "method": method,
        "seed": seed,
        "steps": steps,
        "training": 600.0,
        "server": 300.0 if METHODS[method].server else 0.0,
        "vessa": "0" * 64 if METHODS[method].server else None,
        "answered": None,
        "commit": "f" * 40,
        "uncommitted": False,
        "processor": "x86",
        "python": "3.11",
        "torch": "2",
        "curves": {"step": [250, 500], "val/dice": [dice / 2, dice]},
        "scores": {"test": both, "val": both},
        **facts,
    }


def results(*runs: Run) -> Results:
    return Results(Task.load("acdc"), list(runs))


def column(rows: list[list[str]], head: str) -> dict[str, str]:
    """A column of a table, by its first one."""
    return {row[0]: row[rows[0].index(head)] for row in rows[1:]}


TABLES = [
    lambda found: ssl_tables.dice(found, "test"),
    lambda found: ssl_tables.structures(found, "test"),
    lambda found: ssl_tables.views(found, "test"),
    lambda found: ssl_tables.gains(found, "test"),
    lambda found: ssl_tables.gains(found, "val", unlike=False),
    lambda found: ssl_tables.annotated(found, "test"),
    lambda found: ssl_tables.cost(found, "test"),
    lambda found: ssl_tables.equal_cost(found, "test"),
    lambda found: ssl_tables.summary(found, "test"),
    ssl_tables.provenance,
]
SOME: tuple[list[Run], ...] = (
    [],
    [run("vessa", 0.8)],
    [run("unimatch", 0.7), run("vessa", 0.8, seed=1)],
    [run("unimatch", 0.7, scores={}), run("vessa", 0.8, steps=1667)],
    [run("unimatch", 0.7), run("vessa", 0.8, training=None, steps=10_000)],
)


@pytest.mark.parametrize("runs", SOME)
def test_tables_of_few_runs_are_tables(runs: list[Run]) -> None:
    for table in TABLES:
        rows = table(results(*runs))
        assert len({len(row) for row in rows}) == 1
        assert "nan" not in ssl_tables.markdown(rows)
    ssl_pictures.curves(results(*runs))
    ssl_pictures.patients(results(*runs))


def test_what_was_not_run_has_no_row() -> None:
    rows = ssl_tables.dice(results(run("bcp", 0.7)), "test")
    assert [row[0] for row in ssl_tables.with_figures(rows)[1:]] == ["BCP"]
    nothing = ssl_tables.with_figures(ssl_tables.dice(results(), "test"))
    assert nothing[1:] == [["not run yet", *["–"] * (len(nothing[0]) - 1)]]


def test_scores_are_means_over_seeds_with_their_deviation() -> None:
    runs = [run("unimatch", dice, seed=seed) for seed, dice in enumerate((0.6, 0.7, 0.8))]
    means = [np.mean(own["scores"]["test"]["last/views"]["dice"]) for own in runs]
    expected = f"{np.mean(means):.3f} ± {np.std(means, ddof=1):.3f} (3)"
    cells = column(ssl_tables.dice(results(*runs), "test"), "annotated: 1")
    assert cells["UniMatch V2"] == expected
    assert cells["CPS"] == "–"


def test_the_rival_is_the_better_one_on_the_very_patients() -> None:
    for better, other in (("unimatch", "unimatch-quarters"), ("unimatch-quarters", "unimatch")):
        runs = [run(better, 0.7), run(other, 0.6), run("bcp", 0.75), run("vessa", 0.8)]
        found = results(*runs, run("unimatch-regions", 0.74))
        assert found.best(("1", 2500), RIVALS) == (better, "last/views")
        assert found.best(("3", 2500), RIVALS) is None
        rows = ssl_tables.gains(found, "test")
        over = [row[2] for row in rows[1:] if row[0] == "1"]
        assert over[0] == f"{METHODS[better].title} (the fair rival)"
        assert over[1] == "BCP (the best without VESSA)"
        assert float(rows[1][3].strip("*")) == pytest.approx(0.1, abs=0.02)
        assert rows[2][3] < rows[1][3]


def test_nothing_is_the_best_before_the_strongest_was_run() -> None:
    found = results(run("unimatch", 0.7), run("bcp", 0.75), run("vessa", 0.8))
    over = [row[2] for row in ssl_tables.gains(found, "test")[1:] if row[0] == "1"]
    assert over[:2] == [f"UniMatch V2 ({ssl_tables.RIVAL})", ssl_tables.BEST]


@pytest.mark.parametrize("scored", [True, False], ids=["with one seed", "without scores"])
def test_nothing_is_the_best_before_the_strongest_has_all_seeds(scored: bool) -> None:
    runs = [run(name, 0.7, seed=seed) for name in ("unimatch", "vessa") for seed in range(2)]
    strongest = [run("unimatch-regions", 0.9, seed=seed) for seed in range(1 if scored else 2)]
    for facts in strongest:
        facts["scores"] = facts["scores"] if scored else {}
    row = ssl_tables.gains(results(*runs, *strongest), "test")[2]
    assert row[2:4] == [ssl_tables.BEST, "–"]


def test_a_rival_with_fewer_seeds_does_not_count() -> None:
    seeds = [run("unimatch", dice, seed=seed) for seed, dice in enumerate((0.7, 0.5))]
    found = results(*seeds, run("unimatch-quarters", 0.65))
    assert found.best(("1", 2500), RIVALS) == ("unimatch", "last/views")


def test_a_rival_is_not_harmed_by_its_views() -> None:
    both = run("unimatch-quarters", 0.6), run("vessa", 0.8)
    one = run("unimatch-quarters", 0.7)["scores"]["test"]["last/plain"]["dice"]
    for own in both:
        own["scores"]["test"]["last/plain"] = {"dice": one}
    found = results(*both, run("unimatch", 0.65))
    rival = found.best(("1", 2500), RIVALS)
    assert rival == ("unimatch-quarters", "last/plain")
    gain = found.gain(("1", 2500), "vessa", rival)
    assert gain is not None
    vessa = both[1]["scores"]["test"]["last/views"]["dice"]
    assert gain.mean == pytest.approx(np.mean(vessa) - np.mean(one))
    rows = ssl_tables.gains(found, "test")
    title = METHODS["unimatch-quarters"].title
    assert rows[1][2] == f"{title}, one view (the fair rival)"
    cells = column(ssl_tables.dice(found, "test"), "annotated: 1")
    assert cells[title] == f"{np.mean(one):.3f} (1)"
    assert cells[METHODS["vessa"].title] == f"{np.mean(vessa):.3f} (1)"


def test_unlike_patients_are_left_out_where_that_is_said() -> None:
    both = run("unimatch", 0.7), run("vessa", 0.7)
    dice = both[1]["scores"]["test"]["last/views"]["dice"]
    for index, name in enumerate(both[1]["scores"]["test"]["patients"]):
        dice[index] = both[0]["scores"]["test"]["last/views"]["dice"][index]
        if name == "patient068":
            dice[index] = [value + 0.2 for value in dice[index]]
    found = results(*both)
    assert ssl_tables.gains(found, "test")[1][3] == "**+0.050**"
    assert ssl_tables.gains(found, "test", unlike=False)[1][3] == "**+0.000**"
    assert ssl_tables.gains(found, "test", unlike=False)[1][7] == "0 of 3"


def test_each_annotated_patient_counts_once() -> None:
    runs = []
    for subset, seeds in (("1", 3), ("patient021", 1)):
        for seed in range(seeds):
            runs += [run("unimatch", 0.6, seed=seed, subset=subset)]
            runs += [run("vessa", 0.7, seed=seed, subset=subset)]
    rows = ssl_tables.annotated(results(*runs), "test")
    last = len(rows[0]) - 1
    own = {row[0]: row[last] for row in rows[1:]}
    gained = [float(own[name]) for name in ("patient021", "patient099")]
    total = own["all"].split(",")
    assert float(total[0].strip("*")) == pytest.approx(np.mean(gained), abs=0.001)
    assert total[1].strip() == "2 of 2 better"


def test_cost_counts_the_server_and_a_rival_of_the_same_cost_has_more_updates() -> None:
    short, long = (
        run("unimatch", 0.7, steps=3000),
        run("unimatch", 0.76, steps=4000, training=950.0),
    )
    found = results(run("unimatch", 0.7), run("vessa", 0.8), short, long)
    rows = {(row[1], row[2]): row for row in ssl_tables.cost(found, "test")}
    assert rows["VESSA: regions and labels", "2,500"][3:6] == ["10.0", "5.0", "15.0"]
    (row,) = ssl_tables.equal_cost(found, "test")[1:]
    assert row[1:5] == ["2,500 updates", "15.0", "UniMatch V2, 4,000 updates", "15.8"]
    assert float(row[6].strip("*")) == pytest.approx(0.04, abs=0.02)


def test_a_rival_is_chosen_among_the_seeds_and_patients_that_count() -> None:
    lucky = run("unimatch-quarters", 0.9, seed=3)
    runs = [run("unimatch", 0.7), run("unimatch-quarters", 0.6), lucky, run("vessa", 0.8)]
    rows = ssl_tables.gains(results(*runs), "test")
    assert rows[1][2].startswith("UniMatch V2 (")
    dice = runs[1]["scores"]["test"]["last/views"]["dice"]
    for index, name in enumerate(runs[1]["scores"]["test"]["patients"]):
        if name == "patient068":
            dice[index] = [1.0, 1.0, 1.0]  # the better one of all four, worse of the others
    quarters = METHODS["unimatch-quarters"].title
    rows = ssl_tables.gains(results(*runs), "test")
    assert rows[1][2].startswith(f"{quarters} (")
    rows = ssl_tables.gains(results(*runs), "test", unlike=False)
    assert rows[1][2].startswith("UniMatch V2 (")


@pytest.mark.parametrize("name", TASK_NAMES)
def test_methods_change_what_they_say_and_nothing_else(name: str) -> None:
    task = Task.load(name)
    subset = next(iter(task.subsets))
    plain = differences(task.run(subset, "unimatch-regions", 0).config)
    for method, changes in (
        ("unimatch", {"regions": False}),
        ("supervised", {"regions": False, "unimatch": {"weight": 0.0}}),
        ("bcp", {"regions": False, "method": "bcp"}),
        (
            "unimatch-quarters",
            {
                "regions": False,
                "augmentation": {"quarter_turns": 0.5},
                "labelled_augmentation": {"geometry": {"quarter_turns": 0.5}},
            },
        ),
        ("vessa", {"assistant": {"required": True}}),
        ("vessa-regions", {"assistant": {"required": True, "weight": 0.0}}),
        ("vessa-labels", {"assistant": {"required": True}, "regions": False}),
    ):
        assert differences(task.run(subset, method, 0).config) == plain | changes


def test_a_result_stays_one_with_new_keys_and_not_with_other_values() -> None:
    now = Task.load("acdc").run("1", "vessa", 0).settings
    assert "root" not in now["data"]
    before = {**now, "unimatch": dict(now["unimatch"])}
    del before["unimatch"]["loss"]
    assert agree(before, now)
    before["unimatch"]["weight"] = 2.0
    assert not agree(before, now)
    assert not agree(now, Task.load("acdc").run("1", "vessa", 1).settings)


def test_what_vessa_counts_is_no_setting_of_a_run_without_it() -> None:
    task = Task.load("acdc")
    plain = task.run("1", "unimatch", 0)
    before = plain.config | {"assistant": plain.config["assistant"] | {"weight": 0.123}}
    assert agree(before, plain.settings)
    asked = task.run("1", "vessa", 0)
    before = asked.config | {"assistant": asked.config["assistant"] | {"weight": 0.123}}
    assert not agree(before, asked.settings)


def test_results_replace_those_of_the_same_run_and_keep_the_others(tmp_path: Path) -> None:
    file, task = tmp_path / "results.json", Task.load("acdc")
    ssl_results.write(file, task, [run("unimatch", 0.7), run("vessa", 0.7)])
    ssl_results.write(file, task, [run("vessa", 0.8), run("vessa", 0.8, seed=1)])
    found = {ssl_results.key(own): own for own in ssl_results.read(file)}
    assert len(found) == 3
    assert len(file.read_text().splitlines()) == 5
    (mean,) = ssl_results.means([found["1", "vessa", 2500, 0]], "test")
    assert mean > 0.75
