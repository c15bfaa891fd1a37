"""The queue for a GPU: prepared, rehearsed from what travels alone, and collected."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gpu_jobs import manifest as manifests
from gpu_jobs.errors import WRONG_INPUT, JobError
from gpu_jobs.jobs import JOBS, RESULT
from gpu_queue import paths
from gpu_queue.collect import collect
from gpu_queue.prepare import prepare
from gpu_queue.rehearse import rehearse
from support import ROOT, picture, tiny_model
from support_gpu import change, device, project, states, use
from vessa_server.model import checkpoint
from vessa_server.training.trainer import Start

LEG = JOBS["stage1-leg"]
RECIPE = """\
preset: nano
canvas: 64
training: {steps: 2, groups: 2, images_per_group: 3, max_templates: 2, warmup_steps: 1,
           validate_every: 2, text_share: 0.5}
data:
  sources:
    - folder: shapes/train
      classes: [{name: disc, description: Bright.}, {name: bar, description: Dark.}]
"""
WEIGHTS = "services/vessa_server/weights/nano"


@dataclass(frozen=True)
class Rehearsed:
    """A copy of the project with a leg prepared in it, and what its rehearsal brought."""

    root: Path
    out: Path


def _data(folder: Path) -> Path:
    target = folder / "shapes" / "train"
    target.mkdir(parents=True)
    for index in range(24):
        image, labels = picture(index)
        Image.fromarray(image).save(target / f"p{index}.png")
        Image.fromarray(labels).save(target / f"p{index}_gt.png")
    return folder


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> Rehearsed:
    folder = tmp_path_factory.mktemp("queue")
    root = folder / "project"
    project(root)
    recipe = folder / "tiny.yaml"
    recipe.write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        use(root, patch)
        data = _data(folder / "data")
        for _ in range(2):  # the second time with the pack of before
            prepare(
                LEG, data=data, recipe=str(recipe), weights=paths.SHIPPED, changes={"groups": 2},
                carry_wheels=False,
            )  # fmt: skip
        rehearse(LEG, keep=folder / "out")
    return Rehearsed(root, folder / "out")


@pytest.fixture
def brought(rehearsed: Rehearsed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a GPU would have brought: the rehearsal's, under another name of the device."""
    root = tmp_path / "project"
    shutil.copytree(rehearsed.root, root, ignore=shutil.ignore_patterns(".git", "packs"))
    shutil.copytree(rehearsed.out, tmp_path / "out")
    use(root, monkeypatch)
    change(tmp_path / "out", lambda result: result.update(rehearsal=False, device="H100"))
    return tmp_path / "out"


def _renew_digest(out: Path, name: str) -> None:
    change(out, lambda result: result["files"].update({name: manifests.sha256(out / name)}))


def test_what_a_rehearsal_brings_is_whole(rehearsed: Rehearsed) -> None:
    result = json.loads((rehearsed.out / "result.json").read_text())
    assert result["finished"]
    assert result["rehearsal"]
    assert result["updates"] == 2
    # What earlier trainings of the weights saw counts, too.
    assert result["images"] == Start.after(paths.SHIPPED).images + 2 * 2 * 3
    assert set(LEG.brings) <= {f.name for f in rehearsed.out.iterdir()}
    console = (rehearsed.out / "console.log").read_text()
    assert "held out" in console.splitlines()[-1]
    packs = list((rehearsed.root / "gpu" / ".work" / "packs").glob("*.pack"))
    assert len(packs) == 1


def test_collected_weights_are_shipped_and_the_table_says_so(brought: Path) -> None:
    before = checkpoint.digest(paths.SHIPPED)
    file = collect(LEG, brought, ship=True)
    assert file.name == "gpu_stage1-leg_1.json"
    record = json.loads(file.read_text())
    assert record["weights_before"] == before
    assert record["device"] == "H100"
    assert len(record["log"]) == 2
    assert checkpoint.digest(paths.SHIPPED) == checkpoint.digest(brought) != before
    assert states() == {
        "stage1-smoke": "waiting",
        "serve-smoke": "waiting",
        "stage1-leg": f"done: [{file.stem}](../benchmarks/results/{file.name})",
        "stage1-decay": "waiting",
        "stage2-cells": "waiting",
        "stage2-acdc": "waiting",
    }
    with pytest.raises(JobError, match="they have changed since the job was prepared"):
        collect(LEG, brought)


