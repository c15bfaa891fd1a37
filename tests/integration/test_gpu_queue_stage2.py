"""Jobs of Stage 2 for a GPU: prepared, rehearsed, cut off and resumed, collected."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

import ssl_results
import ssl_runs
from gpu_jobs import stage2, stage2_trainings
from gpu_jobs import stage2_states as packed
from gpu_jobs.clock import Clock
from gpu_jobs.errors import JobError
from gpu_jobs.jobs import JOBS, RESULT
from gpu_jobs.manifest import Manifest
from gpu_jobs.stage2 import Stage2Context
from gpu_jobs.stage2_servers import Servers
from gpu_jobs.stage2_states import Note
from gpu_jobs.stage2_trainings import Trainings
from gpu_queue import machine as machines
from gpu_queue import paths, travel
from gpu_queue import stage2 as queue
from gpu_queue.collect import collect
from gpu_queue.prepare import prepare
from gpu_queue.rehearse import rehearse
from ssl_runs import Comparison
from ssl_tasks import Facts, Run, Task
from ssl_trainer.config import to_dict
from support import CLASSES, picture
from support_gpu import change, project, states, use
from trainer_support import small_config, write_case, write_dataset

CELLS = JOBS["stage2-cells"]
CHOSEN = {"subsets": "1", "methods": ["vessa", "unimatch"]}
TASK = Task.load("acdc")


def _heart(folder: Path, name: str, seed: int) -> None:
    """A volume with all three structures of the task."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = [picture(seed * 10 + z, (44, 48)) for z in range(3)]
    image, labels = (np.stack(maps, axis=2) for maps in zip(*pairs, strict=True))
    image[2:8, 5:-5], labels[2:8, 5:-5] = 170, 3
    for suffix, volume in (("", image), ("_gt", labels)):
        nib.save(
            nib.Nifti1Image(volume, np.diag([1.5, 1.5, 8, 1])), folder / f"{name}{suffix}.nii.gz"
        )


def _data(folder: Path) -> Path:
    for split, patient in (("train", 1), ("train", 3), ("train", 99), ("val", 2), ("test", 68)):
        _heart(folder / "acdc" / split, f"patient{patient:03d}_frame01", patient)
    return folder


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A copy of the project, and what a rehearsal of two runs in it brought."""
    folder = tmp_path_factory.mktemp("stage2")
    root, out = folder / "project", folder / "out"
    project(root)
    with pytest.MonkeyPatch.context() as patch:
        use(root, patch)
        data = _data(folder / "data")
        for _ in range(2):  # the second time with the pack of before
            prepare(CELLS, data=data, weights=paths.SHIPPED, changes=CHOSEN, carry_wheels=False)
        rehearse(CELLS, keep=out)
    return root, out


@pytest.fixture
def brought(rehearsed: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a GPU would have brought: the rehearsal's, as of a GPU and of the real settings."""
    root, out = rehearsed
    shutil.copytree(root, tmp_path / "project", ignore=shutil.ignore_patterns("packs"))
    shutil.copytree(out, tmp_path / "out")
    use(tmp_path / "project", monkeypatch)

    def as_if(result: dict[str, Any]) -> None:
        result |= {"rehearsal": False, "device": "H100"}
        for facts in result["runs"]:
            facts |= {"steps": 2500, "config": _run(facts["method"]).settings}

    change(tmp_path / "out", as_if)
    return tmp_path / "out"


def _run(method: str) -> Run:
    return TASK.run("1", method, 0, 2500)


def test_a_rehearsal_makes_runs_with_and_without_vessa_from_packed_data(
    rehearsed: tuple[Path, Path],
) -> None:
    root, out = rehearsed
    result = json.loads((out / RESULT).read_text())
    assert result["finished"]
    found = {facts["method"]: facts for facts in result["runs"]}
    assert set(found) == {"vessa", "unimatch"}
    assert found["vessa"]["vessa"] == result["weights_before"]
    assert found["vessa"]["answered"] == 1.0
    assert found["vessa"]["regions"]["used"] >= 2
    for facts in found.values():
        assert facts["commit"] == result["commit"].removesuffix("+")
        assert facts["processor"] == "cpu"
        assert (facts["steps"], facts["starts"], facts["training"]) == (4, 1, None)
        assert facts["scores"]["val"]["patients"] == ["patient002"]
        assert facts["scores"]["test"]["patients"] == ["patient068"]
        assert np.shape(facts["scores"]["test"]["best/views"]["dice"]) == (1, 3)
    console = (out / "console.log").read_text()
    assert "server of subset 1: cpu" in console
    # Of the unlabelled volumes a rehearsal has one.
    assert "8 files of acdc; 2 of 2 runs to make, 0 of them begun" in console
    assert "unimatch/4/0" in console.splitlines()[-1] + console.splitlines()[-2]
    assert len(list((root / "gpu" / ".work" / "packs").iterdir())) == 1


