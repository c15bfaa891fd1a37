"""What runs on a machine with a GPU: its checks, its measures, and how it ends."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from gpu_jobs import checks, clock, leg, log, manifest, preflight, speed, steps
from gpu_jobs.clock import Clock
from gpu_jobs.errors import NO_GPU, NOT_FINITE, OUT_OF_TIME, TOO_SLOW, JobError
from gpu_jobs.gpu import Sampler
from gpu_jobs.jobs import JOBS, LOG
from gpu_jobs.manifest import Manifest
from gpu_jobs.training import TrainingContext
from support import tiny_model
from vessa_server.training.config import TrainingConfig
from vessa_server.training.episodes import Episode, EpisodeGenerator
from vessa_server.training.trainer import Stage1Trainer

RECIPE = "preset: nano\ncanvas: 64\ntraining: {steps: 9, images_per_group: 3, max_templates: 2}\n"


def _manifest(**changes: Any) -> Manifest:
    plain = Manifest(date="", commit="", weights="weights", weights_digest="0" * 64)
    return dataclasses.replace(plain, **changes)


def _context(folder: Path, **changes: Any) -> TrainingContext:
    (folder / manifest.RECIPE).write_text(RECIPE)
    (folder / "out").mkdir(exist_ok=True)
    clock = Clock(time.time(), time.time() + 60)
    job = JOBS["stage1-leg"]
    return TrainingContext(
        job, _manifest(**changes), folder, folder / "out", folder / "run", clock, {}
    )


@pytest.fixture
def trainer(tmp_path: Path) -> Stage1Trainer:
    config = TrainingConfig(steps=99, groups=2, images_per_group=3, max_templates=2, text_share=0.5)
    return Stage1Trainer(tiny_model(), EpisodeGenerator(None, config, 64), tmp_path)


def test_without_a_gpu_a_job_ends_unless_it_is_a_rehearsal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("VESSA_REHEARSAL", raising=False)
    with pytest.raises(JobError, match="no GPU") as raised:
        preflight.check(_manifest())
    assert raised.value.code == NO_GPU
    monkeypatch.setenv("VESSA_REHEARSAL", "1")
    assert preflight.check(_manifest())["device"] == "cpu"
    with pytest.raises(JobError, match=r"torch>=99 \(here .*, no-such-thing \(here none\)"):
        preflight.check(_manifest(requirements=("torch>=99", "numpy", "no-such-thing")))


def test_the_gpu_is_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\necho '97, 333.50'\necho '1, 1.0'\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("gpu_jobs.gpu.SECONDS", 0.01)
    nothing = {"gpu_busy_percent": None, "gpu_watts": None}
    with Sampler() as sampler:
        deadline = time.monotonic() + 20
        while sampler.means() == nothing and time.monotonic() < deadline:
            time.sleep(0.01)
    assert sampler.means() == {"gpu_busy_percent": 97.0, "gpu_watts": 333.5}
    assert sampler.means(since=time.time() + 60) == nothing


def test_what_comes_back_goes_together(trainer: Stage1Trainer, tmp_path: Path) -> None:
    context = _context(tmp_path)
    context.run.mkdir()
    watch = leg._Watch(context, trainer, Sampler(), {"job": "x"})
    (context.run / LOG).write_text("")
    watch.sync()
    assert [f.name for f in sorted(context.out.iterdir())] == [LOG, "result.json"]
    (context.run / LOG).write_text('{"loss/tot')
    watch.sync()
    written = json.loads((context.out / "result.json").read_text())
    assert written["files"] == {LOG: manifest.sha256(context.out / LOG)}
    assert (context.out / LOG).read_text() == '{"loss/tot'


def test_a_log_is_summed_up_and_thinned(tmp_path: Path) -> None:
    lines = [
        {"step": n, "loss/total": 2.0 - n / 100, "images": 6 * n, "seconds": 0.5 * n}
        | ({"images_per_second": 12.0 if n > 2 else 1.0} if n > 1 else {})
        for n in range(1, 101)
    ]
    file = tmp_path / "log.jsonl"
    text = "".join(
        json.dumps(line) + "\n" for line in [*lines, {"step": 100, "val/loss/total": 3.0}]
    )
    file.write_text(text + '{"step": 101, "loss/to')  # is being written
    training, validation = log.read(file)
    found = log.summary(training, validation)
    assert (found["updates"], found["images"], found["images_per_second"]) == (100, 600, 12.0)
    assert (found["first"]["loss/total"], found["last"]["loss/total"]) == (1.97, 1.02)
    assert found["validation"] == {"val/loss/total": 3.0}
    assert log.thinned(training, 10)[-1] == training[-1]
    assert len(log.thinned(training, 10)) == 10
    with pytest.raises(JobError, match="loss/total is inf after update 7") as raised:
        log.check_finite([{"step": 7, "loss/total": float("inf")}])
    assert raised.value.code == NOT_FINITE


def test_updates_are_checked_and_timed(
    trainer: Stage1Trainer, capsys: pytest.CaptureFixture[str]
) -> None:
    found = checks.updates(trainer)
    assert len(found["losses"]) == checks.STEPS
    assert trainer.step == checks.STEPS
    row = speed.measure(trainer, 1, Sampler(), seconds=0.2, warming=300.0)
    assert (row["groups"], row["steady"]) == (1, True)
    assert row["images_per_second"] > 0
    assert trainer.generator.config.groups == 1
    assert speed.kernels(trainer, 1)["kernels"] > 100
    assert "aten::mm" in capsys.readouterr().out
    rows = steps.pictures(trainer)
    assert rows.shape[1:] == (3, 64, 192)
    assert 0 <= float(rows.min()) < float(rows.max()) <= 1


def test_a_step_is_that_of_the_trainers_run(trainer: Stage1Trainer, tmp_path: Path) -> None:
    other = Stage1Trainer(copy.deepcopy(trainer.model), trainer.generator, tmp_path / "other")
    steps.change(other, steps=2, log_every=1)
    losses = [float(steps.step(trainer).total.detach()) for _ in range(2)]
    other.run()
    training, _ = log.read(tmp_path / "other" / LOG)
    assert [line["loss/total"] for line in training] == pytest.approx(losses, rel=1e-4)


def test_answers_of_two_devices_are_compared(
    trainer: Stage1Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert checks.answers(trainer) == {"fp32": 1.0, "bf16": pytest.approx(1.0, abs=0.03)}
    assert trainer.plain_objective.config == trainer.config
    monkeypatch.setattr(checks, "AGREE_FP32", (1.1, 1.0))
    with pytest.raises(JobError, match=r"fp32: 1.00 take the same template, not 1.1"):
        checks.answers(trainer)


def test_waits_for_the_device_are_named(
    trainer: Stage1Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes, waiting = ["default"], [False]

    def step(_: Stage1Trainer) -> None:
        if waiting[0] and modes[-1] == "warn":
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    monkeypatch.setattr(checks, "step", step)
    assert checks.waits(trainer)["waits"] == 0
    waiting[0] = True
    named = rf"{checks.STEPS} waits in {checks.STEPS} updates: test_gpu_jobs.py:\d+"
    with pytest.raises(JobError, match=named):
        checks.waits(trainer)
    assert modes[-1] == "default"


def test_episodes_of_two_devices_are_compared(
    trainer: Stage1Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert checks.episodes(trainer, None) == {"pixels": 0.0, "labels": 0.0, "students": 0.0}

    def brighter(episode: Episode, device: torch.device) -> Episode:
        return dataclasses.replace(episode, image_N3HW=episode.image_N3HW + 0.01)

    monkeypatch.setattr(checks, "_moved", brighter)
    with pytest.raises(JobError, match=r"episodes: pixels 1, expected <= 0.0001"):
        checks.episodes(trainer, None)


def test_settings_of_the_command_line_win_and_the_rate_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = _context(tmp_path, settings={"groups": 64, "learning_rate": 2e-3})
    monkeypatch.delenv("VESSA_REHEARSAL", raising=False)
    assert context.config().training.groups == 64
    monkeypatch.setenv("VESSA_SET", "groups=8 compile=true")
    training = context.config().training
    assert (training.groups, training.compile) == (8, True)
    assert training.learning_rate == pytest.approx(1e-3 * 2**0.5, rel=1e-2)
    monkeypatch.setenv("VESSA_SET", "groups=8 learning_rate=0.5")
    assert context.config().training.learning_rate == 0.5


def test_the_clock_counts_from_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VESSA_STARTED", str(int(time.time()) - 100))
    monkeypatch.delenv("VESSA_SECONDS", raising=False)
    assert Clock.of(540).left() == pytest.approx(440, abs=2)
    monkeypatch.setenv("VESSA_SECONDS", "300")
    assert Clock.of(540).left() == pytest.approx(200, abs=2)
    assert Clock.of(540).gone() == pytest.approx(100, abs=2)


@pytest.mark.parametrize(
    ("images", "busy", "reason"),
    [
        (30 * 290, 90.0, "images/s, expected at least 300"),
        (30 * 900, 1.0, "busy 1.0 %"),
        (30 * 900, 90.0, ""),
    ],
)
def test_training_that_is_too_slow_is_ended_after_a_minute(
    trainer: Stage1Trainer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    images: int,
    busy: float,
    reason: str,
) -> None:
    ended: list[int] = []
    monkeypatch.setattr("gpu_jobs.leg.os._exit", ended.append)
    monkeypatch.delenv("VESSA_REHEARSAL", raising=False)
    sampler = Sampler()
    watch = leg._Watch(_context(tmp_path), trainer, sampler, {})
    watch.began -= 31
    watch.sync()
    watch.look()
    assert watch.half is not None
    # The log is of no help: no line of it may be there yet.
    watch.half = (watch.half[0] - 30, watch.half[1])
    trainer.images += images
    sampler.samples.append((time.time(), busy, 300.0))
    watch.sync()
    watch.look()
    assert not ended
    watch.began -= 30
    watch.look()
    assert ended == ([TOO_SLOW] if reason else [])
    assert reason in watch.result.get("error", "")


def test_a_job_is_ended_by_the_clock_unless_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr("gpu_jobs.clock.os._exit", ended.append)
    monkeypatch.setattr(clock, "GRACE_SECONDS", 0)

    def fails() -> None:
        ended.append(0)
        raise OSError("no space left")

    monkeypatch.setattr("threading.excepthook", lambda _: None)
    now = time.time()
    done = Clock(now, now + 3).watch(lambda: ended.append(99))
    done.set()
    Clock(now, now).watch(fails)
    deadline = time.monotonic() + 20
    while len(ended) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ended == [0, OUT_OF_TIME]
