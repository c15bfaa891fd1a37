"""Assemble and run Stage 1 training."""

from __future__ import annotations

from pathlib import Path

import torch

from vessa_server.model import prompts, tokenizer
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


def train(preset: VessaConfig, config: TrainingConfig, data: Path, out: Path) -> Stage1Trainer:
    """Train ``preset`` on the real sources in ``data`` and on synthetic tasks.

    Raises:
        FileNotFoundError: a source's folder is not in ``data``.
    """
    torch.manual_seed(config.seed)
    sources: list[tuple[TaskSource, float]] = [
        (FolderSource(spec, data), spec.weight) for spec in STAGE1_SOURCES
    ]
    sources.append((SyntheticSource(), config.synthetic_weight))
    model = Vessa(preset, tokenizer.build(tokenizer_corpus(), preset.vlm.vocab_size))
    dataset = EpisodeDataset(sources, config, preset.image_size)
    trainer = Stage1Trainer(model, dataset, out)
    trainer.run()
    return trainer
