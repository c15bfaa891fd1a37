"""Fit to bank: a few minutes of fine-tuning on the user's own templates.

Pairs are made from the bank's templates only, each augmented on its own and strongly, so that
the model learns to carry this annotation over to other-looking images of the same kind
("simulating learning from limited labelled data", VESSA, section 3). What is trained is small
and stored as a delta beside the weights.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

from vessa_server.bank import Template, TemplateBank
from vessa_server.model import checkpoint
from vessa_server.model.config import VessaConfig
from vessa_server.training.config import TrainingConfig
from vessa_server.training.episodes import EpisodeDataset
from vessa_server.training.tasks import ClassText, LabelledImage
from vessa_server.training.trainer import Stage1Trainer

# More of them, or larger ones, fit the model to the patients of the bank.
STEPS = 200
# Parts that are fine-tuned. Encoder and matching stay: fitted to one patient's scans, they match
# another patient's worse.
ADAPTED_PREFIXES = (
    "seg_projector.",
    "seg_map.",
    "memory_encoder.",
    "memory_attention.",
    "maskmem_tpos_enc",
    "sam_prompt_encoder.",
    "sam_mask_decoder.",
    "student_embedding",
    "prior_weight",
    "seg_weight",
    "student_weight",
    "refinement.",
)


class BankSource:
    """The templates of a bank as a task source; every image is another look at one of them."""

    name = "bank"
    named = True

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
        # Two images, each several times: pairs of one image in two looks, as of one slice in
        # two patients, and pairs of different images.
        different = rng.choice(len(self.images), size=min(2, len(self.images)), replace=False)
        chosen = rng.permutation(np.resize(different, count))
        return [self.images[int(index)] for index in chosen], self.texts


def _labelled(template: Template, order: list[str]) -> LabelledImage:
    """A template with the labels of the bank's classes."""
    lookup = np.zeros(len(template.info.class_names) + 1, dtype=np.uint8)
    for index, name in enumerate(template.info.class_names, start=1):
        lookup[index] = order.index(name) + 1
    return LabelledImage(template.image, lookup[template.labels])


def adaptation_config(steps: int, seed: int) -> TrainingConfig:
    """Tasks turned, mirrored and zoomed as a whole; images of a task varied moderately.

    Pairs that differ as strongly as whole tasks do teach less: nothing then tells which slice
    of the heart a template fits.
    """
    return TrainingConfig(
        steps=steps,
        groups=3,
        max_classes=3,
        learning_rate=5e-4,
        warmup_steps=20,
        ema_decay=0.99,
        language_weight=0.0,
        text_decides=0.0,
        renamed=0.0,
        distractor_probability=0.0,
        zoom_range=(0.8, 1.25),
        focus_probability=0.7,
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
        ConfigError: ``out`` holds an adaptation of other weights, or to another bank.
        ValueError: the bank is empty.
    """
    model = checkpoint.load(preset, weights)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(ADAPTED_PREFIXES))
    source = BankSource(bank, mirror=True)
    dataset = EpisodeDataset([(source, 1.0)], config, preset.image_size)
    base = checkpoint.digest(weights)
    identity = json.dumps([base, bank.snapshot().version, dataclasses.asdict(config)])
    trainer = Stage1Trainer(model, dataset, out, identity=identity)
    trainer.run()
    trainer.use_average()
    adapted = {n: t for n, t in model.state_dict().items() if n.startswith(ADAPTED_PREFIXES)}
    return checkpoint.save_delta(adapted, base, out)