def test_collected_runs_are_results_of_the_comparison_and_are_not_made_again(
    brought: Path, tmp_path: Path
) -> None:
    kept = queue.kept(CELLS)
    kept.mkdir(parents=True)
    old = kept / packed.file_name("acdc", _run("vessa"))
    old.write_bytes(b"of a run that is made now")
    file = collect(CELLS, brought)
    assert file.name == "gpu_stage2-cells_1.json"
    assert "runs" not in json.loads(file.read_text())
    assert states()["stage2-cells"].startswith("done: [gpu_stage2-cells_1]")
    assert not old.exists()
    results = paths.RESULTS / "ssl_acdc_gpu.json"
    assert not (paths.RESULTS / "ssl_acdc.json").exists()  # of other images
    assert {facts["method"] for facts in ssl_results.read(results)} == {"vessa", "unimatch"}
    context = _context(tmp_path, {**CELLS.settings, **CHOSEN, "seeds": [0, 1], "steps": 2500})
    object.__setattr__(context, "comparison", Comparison(TASK, tmp_path, results))
    runs = context.plan.runs(TASK)
    assert [run.seed for run in stage2._missing(context, runs)] == [1, 1]
    made = ssl_results.read(results)
    ssl_results.write(results, TASK, [{**made[1], "vessa": "0" * 64}])
    assert made[1]["method"] == "vessa"
    assert stage2._missing(context, runs)[0].name == _run("vessa").name


def _context(folder: Path, settings: dict[str, Any]) -> Stage2Context:
    manifest = Manifest(
        date="", commit="", weights="weights", weights_digest="0" * 64, settings=settings
    )
    clock = Clock(time.time(), time.time() + 60)
    return Stage2Context(CELLS, manifest, folder, folder / "out", folder / "run", clock, {})


def _other_settings(result: dict[str, Any]) -> None:
    result["runs"][0]["config"]["labelled_batch"] = 5


def _other_weights(result: dict[str, Any]) -> None:
    for facts in result["runs"]:
        facts["vessa"] = "f" * 64


def _not_tested(result: dict[str, Any]) -> None:
    del result["runs"][1]["scores"]["test"]


def _damaged_state(result: dict[str, Any]) -> None:
    result["states"] = {"1/vessa": {"step": 5, "file": RESULT}}


def _ended_early(result: dict[str, Any]) -> None:
    result |= {"error": "too slow", "runs": [], "states": {"1/vessa": {"step": 5, "lost": "big"}}}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_other_settings, "of other settings than the comparison has now"),
        (_other_weights, "of weights ffffffffffff, here"),
        (_not_tested, "scored on val, expected val and test"),
        (_damaged_state, "result.json: no state of a run"),
        (_ended_early, "the job ended itself: too slow"),
    ],
)
def test_runs_that_do_not_belong_to_the_comparison_are_not_collected(
    brought: Path, spoil: Callable[[dict[str, Any]], None], message: str
) -> None:
    change(brought, spoil)
    with pytest.raises(JobError, match=message):
        collect(CELLS, brought)
    assert not list(paths.RESULTS.iterdir())
    assert states()["stage2-cells"] == "waiting"


