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
import torch

from vessa_client import UInt8Array
from vessa_server.bank import Template, TemplateBank
from vessa_server.model import checkpoint
from vessa_server.model.config import VessaConfig
from vessa_server.model.preprocess import to_unit_range
from vessa_server.training import pack
from vessa_server.training.config import TrainingConfig
from vessa_server.training.episodes import EpisodeGenerator
from vessa_server.training.pack import Pack, PackedSource
from vessa_server.training.tasks import MAX_CLASSES, ClassText, PackedSlice
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


def bank_pack(bank: TemplateBank, side: int) -> Pack:
    """The templates of a bank as a pack; every image of a task is a look of its own at one.

    Args:
        bank: the user's bank.
        side: of the pack's planes, in pixels.

    Raises:
        ValueError: the bank is empty, or has more classes than a task can show.
    """
    listing = bank.snapshot()
    if not listing.templates:
        raise ValueError(
            f"bank: {bank.folder} has no templates; add some with `vessa templates add`"
        )
    if len(listing.classes) > MAX_CLASSES:
        raise ValueError(
            f"bank: {bank.folder} has {len(listing.classes)} classes, expected at most "
            f"{MAX_CLASSES} to fit to"
        )
    texts = tuple(ClassText(name=c.name, description=c.description) for c in listing.classes)
    order = [text.name for text in texts]
    slices = [
        PackedSlice(
            image=_bytes(template), labels=_labels(template, order), subject=info.template_id
        )
        for info in listing.templates
        for template in [bank.load(info)]
    ]
    source = PackedSource(name="bank", texts=texts)
    return pack.build([(source, slices)], side)


def _bytes(template: Template) -> UInt8Array:
    image, window = template.image, template.info.window
    if image.dtype == np.uint8 and window is None:
        return np.asarray(image, dtype=np.uint8)
    scaled = (255 * to_unit_range(image, window)).round().to(torch.uint8).numpy()
    return np.ascontiguousarray(scaled[0] if image.ndim == 2 else scaled.transpose(1, 2, 0))


def _labels(template: Template, order: list[str]) -> UInt8Array:
    """A template's labels as the bank's classes."""
    lookup = np.zeros(len(template.info.class_names) + 1, dtype=np.uint8)
    for index, name in enumerate(template.info.class_names, start=1):
        lookup[index] = order.index(name) + 1
    labels: UInt8Array = lookup[template.labels]
    return labels


def adaptation_config(steps: int, seed: int) -> TrainingConfig:
    """Tasks turned, mirrored and zoomed as a whole; images of a task varied moderately.

    Pairs that differ as strongly as whole tasks do teach less: nothing then tells which slice
    of the heart a template fits.
    """
    return TrainingConfig(
        steps=steps,
        decay_share=1.0,
        groups=3,
        images_per_group=4,
        asked=3,
        max_templates=3,
        learning_rate=5e-4,
        warmup_steps=20,
        ema_decay=0.99,
        synthetic_share=0.0,
        repeats=2,
        text_share=0.0,
        distractor_probability=0.0,
        zoom_range=(0.8, 1.25),
        view_shares=(0.3, 0.0, 0.7),
        free_pose=0.0,
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
    templates = bank_pack(bank, pack.side_for(preset.image_size))
    generator = EpisodeGenerator(templates, config, preset.image_size)
    base = checkpoint.digest(weights)
    identity = json.dumps([base, bank.snapshot().version, dataclasses.asdict(config)])
    trainer = Stage1Trainer(model, generator, out, identity=identity)
    trainer.run()
    trainer.use_average()
    adapted = {n: t for n, t in model.state_dict().items() if n.startswith(ADAPTED_PREFIXES)}
    return checkpoint.save_delta(adapted, base, out)
