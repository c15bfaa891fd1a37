"""Runs of the comparison: trained, scored and kept; resumed; and failed where VESSA fails."""

from __future__ import annotations

import json
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import ssl_pictures
import ssl_results
import ssl_runs
import ssl_scores
import ssl_tables
from ssl_processes import Process, RunError, Server, locked, served
from ssl_runs import Comparison
from ssl_tasks import METHODS, Facts, Run, Task
from ssl_trainer.config import load, to_dict
from ssl_trainer.data.cases import find
from ssl_trainer.evaluation.evaluate import evaluate
from support import CLASSES
from trainer_support import small_config, write_case, write_dataset
from vessa_client import VessaClient

STEPS = 4


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    root = write_dataset(tmp_path / "data")
    write_case(root / "test", "p4_frame01", 4, labelled=True)
    train = to_dict(small_config(root, steps=STEPS, regions=True))
    del train["seed"]
    task = Task("small", root, CLASSES, {"1": ["p0"]}, train, {})
    return Comparison(task, tmp_path / "runs", tmp_path / "results.json", test=True)


def test_a_run_without_vessa_is_trained_once_and_scored_in_all_views(
    comparison: Comparison,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = comparison.task.run("1", "unimatch", 0)
    untested = replace(comparison, test=False)
    assert set(ssl_runs.complete(untested, run)["scores"]) == {"val"}
    folder = comparison.folder(run)
    trained = (folder / "last.safetensors").stat().st_mtime_ns
    facts = ssl_runs.complete(comparison, run)
    assert (folder / "last.safetensors").stat().st_mtime_ns == trained
    assert facts == ssl_results.read(comparison.results)[0]
    assert set(facts["scores"]) == {"val", "test"}
    assert facts["settings"].keys() >= {"regions", "steps"}
    assert "root" not in facts["config"]["data"]
    assert (facts["starts"], facts["server"], facts["vessa"]) == (1, 0.0, None)
    assert facts["training"] > 0
    assert facts["curves"]["step"] == [3, 6]
    _check_scores(comparison, folder, facts)
    monkeypatch.setattr(ssl_pictures, "SHOWN", ("unimatch",))
    drawn = ssl_pictures.gallery(comparison, "1", 0)
    assert drawn.shape[0] % 3 == 0  # rows: as many as the test patient has slices
    # What is committed is not trained again, and cannot be scored where its students are not.
    folder.rename(comparison.out / "away")
    assert ssl_runs.complete_all(comparison, [run]) == 0
    assert not folder.exists()
    assert "test Dice" in capsys.readouterr().out


def _check_scores(comparison: Comparison, folder: Path, facts: Facts) -> None:
    """Each view's Dice is that of the predictor that is meant."""
    config = load(folder / "config.yaml")
    cases = find(config.data).test
    names = [c.name for c in comparison.task.classes]
    found = facts["scores"]["test"]
    assert found["patients"] == ["p4"]
    for checkpoint, view in ssl_scores.SCORED:
        own = ssl_scores.predictor(folder, config, checkpoint, view)
        assert own.largest_component == ()
        assert own.quarters == {"views": "choose", "others": "average"}.get(view, "none")
        assert (len(own.turns) > 1) == (view != "plain")
        dice = [score.dice for score in evaluate(own, cases, names, distances=False)]
        assert np.allclose(found[f"{checkpoint}/{view}"]["dice"], dice, atol=1e-4)
    assert set(found["last/views"]) == {"dice", "hd95", "asd"}


def test_a_run_that_was_cut_off_goes_on_and_costs_both_starts(comparison: Comparison) -> None:
    run = comparison.task.run("1", "bcp", 0)
    folder = comparison.folder(run)
    damaged = comparison.task.root / "val" / "p3_frame01.nii.gz"
    content = damaged.read_bytes()
    damaged.write_bytes(b"damaged")
    with pytest.raises(RunError, match="p3_frame01"):
        ssl_runs.complete(comparison, run)
    assert not comparison.results.exists()
    damaged.write_bytes(content)
    facts = ssl_runs.complete(comparison, run)
    starts = json.loads((folder / ssl_runs.STARTS).read_text())
    assert facts["starts"] == len(starts) == 2
    assert facts["training"] == pytest.approx(sum(s["training"] for s in starts), abs=0.1)
    train = {**comparison.task.train, "weight_decay": 0.0}
    other = replace(comparison, task=replace(comparison.task, train=train))
    with pytest.raises(RunError, match="move it away"):
        ssl_runs.complete(other, other.task.run("1", "bcp", 0))


def test_a_run_that_another_process_is_at_is_left_to_it(comparison: Comparison) -> None:
    runs = [comparison.task.run("1", method, 0) for method in ("unimatch", "unimatch-quarters")]
    with locked(comparison.folder(runs[0]) / ssl_runs.LOCK):
        assert ssl_runs.complete_all(comparison, runs) == 1
    results = ssl_results.Results(comparison.task, ssl_results.read(comparison.results))
    assert [own["method"] for own in results.runs] == ["unimatch-quarters"]
    config = load(comparison.folder(runs[1]) / "config.yaml")
    student = ssl_scores.predictor(comparison.folder(runs[1]), config, "last", "views")
    assert student.quarters == "average"
    rows = {row[0]: row[1] for row in ssl_tables.dice(results, "test")}
    assert rows[METHODS["unimatch-quarters"].title] != rows["UniMatch V2"] == "–"


@pytest.mark.timeout(900)  # on a busy machine
def test_runs_with_vessa_have_all_answers_or_fail(
    comparison: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real server: a run with regions and labels, and one whose server dies."""
    facts = ssl_runs.complete(comparison, comparison.task.run("1", "vessa", 0))
    assert facts["answered"] == 1
    assert facts["regions"]["used"] == 3
    assert facts["vessa"] == comparison.vessa
    assert facts["server"] > 0
    servers: queue.Queue[Server] = queue.Queue()

    @contextmanager
    def watched(folder: Path, fill: Callable[[VessaClient], None]) -> Iterator[Server]:
        with served(folder, fill) as server:
            servers.put(server)
            yield server

    monkeypatch.setattr(ssl_runs, "served", watched)
    endless = comparison.task.run("1", "vessa-labels", 0, 100_000)
    log = comparison.folder(endless) / "log.jsonl"
    with ThreadPoolExecutor(1) as pool:
        ending = pool.submit(ssl_runs.complete, comparison, endless)
        server = servers.get(timeout=120)
        while not log.is_file():  # until it is under way
            assert not wait([ending], 0.2).done
        server.process.end(signal.SIGKILL)
        with pytest.raises(RunError, match="VESSA"):
            ending.result(120)
    assert [own["method"] for own in ssl_results.read(comparison.results)] == ["vessa"]


def test_who_stops_the_comparison_stops_its_processes(
    comparison: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Process] = []

    def complete(comparison: Comparison, run: Run) -> Facts:
        process = Process(comparison.out / "log", "-c", "import time; time.sleep(300)")
        started.append(process)
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGINT)
        process.check()
        return {}

    comparison.out.mkdir()
    monkeypatch.setattr(ssl_runs, "complete", complete)
    runs = [comparison.task.run("1", "unimatch", seed) for seed in range(3)]
    with pytest.raises(KeyboardInterrupt):
        ssl_runs.complete_all(comparison, runs)
    assert [process.wait() for process in started] == [-signal.SIGTERM]


def test_a_program_that_fails_says_why_in_its_log(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such thing"):
        Process(tmp_path / "log", "-c", "raise SystemExit('no such thing')").check()
    spent = Process(tmp_path / "log", "-c", "for _ in range(3_000_000): pass")
    assert spent.wait() == 0
    assert spent.ended
    assert spent.cpu_seconds > 0
    spent.stop()
