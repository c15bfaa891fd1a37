"""Updates one by one, outside of a run."""

from __future__ import annotations

import dataclasses

import torch

from vessa_server.training.objective import StepOutput
from vessa_server.training.trainer import Stage1Trainer


def step(trainer: Stage1Trainer) -> StepOutput:
    """The next update of a trainer, as in its run."""
    numbers = trainer._numbers_of(trainer.step)
    return trainer.train_step([trainer.generator[number] for number in numbers])


def use_groups(trainer: Stage1Trainer, groups: int) -> None:
    """Let a trainer go on with batches of another size."""
    config = dataclasses.replace(trainer.config, groups=groups)
    trainer.config = config
    trainer.generator = trainer.generator.with_config(config)
    trainer.schedule.config = config


def wait(device: torch.device) -> None:
    """Until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