def test_weights_that_are_not_shipped_are_kept_beside(brought: Path) -> None:
    before = checkpoint.digest(paths.SHIPPED)
    collect(LEG, brought)
    assert checkpoint.digest(paths.SHIPPED) == before
    assert checkpoint.digest(paths.LEGS / "stage1-leg_1") == checkpoint.digest(brought)


def _smoke(folder: Path, job: str, **more: Any) -> Path:
    """What a job that does not train would have brought."""
    folder.mkdir(exist_ok=True)
    for name in JOBS[job].brings:
        (folder / name).write_bytes(b"")
    result = {"job": job, "rehearsal": False, "device": "H100", "finished": True, "parts": {}}
    (folder / RESULT).write_text(json.dumps(result | more))
    return folder


def test_results_of_smoke_jobs_go_to_their_places(brought: Path, tmp_path: Path) -> None:
    files = [
        collect(JOBS[job], _smoke(tmp_path / job, job)).relative_to(paths.ROOT)
        for job in ("stage1-smoke", "stage1-smoke", "serve-smoke", "serve-smoke")
    ]
    assert [str(file) for file in files] == [
        "benchmarks/results/gpu_stage1-smoke_1.json",
        "benchmarks/results/gpu_stage1-smoke_2.json",
        # A newer one takes its place.
        "benchmarks/results/serve_smoke.json",
        "benchmarks/results/serve_smoke.json",
    ]
    record = json.loads((paths.ROOT / files[-1]).read_text())
    assert (record["job"], record["device"]) == ("serve-smoke", "H100")
    assert states()["serve-smoke"] == "done: [serve_smoke](../benchmarks/results/serve_smoke.json)"
    assert sorted(f.name for f in paths.LEGS.iterdir()) == ["stage1-smoke_1", "stage1-smoke_2"]


def test_a_result_that_is_not_finite_is_not_collected(brought: Path, tmp_path: Path) -> None:
    folder = _smoke(tmp_path / "smoke", "serve-smoke", parts={"fp32": {"rows": [1.0, math.nan]}})
    with pytest.raises(JobError, match="result/parts/fp32/rows/1 is not finite"):
        collect(JOBS["serve-smoke"], folder)
    assert states()["serve-smoke"] == "waiting"


def test_a_job_without_slices_is_prepared_without_data_and_notices_changed_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = JOBS["serve-smoke"]
    with pytest.raises(JobError, match="takes no --data, --pack or --set"):
        prepare(job, changes={"groups": 2})
    root = tmp_path / "project"
    project(root)
    file = root / "benchmarks" / "model_steps.py"
    file.write_text("STEPS = 9\n")
    use(root, monkeypatch)
    prepared = prepare(job, weights=paths.SHIPPED, carry_wheels=False)
    assert prepared.settings == {}
    assert [f.name for f in (paths.WORK / job.name).iterdir() if f.is_file()] == ["manifest.json"]
    file.write_text("STEPS = 10\n")
    done = device(root, job.name, tmp_path / "out")
    assert done.returncode == WRONG_INPUT
    assert "not that of `prepare`" in done.stdout


def _lose(out: Path) -> None:
    (out / "tokenizer.json").unlink()


def _spoil_log(out: Path) -> None:
    file = out / "log.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[1]["loss/total"] = float("nan")
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    _renew_digest(out, "log.jsonl")


def _swap_weights(out: Path) -> None:
    checkpoint.save(tiny_model(), out, notes={"images": "1000"})
    for name in checkpoint.FILES:
        _renew_digest(out, name)


