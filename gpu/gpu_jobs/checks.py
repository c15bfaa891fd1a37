"""What has to be right on a GPU before it is trained on: each check returns what it found.

Axes: N images, P image-class pairs, H W space.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.utils import save_image

from gpu_jobs.context import Context
from gpu_jobs.errors import FAILED_CHECK, JobError
from gpu_jobs.steps import step
from vessa_server.model import checkpoint
from vessa_server.model.config import VessaConfig
from vessa_server.model.precision import autocast
from vessa_server.model.presets import preset
from vessa_server.training.episodes import Episode, EpisodeGenerator
from vessa_server.training.objective import Objective, StepOutput, picture
from vessa_server.training.pack import Pack
from vessa_server.training.trainer import Stage1Trainer

CPU = torch.device("cpu")
# Shares of what may differ between episodes of two devices: pixels by more than DIFFERS, away from
# labels that fell to different sides of a border; such labels; and students by more than a tenth.
DIFFERS, PIXELS, OTHER_LABELS, STUDENTS = 1e-3, 1e-4, 2e-3, 1e-2
# Share of the pixels in which two computations of the same masks agree.
AGREE_FP32, AGREE_BF16 = 0.999, 0.97
STEPS, EPISODES = 6, 3


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise JobError(message, FAILED_CHECK)


def products(context: Context) -> dict[str, Any]:
    """A matrix product in bf16: the device computes, and what it computes is right."""
    one, other = torch.randn(2, 1024, 1024, generator=torch.Generator().manual_seed(0))
    exact = one @ other
    found = (one.to(context.device).bfloat16() @ other.to(context.device).bfloat16()).float().cpu()
    error = float((found - exact).abs().mean() / exact.abs().mean())
    _require(error < 0.02, f"matrix product in bf16: relative error {error:.3f}, expected < 0.02")
    return {"relative_error": round(error, 5)}


def episodes(context: Context, slices: Pack | None) -> dict[str, Any]:
    """Batches of the CPU and of the device: equal whole numbers, and pixels but for rounding."""
    config = context.config(groups=4).training
    here = EpisodeGenerator(slices, config, _side(context), CPU)
    there = EpisodeGenerator(slices, config, _side(context), context.device)
    worst = {"pixels": 0.0, "largest": 0.0, "other_labels": 0.0, "students": 0.0}
    for number in range(EPISODES):
        one, other = here[number], _moved(there[number], CPU)
        for name in ("image_P", "class_P", "prompt_P", "shown_PV"):
            equal = torch.equal(getattr(one, name).long(), getattr(other, name).long())
            _require(equal, f"episode {number}: {name} differs between CPU and device")
        differs = (one.labels_NHW != other.labels_NHW).float()[:, None]
        near = F.max_pool2d(differs, 7, stride=1, padding=3) > 0
        pixels = (one.image_N3HW - other.image_N3HW).abs().masked_fill(near, 0.0)
        students = (one.student_P1HW - other.student_P1HW).abs()
        for name, value in (
            ("pixels", (pixels > DIFFERS).float().mean()),
            ("largest", pixels.max()),
            ("other_labels", differs.mean()),
            ("students", (students > 0.1).float().mean()),
        ):
            worst[name] = max(worst[name], float(value))
    for name, limit in (
        ("pixels", PIXELS), ("other_labels", OTHER_LABELS), ("students", STUDENTS)
    ):  # fmt: skip
        _require(worst[name] <= limit, f"episodes: {name} {worst[name]:.2g}, expected <= {limit}")
    return {name: round(value, 7) for name, value in worst.items()}


def updates(context: Context, trainer: Stage1Trainer) -> dict[str, Any]:
    """Some updates in the precision of the run: finite losses, and weights that move."""
    before = torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()])
    losses = [step(trainer).total.detach() for _ in range(STEPS)]
    after = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    values = torch.stack(losses).tolist()
    _require(bool(torch.isfinite(torch.stack(losses)).all()), f"losses {values} are not all finite")
    _require(bool(torch.isfinite(after).all()), "a weight is not finite after an update")
    moved = float((after - before).abs().mean())
    _require(moved > 0, "updates leave the weights as they were")
    with autocast(context.device, trainer.config.precision):
        bf16 = torch.is_autocast_enabled(context.device.type)
    return {"losses": [round(v, 4) for v in values], "moved": moved, "bf16": bf16}


def waits(context: Context, trainer: Stage1Trainer) -> dict[str, Any]:
    """Nothing in an update waits for the device; where something does, its places are named."""
    try:
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(STEPS):
            step(trainer)
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        places = _waiting_places(trainer)
        named = ", ".join(f"{place} ({count})" for place, count in places.most_common(5))
        raise JobError(
            f"{sum(places.values())} waits in {STEPS} updates: {named}", FAILED_CHECK
        ) from error
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return {"waits": 0, "updates": STEPS}


def _waiting_places(trainer: Stage1Trainer) -> Counter[str]:
    trainer.optimizer.zero_grad(set_to_none=True)
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(STEPS):
            step(trainer)
    return Counter(
        f"{warning.filename.rsplit('/', 1)[-1]}:{warning.lineno}"
        for warning in caught
        if "synchroniz" in str(warning.message)
    )


def answers(context: Context, slices: Pack) -> dict[str, Any]:
    """Masks of the weights to begin with, on the CPU, on the device, and there in bf16."""
    config = dataclasses.replace(
        context.config(groups=2).training,
        text_share=1.0,
        retrieval_probability=1.0,
        distractor_probability=0.0,
        seg_distractor_probability=0.0,
    )
    generator = EpisodeGenerator(slices, config, _side(context), CPU)
    model = checkpoint.load(_architecture(context), context.weights, partly=True)
    objective = Objective(model, config, generator.planner.texts.prompts())
    episode = generator[0]

    def masks(device: torch.device, precision: str) -> StepOutput:
        objective.to(device).eval()
        return _forward(objective, _moved(episode, device), precision)

    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        exact, full = masks(CPU, "fp32"), masks(context.device, "fp32")
    finally:
        torch.backends.cudnn.allow_tf32 = allowed
    half = masks(context.device, "auto")
    found = {"fp32": _agreement(exact, full, 0.9), "bf16": _agreement(exact, half, 0.5)}
    for name, least in (("fp32", AGREE_FP32), ("bf16", AGREE_BF16)):
        _require(
            found[name] >= least, f"masks in {name}: {found[name]:.4f} agree, expected {least}"
        )
    return {name: round(value, 6) for name, value in found.items()}


def _moved(episode: Episode, device: torch.device) -> Episode:
    values = {f.name: getattr(episode, f.name) for f in dataclasses.fields(episode)}
    moved: dict[str, Any] = {n: v.to(device) for n, v in values.items() if isinstance(v, Tensor)}
    return dataclasses.replace(episode, **moved)


@torch.no_grad()
def _forward(objective: Objective, episode: Episode, precision: Any) -> StepOutput:
    with autocast(episode.image_N3HW.device, precision):
        output: StepOutput = objective(episode)
    return output


def _agreement(one: StepOutput, other: StepOutput, same: float) -> float:
    """Share of equal pixels, of the pairs that took the same template: at least ``same``."""
    same_P = one.template_P == other.template_P.cpu()
    share = float(same_P.float().mean())
    _require(share >= same, f"{share:.2f} of the pairs take the same template, expected {same}")
    first, second = (_foreground(output).cpu()[same_P] for output in (one, other))
    return float((first == second).float().mean())


def _foreground(output: StepOutput) -> Tensor:
    return output.one_shot.class_logits() > 0


def pictures(context: Context, trainer: Stage1Trainer, save: Callable[[Tensor], None]) -> None:
    """What the model sees and says: rows of template, prediction and truth."""
    trainer.model.eval()
    episode = trainer.generator[0]
    save(picture(episode, _forward(trainer.plain_objective, episode, trainer.config.precision)))


def save_to(file: Any) -> Callable[[Tensor], None]:
    """Writes rows of pictures to a file."""
    return lambda rows: save_image(rows, file, nrow=1)


def _side(context: Context) -> int:
    return _architecture(context).image_size


def _architecture(context: Context) -> VessaConfig:
    config = context.config()
    shape = preset(config.preset)
    return dataclasses.replace(shape, image_size=config.canvas or shape.image_size)
