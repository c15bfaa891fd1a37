"""A trainer's updates one by one, outside of its run."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from vessa_server.model.precision import autocast
from vessa_server.training.episodes import Episode
from vessa_server.training.objective import Objective, StepOutput, picture
from vessa_server.training.trainer import Stage1Trainer

# Tasks in a picture, of which eight rows are seen.
SHOWN_GROUPS = 8


def step(trainer: Stage1Trainer) -> StepOutput:
    """The next update of a trainer, as in its run."""
    batches = trainer.config.accumulate
    first = trainer.start.batches + trainer.step * batches
    return trainer.train_step([trainer.generator[first + n] for n in range(batches)])


def change(trainer: Stage1Trainer, **settings: Any) -> None:
    """Let a trainer go on with other settings, such as batches of another size."""
    config = dataclasses.replace(trainer.config, **settings)
    trainer.config = trainer.schedule.config = config
    trainer.generator = trainer.generator.with_config(config)


def wait(device: torch.device) -> None:
    """Until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.no_grad()
def forward(objective: Objective, episode: Episode, precision: Any) -> StepOutput:
    """A look at an episode, without compiling for it."""
    stance: Any = torch.compiler.set_stance("force_eager")
    with stance, autocast(episode.image_N3HW.device, precision):
        output: StepOutput = objective(episode)
    return output


def pictures(trainer: Stage1Trainer) -> Tensor:
    """Rows of template, prediction and truth, of held-out subjects where there are any."""
    trainer.model.eval()
    config = trainer.config
    small = dataclasses.replace(config, groups=min(SHOWN_GROUPS, config.groups))
    generator = (trainer.held_out or trainer.generator).with_config(small)
    episode = generator[trainer.start.batches + trainer.step]
    return picture(episode, forward(trainer.plain_objective, episode, config.precision))
