"""What has to be right on a GPU before it is trained on: each check returns what it found.

Axes: N images, P image-class pairs, H W space.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gpu_jobs.errors import FAILED_CHECK, JobError
from gpu_jobs.steps import forward, step
from vessa_server.training.episodes import Episode, EpisodeGenerator
from vessa_server.training.objective import StepOutput
from vessa_server.training.pack import Pack
from vessa_server.training.trainer import Stage1Trainer

CPU = torch.device("cpu")
# A pixel or a student differs between two devices by more than this.
DIFFERS, STUDENT_DIFFERS = 1e-3, 0.1
# Shares that may: pixels away from labels that fell to different sides of a border, such labels,
# and students.
ALLOWED = {"pixels": 1e-4, "labels": 2e-3, "students": 1e-2}
# Shares of the pairs that take the same template, and of the pixels in which their masks agree.
AGREE_FP32, AGREE_BF16 = (0.9, 0.999), (0.5, 0.97)
STEPS, EPISODES, GROUPS = 6, 3, 4


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise JobError(message, FAILED_CHECK)


def episodes(trainer: Stage1Trainer, slices: Pack | None) -> dict[str, Any]:
    """Batches of the CPU and of the device: equal whole numbers, and pixels but for rounding."""
    config = dataclasses.replace(trainer.config, groups=GROUPS)
    there = trainer.generator.with_config(config)
    here = EpisodeGenerator(slices, config, there.canvas_size, CPU)
    worst = dict.fromkeys(ALLOWED, 0.0)
    for number in range(EPISODES):
        one, other = here[number], _moved(there[number], CPU)
        for name in ("image_P", "class_P", "prompt_P", "shown_PV"):
            equal = torch.equal(getattr(one, name), getattr(other, name))
            _require(equal, f"episode {number}: {name} differs between CPU and device")
        differs = (one.labels_NHW != other.labels_NHW).float()[:, None]
        near = F.max_pool2d(differs, 7, stride=1, padding=3) > 0
        pixels = (one.image_N3HW - other.image_N3HW).abs().masked_fill(near, 0.0)
        students = (one.student_P1HW - other.student_P1HW).abs()
        found = {
            "pixels": (pixels > DIFFERS).float().mean(),
            "labels": differs.mean(),
            "students": (students > STUDENT_DIFFERS).float().mean(),
        }
        worst = {name: max(share, float(found[name])) for name, share in worst.items()}
    for name, share in worst.items():
        allowed = ALLOWED[name]
        _require(share <= allowed, f"episodes: {name} {share:.2g}, expected <= {allowed}")
    return {name: round(share, 7) for name, share in worst.items()}


def updates(trainer: Stage1Trainer) -> dict[str, Any]:
    """Some updates in the precision of the run: finite losses, and weights that move."""
    before = torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()])
    losses = torch.stack([step(trainer).total.detach() for _ in range(STEPS)])
    after = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    _require(bool(losses.isfinite().all()), f"losses {losses.tolist()} are not all finite")
    _require(bool(after.isfinite().all()), "a weight is not finite after an update")
    moved = float((after - before).abs().mean())
    _require(moved > 0, "updates leave the weights as they were")
    return {"losses": [round(loss, 4) for loss in losses.tolist()], "moved": moved}


def waits(trainer: Stage1Trainer) -> dict[str, Any]:
    """Nothing in an update waits for the device; where something does, its places are named."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(STEPS):
                step(trainer)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    places = Counter(
        f"{warning.filename.rsplit('/', 1)[-1]}:{warning.lineno}"
        for warning in caught
        if "called a synchronizing" in str(warning.message)
    )
    named = ", ".join(f"{place} ({count})" for place, count in places.most_common(5))
    _require(not places, f"{places.total()} waits in {STEPS} updates: {named}")
    return {"waits": 0, "updates": STEPS}


def answers(trainer: Stage1Trainer) -> dict[str, Any]:
    """Masks of the trainer's weights on the CPU, on the device, and there in bf16."""
    config = dataclasses.replace(
        trainer.config,
        groups=2,
        text_share=1.0,
        retrieval_probability=1.0,
        distractor_probability=0.0,
        seg_distractor_probability=0.0,
    )
    objective, device = trainer.plain_objective.eval(), trainer.processes.device
    there = trainer.generator.with_config(config)[0]
    here = _moved(there, CPU)
    trained_with, objective.config = objective.config, config
    allowed, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        full = forward(objective, there, "fp32")
        half = forward(objective, there, "auto")
        exact = forward(objective.to(CPU), here, "fp32")
    finally:
        torch.backends.cudnn.allow_tf32 = allowed
        objective.to(device).config = trained_with
    return {
        "fp32": _agreement("fp32", exact, full, *AGREE_FP32),
        "bf16": _agreement("bf16", exact, half, *AGREE_BF16),
    }


def _moved(episode: Episode, device: torch.device) -> Episode:
    values = {f.name: getattr(episode, f.name) for f in dataclasses.fields(episode)}
    moved: dict[str, Any] = {n: v.to(device) for n, v in values.items() if isinstance(v, Tensor)}
    return dataclasses.replace(episode, **moved)


def _agreement(
    name: str, one: StepOutput, other: StepOutput, least_same: float, least_equal: float
) -> float:
    """Share of equal pixels, in the masks of the pairs that took the same template."""
    same_P = one.template_P == other.template_P.cpu()
    same = float(same_P.float().mean())
    _require(same >= least_same, f"{name}: {same:.2f} take the same template, not {least_same}")
    first, second = (o.one_shot.class_logits().cpu()[same_P] > 0 for o in (one, other))
    equal = float((first == second).float().mean())
    _require(equal >= least_equal, f"{name}: {equal:.4f} of the masks agree, not {least_equal}")
    return round(equal, 6)
