"""UniMatch V2 (Yang et al., 2024), with VESSA as third source of supervision where it answers."""

from __future__ import annotations

from torch import Tensor

from ssl_trainer import schedule
from ssl_trainer.config import TrainConfig
from ssl_trainer.methods.losses import Scalars
from ssl_trainer.methods.method import Batch, Method
from ssl_trainer.methods.unimatch.objective import StudentPasses, batch_loss, strong_views
from vessa_common.processes import Processes


class UniMatch(Method):
    """The teacher's labels of a weak view, and VESSA's, supervise two strong ones."""

    def __init__(self, config: TrainConfig, processes: Processes) -> None:
        super().__init__(config, processes, config.unimatch.ema_decay)
        self.passes = processes.wrap(StudentPasses(self.student, config.precision))

    def loss(self, batch: Batch) -> tuple[Tensor, Scalars]:
        """See :class:`Method`."""
        config, step = self.config, batch.step
        views = None
        scalars: Scalars = {}
        if batch.unlabelled is not None:
            views, scalars = strong_views(
                batch.unlabelled,
                batch.answers,
                self.teacher.model,
                self.student.mask_channels,
                config,
                step,
                batch.rng,
                logged=batch.logged,
            )
        weight = schedule.assistant_weight(step, config.steps, config.assistant)
        loss, parts = batch_loss(self.passes, batch.labelled, views, config, weight)
        return loss, scalars | parts
