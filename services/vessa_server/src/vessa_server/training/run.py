"""Assemble and run Stage 1 training."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from vessa_server.model import checkpoint, prompts, tokenizer
from vessa_server.model.config import VessaConfig
from vessa_server.model.vessa import Vessa
from vessa_server.training.config import TrainingConfig
from vessa_server.training.episodes import EpisodeDataset
from vessa_server.training.sources import STAGE1_SOURCES, FolderSource, TaskSource
from vessa_server.training.synthetic import STRUCTURE_NAMES, SyntheticSource
from vessa_server.training.trainer import Stage1Trainer


def tokenizer_corpus() -> list[str]:
    """All texts that Stage 1 shows to the VLM."""
    texts = [f"{c.name} {c.description}" for spec in STAGE1_SOURCES for c in spec.classes]
    return prompts.corpus([*texts, *STRUCTURE_NAMES])


def train(
    preset: VessaConfig,
    config: TrainingConfig,
    data: Path,
    out: Path,
    *,
    canvas: int | None = None,
    init: Path | None = None,
) -> Stage1Trainer:
    """Train ``preset`` on the real sources in ``data`` and on synthetic tasks.

    Args:
        preset: architecture.
        config: of the run.
        data: folder of the data sets.
        out: folder for weights, state and logs.
        canvas: side of the training images; a smaller one than the preset's is faster and
            serves to begin with, since all weights are the same at every size.
        init: weights to begin with; what they lack is random.

    Raises:
        CheckpointError: ``init`` is of another architecture.
        FileNotFoundError: a source's folder is not in ``data``.
    """
    torch.manual_seed(config.seed)
    sources: list[tuple[TaskSource, float]] = [
        (FolderSource(spec, data), spec.weight) for spec in STAGE1_SOURCES
    ]
    sources.append((SyntheticSource(), config.synthetic_weight))
    architecture = dataclasses.replace(preset, image_size=canvas or preset.image_size)
    model = Vessa(architecture, tokenizer.build(tokenizer_corpus(), preset.vlm.vocab_size))
    if init is not None:
        file = init / checkpoint.WEIGHTS_FILE
        checkpoint.fill(model, checkpoint.read_safetensors(file), file, partly=True)
    dataset = EpisodeDataset(sources, config, architecture.image_size)
    trainer = Stage1Trainer(model, dataset, out)
    trainer.run()
    return trainer