def test_what_a_job_made_before_it_ended_itself_is_collected(
    brought: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def ended(result: dict[str, Any]) -> None:
        state = {"step": 5, "file": "state_acdc_cps.tar.gz"}
        result |= {"error": "too slow", "finished": False, "states": {"1/cps": state}}

    change(brought, ended)
    file = collect(CELLS, brought)
    assert json.loads(file.read_text())["error"] == "too slow"
    assert states()["stage2-cells"].startswith("ended early: ")
    assert len(ssl_results.read(paths.RESULTS / "ssl_acdc_gpu.json")) == 2
    said = " ".join(capsys.readouterr().out.split())
    assert "1/cps: begins anew, no state came back: no file state_acdc_cps.tar.gz" in said


def test_states_are_kept_and_carried_as_far_as_they_fit(brought: Path, tmp_path: Path) -> None:
    def cut_off(result: dict[str, Any]) -> None:
        result["states"] = {}
        result["finished"] = False
        for method, step in (("cps", 10), ("bcp", 30), ("supervised", 20)):
            run, source = _run(method), tmp_path / method
            source.mkdir()
            (source / "last.safetensors").write_bytes(np.random.default_rng(step).bytes(1 << 20))
            file = packed.file_name("acdc", run)
            packed.pack(source, Note("acdc", run.name, step, 2500, None), brought / file)
            result["states"][run.name] = {"step": step, "file": file}

    change(brought, cut_off)
    collect(CELLS, brought)
    assert len(list(queue.kept(CELLS).iterdir())) == 3
    assert states()["stage2-cells"].startswith("ended early: ")
    machine, folder = machines.read(paths.MACHINE), paths.WORK / CELLS.name
    total = travel.load(paths.ROOT, folder).total
    room = dict(vars(machine)) | {"travels": total + int(2.7 * (1 << 20))}
    settings = {**CELLS.settings, "methods": ["cps", "bcp", "supervised"], "steps": 2500}
    queue.put_states(CELLS, settings, folder, type(machine)(**room))
    carried = {packed.note_of(file).step for file in (folder / packed.FOLDER).iterdir()}
    assert carried == {30, 20}
    context = _context(tmp_path, settings | {"seeds": 0, "subsets": "1"})
    object.__setattr__(context, "folder", folder)
    runs = context.plan.runs(TASK)
    assert stage2._resume(context, runs) == 2
    assert (context.comparison.folder(_run("bcp")) / "last.safetensors").stat().st_size == 1 << 20


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    root = write_dataset(tmp_path / "data")
    write_case(root / "test", "p4_frame01", 4, labelled=True)
    train = to_dict(small_config(root, steps=6))
    del train["seed"]
    task = Task("small", root, CLASSES, {"1": ["p0"]}, train, {})
    return Comparison(task, tmp_path / "runs", tmp_path / "results.json", test=True)


@pytest.fixture
def servers(comparison: Comparison) -> Iterator[Servers]:
    with Servers(comparison.task, [], comparison.out, "cpu") as found:
        yield found


def test_a_run_that_the_clock_cuts_off_goes_on_in_the_next_stretch(
    comparison: Comparison, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = comparison.task.run("1", "unimatch", 0)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths.CODE)))  # as gpu/device.sh
    monkeypatch.setattr(stage2_trainings, "STOP", 0.0)
    monkeypatch.setattr(stage2_trainings, "LEAST", -1000.0)
    monkeypatch.setattr(stage2_trainings, "END", -1000.0)
    # Trainings stop at their first update.
    one = Trainings(comparison, [run], servers, time.time(), [], _as_it_is)

    def cut_off() -> None:
        one.deadline = 0.0

    one.run(cut_off, _unknown)
    assert [waiting.key for waiting in one.waiting] == [run.key]
    assert [one.done, one.failed, one.running] == [[], {}, []]
    folder = comparison.folder(run)
    assert (folder / "last.safetensors").is_file()
    other = Trainings(comparison, one.waiting, servers, time.time() + 1000, [], _as_it_is)
    ended: list[int] = []
    other.run(lambda: ended.append(len(other.done)), _unknown)
    assert ended == [1]
    assert [other.failed, other.waiting] == [{}, []]
    facts = other.done[0]
    assert (facts["starts"], facts["curves"]["step"]) == (2, [3, 6])
    assert set(facts["scores"]) == {"val", "test"}
    assert facts["seconds"] > 0
    assert ssl_runs.same(comparison, run, facts)


def _as_it_is(facts: Facts) -> Facts:
    return facts


def _unknown(since: float) -> None:
    """How busy the GPU is."""


@pytest.mark.timeout(900)  # on a busy machine
def test_runs_begin_in_their_order_and_not_with_a_server_that_ended(
    comparison: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths.CODE)))
    runs = [comparison.task.run("1", method, 0) for method in ("vessa", "unimatch", "vessa-labels")]
    with Servers(comparison.task, ["1"], comparison.out, "cpu") as servers:
        found = Trainings(comparison, runs, servers, time.time() + 1000, [], _as_it_is)
        monkeypatch.setattr(stage2_trainings, "SERVERS_WITHIN", math.inf)
        assert [servers.starting] == [True]
        assert not found._begin()
        assert not found.running
        server = servers._starting["1"].result()
        assert not servers.starting
        assert not found._begin()
        (first,) = found.running
        assert first.run == runs[0]
        first.process.stop()
        server.process.end(signal.SIGKILL)
        while not server.process.ended:
            pass
        found.slots = 3
        assert found._begin()
        assert [training.run for training in found.running] == runs[:2]
        assert found.failed.keys() == {runs[2].name}
        for training in found.running:
            training.process.stop()


@pytest.mark.timeout(900)  # on a busy machine
def test_a_server_that_does_not_start_fails_its_own_runs_only(
    comparison: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths.CODE)))
    refused = tuple(replace(own, description="long" * 10_000) for own in CLASSES)
    runs = [comparison.task.run("1", "vessa", seed) for seed in range(3)]
    runs.append(comparison.task.run("1", "unimatch", 0))
    task = replace(comparison.task, classes=refused)
    with Servers(task, ["1"], comparison.out, "cpu") as servers:
        found = Trainings(comparison, runs, servers, time.time() + 1000, [], _as_it_is)
        found.run(lambda: None, _unknown)
    assert [facts["method"] for facts in found.done] == ["unimatch"]
    assert found.failed.keys() == {run.name for run in runs[:3]}
    assert all("classes.description" in reason for reason in found.failed.values())
    # What was measured here says how long runs without regions take to their ends.
    assert found.scoring.keys() == {False}


def test_stage_2_needs_data_and_takes_no_other_weights(tmp_path: Path) -> None:
    for job in ("stage2-cells", "stage2-acdc"):
        with pytest.raises(JobError, match="takes --data, no --pack, and the shipped weights"):
            prepare(JOBS[job])
        with pytest.raises(JobError, match="takes --data, no --pack, and the shipped weights"):
            prepare(JOBS[job], data=tmp_path, weights=tmp_path)
