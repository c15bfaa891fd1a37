"""Compares VESSA's labels with the teacher's on validation slices.

Axes: B batch, C classes with background, H W space.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssl_trainer.assistant.feedback import Feedback
from ssl_trainer.config import TrainConfig
from ssl_trainer.data import batches, frame
from ssl_trainer.data.cases import Case, read_slices
from ssl_trainer.evaluation.metrics import foreground_dice
from ssl_trainer.models import predict_probabilities
from ssl_trainer.unimatch import pooling
from vessa_client import files
from vessa_common.precision import autocast

# As many slices tell the better one of two in a moment, spread over all validation cases.
MOST_SLICES = 24
# At which validation labels are compared first. Before that a teacher knows next to nothing.
FIRST = 2


class Judge:
    """Knows the truth of some slices that nothing is trained on."""

    def __init__(self, config: TrainConfig, val: tuple[Case, ...], feedback: Feedback) -> None:
        self.config, self.feedback = config, feedback
        known = read_slices(
            tuple(case for case in val if case.labels is not None),
            len(config.data.classes),
            labelled=True,
            sample=config.assistant.volume_slices,
        )
        self.slices = [known[index] for index in files.spread(len(known), MOST_SLICES)]
        self._gap = max(1, (FIRST * config.validate_every - 1) // len(self.slices))

    def look_ahead(self, step: int) -> None:
        """Let VESSA look at one slice after the other before the first comparison.

        First looks take long. With this they are under way while the run begins.
        """
        index, rest = divmod(step, self._gap)
        if rest == 0 and index < len(self.slices):
            self.feedback.look(self.slices[index])

    def compare(self, teacher: nn.Module) -> tuple[float, float] | None:
        """Dice of the teacher's labels and of VESSA's, as they will be trained on.

        With all of the teacher's share, which it has in the end: that is what VESSA's labels are
        worth, and what of them is better than the teacher's is in it.

        Args:
            teacher: whose probabilities VESSA is told.

        Returns:
            None if the server does not answer, or no structure is to be seen.
        """
        told, vessa, truth = list[Tensor](), list[Tensor](), list[Tensor]()
        assistant = self.config.assistant
        size, batch = self.config.data.size, self.config.unlabelled_batch
        for start in range(0, len(self.slices), batch):
            items = self.slices[start : start + batch]
            canvases = torch.stack([batches.canonical(item, size) for item in items])
            with autocast(next(teacher.parameters()).device, self.config.precision):
                maps_BCHW = predict_probabilities(teacher, canvases)
            answers = self.feedback.aside(items, maps_BCHW)
            for item, map_CHW, answer in zip(items, maps_BCHW, answers, strict=True):
                if answer is None:
                    return None
                native_1CHW = frame.restore(map_CHW, item.image.shape)[None]
                labels_1HW = torch.tensor(answer.labels).long()[None]
                confidence_1HW = torch.tensor(answer.confidence).float()[None] / 255
                teacher_1HW = native_1CHW.argmax(1)
                iou_1, classes = torch.tensor([answer.predicted_iou]), len(map_CHW) - 1
                share_1 = assistant.teacher_share * pooling.believed(
                    teacher_1HW, labels_1HW, iou_1, classes, assistant
                )
                both = pooling.pooled(labels_1HW, confidence_1HW, native_1CHW, share_1)
                told.append(teacher_1HW.flatten())
                vessa.append(both[0].flatten())
                truth.append(torch.tensor(item.labels).flatten())
        known = torch.cat(truth)
        scores = [foreground_dice(torch.cat(labels), known) for labels in (told, vessa)]
        return None if scores[0] is None or scores[1] is None else (scores[0], scores[1])
