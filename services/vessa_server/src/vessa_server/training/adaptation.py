"""Fit to bank: a few minutes of fine-tuning on the user's own templates.

Pairs are made from the bank's templates only, each augmented on its own and strongly, so that
the model learns to carry this annotation over to other-looking images of the same kind
("simulating learning from limited labelled data", VESSA, section 3). What is trained is small
and stored as a delta beside the weights.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vessa_server.bank import Template, TemplateBank
from vessa_server.model import checkpoint
from vessa_server.model.config import VessaConfig
from vessa_server.training.config import TrainingConfig
from vessa_server.training.episodes import EpisodeDataset
from vessa_server.training.sources import ClassText, LabelledImage
from vessa_server.training.trainer import Stage1Trainer

# Parts that are fine-tuned; encoder and language model stay as they are.
ADAPTED_PREFIXES = (
    "match_head.",
    "matcher.",
    "seg_projector.",
    "memory_encoder.",
    "memory_attention.",
    "maskmem_tpos_enc",
    "sam_prompt_encoder.",
    "sam_mask_decoder.",
    "student_embedding",
    "prior_weight",
    "student_weight",
    "refinement.",
)


class BankSource:
    """The templates of a bank as a task source; every image is another look at one of them."""

    name = "bank"

    def __init__(self, bank: TemplateBank, *, mirror: bool) -> None:
        """Read all templates.

        Args:
            bank: the user's bank.
            mirror: whether mirrored images are of the same kind.

        Raises:
            ValueError: the bank is empty.
        """
        listing = bank.snapshot()
        if not listing.templates:
            raise ValueError(
                f"bank: {bank.folder} has no templates; add some with `vessa templates add`"
            )
        self.mirror = mirror
        self.texts = [ClassText(name=c.name, description=c.description) for c in listing.classes]
        order = [text.name for text in self.texts]
        self.images = [_labelled(bank.load(info), order) for info in listing.templates]

    def sample(
        self, rng: np.random.Generator, count: int
    ) -> tuple[list[LabelledImage], list[ClassText]]:
        """See :class:`vessa_server.training.sources.TaskSource`."""
        chosen = rng.choice(len(self.images), size=count, replace=count > len(self.images))
        return [self.images[int(index)] for index in chosen], self.texts


def _labelled(template: Template, order: list[str]) -> LabelledImage:
    """A template with the labels of the bank's classes."""
    lookup = np.zeros(len(template.info.class_names) + 1, dtype=np.uint8)
    for index, name in enumerate(template.info.class_names, start=1):
        lookup[index] = order.index(name) + 1
    return LabelledImage(template.image, lookup[template.labels])


def adaptation_config(steps: int, seed: int) -> TrainingConfig:
    """Strong variation of every image, one task a step, small steps."""
    return TrainingConfig(
        steps=steps,
        groups=1,
        images_per_group=4,
        max_classes=3,
        learning_rate=5e-4,
        warmup_steps=20,
        ema_decay=0.99,
        language_weight=0.0,
        zoom_range=(0.8, 1.25),
        variation=2.0,
        structure_shift=0.12,
        seed=seed,
    )


def adapt(
    weights: Path, preset: VessaConfig, bank: TemplateBank, config: TrainingConfig, out: Path
) -> Path:
    """Fine-tune ``weights`` on ``bank``; resumable like Stage 1.

    Returns:
        The file with the delta, which names the weights that it belongs to.

    Raises:
        CheckpointError: the weights cannot be used.
        ValueError: the bank is empty.
    """
    model = checkpoint.load(preset, weights)
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(ADAPTED_PREFIXES))
    dataset = EpisodeDataset(
        [(BankSource(bank, mirror=True), 1.0)], config, model.config.image_size
    )
    trainer = Stage1Trainer(model, dataset, out)
    trainer.run()
    trainer.use_average()
    adapted = {n: t for n, t in model.state_dict().items() if n.startswith(ADAPTED_PREFIXES)}
    return checkpoint.save_delta(adapted, checkpoint.digest(weights), out)