def _damage(out: Path) -> None:
    with (out / "model.safetensors").open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"?")


def _forget_images(out: Path) -> None:
    file = out / "model.safetensors"
    tensors = checkpoint.read_safetensors(file)
    notes = checkpoint.notes(out) | {"images": "0"}
    checkpoint.write_safetensors(file, {n: t.half() for n, t in tensors.items()}, notes)
    _renew_digest(out, "model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_lose, "no tokenizer.json"),
        (_spoil_log, "loss/total is nan after update"),
        (_swap_weights, "is for another configuration"),
        (_damage, "model.safetensors: missing, or not of the digest"),
        (_forget_images, "has seen 0 images, not more than before"),
        (lambda out: change(out, lambda r: r.update(rehearsal=True)), "of a rehearsal"),
        (lambda out: change(out, lambda r: r.update(job="stage1-decay")), "of job 'stage1-decay'"),
        (lambda out: change(out, lambda r: r.update(error="100 images/s")), "ended itself: 100"),
    ],
)
def test_what_is_wrong_is_not_collected(
    brought: Path, spoil: Callable[[Path], None], message: str
) -> None:
    before = checkpoint.digest(paths.SHIPPED)
    spoil(brought)
    with pytest.raises(ValueError, match=message):
        collect(LEG, brought, ship=True)
    assert checkpoint.digest(paths.SHIPPED) == before
    assert not list(paths.RESULTS.iterdir())
    assert states()["stage1-leg"] == "waiting"


def test_too_much_to_travel_is_refused_with_the_largest_named(
    rehearsed: Rehearsed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(rehearsed.root, monkeypatch)
    monkeypatch.setattr(paths, "WORK", rehearsed.root / "gpu" / ".work" / "other")
    small = tmp_path / "machine.toml"
    small.write_text(
        (ROOT / "gpu" / "machine.toml").read_text().replace("travels_mib = 64", "travels_mib = 12")
    )
    monkeypatch.setattr(paths, "MACHINE", small)
    (rehearsed.root / "notes.bin").write_bytes(bytes(5 * 2**20))
    pack = next((rehearsed.root / "gpu" / ".work" / "packs").glob("*.pack"))
    try:
        with pytest.raises(JobError, match=r"model.safetensors 10.8, notes.bin 5.0"):
            prepare(LEG, pack=pack, weights=paths.SHIPPED, carry_wheels=False)
    finally:
        (rehearsed.root / "notes.bin").unlink()
    assert not (paths.WORK / LEG.name / manifests.MANIFEST).exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "slices.pack").write_bytes(b"other"), "slices.pack: sha256"),
        (lambda f: (f / "recipe.yaml").unlink(), "recipe.yaml: it was prepared and did not come"),
        (lambda f: (f / "manifest.json").unlink(), "carry gpu/.work/stage1-leg, which"),
        (
            lambda f: (f / "manifest.json").write_text("{}"),
            "manifest.json: KeyError('wheels'); prepare again",
        ),
        (
            lambda f: (f.parents[1] / "gpu_jobs" / "leg.py").write_text("# changed"),
            "not that of `prepare`",
        ),
        (
            lambda f: checkpoint.save(tiny_model(), f.parents[2] / WEIGHTS),
            f"code, or {WEIGHTS}: not that of `prepare`",
        ),
    ],
)
def test_a_job_that_did_not_arrive_as_prepared_ends_in_one_line(
    rehearsed: Rehearsed, tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    root = tmp_path / "project"
    shutil.copytree(rehearsed.root, root, ignore=shutil.ignore_patterns(".git", "packs"))
    spoil(root / "gpu" / ".work" / LEG.name)
    done = device(root, LEG.name, tmp_path / "out")
    assert done.returncode == WRONG_INPUT
    assert message in done.stdout
    assert done.stdout.startswith("Error: ")
    assert len(done.stdout.splitlines()) == 1
    assert (tmp_path / "out" / "console.log").read_text() == done.stdout
