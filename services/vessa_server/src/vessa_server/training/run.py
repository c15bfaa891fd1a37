"""Assemble and run Stage 1 training."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import torch
import yaml

from vessa_client import files
from vessa_server.model import checkpoint, prompts, tokenizer
from vessa_server.model.config import VessaConfig
from vessa_server.model.presets import preset
from vessa_server.model.vessa import Vessa
from vessa_server.training import lora
from vessa_server.training.config import DataConfig, Stage1Config, to_dict
from vessa_server.training.episodes import EpisodeDataset
from vessa_server.training.processes import Processes
from vessa_server.training.scenes import TEXTS
from vessa_server.training.sources import FolderSource
from vessa_server.training.synthetic import SyntheticSource
from vessa_server.training.tasks import TaskSource
from vessa_server.training.trainer import Stage1Trainer

Weighted = list[tuple[TaskSource, float]]


def train(
    config: Stage1Config,
    data: Path,
    out: Path,
    *,
    init: Path | None = None,
    processes: Processes | None = None,
) -> Stage1Trainer:
    """Train on the real sources in ``data`` and on synthetic tasks.

    Args:
        config: of the run.
        data: folder of the data sets.
        out: folder for weights, state, logs and a copy of the configuration.
        init: folder of weights to begin with; what they lack is random.
        processes: those of the run; one without.

    Raises:
        CheckpointError: ``init`` is of another architecture.
        ConfigError: ``out`` holds a run of another configuration.
        DataError: a source's folder is not in ``data``, or is not as described.
    """
    trainer = build(config, data, out, init=init, processes=processes)
    if trainer.processes.first:
        out.mkdir(parents=True, exist_ok=True)
        files.write_text(out / "config.yaml", yaml.safe_dump(to_dict(config), sort_keys=False))
    trainer.run()
    return trainer


def build(
    config: Stage1Config,
    data: Path,
    out: Path,
    *,
    init: Path | None = None,
    processes: Processes | None = None,
) -> Stage1Trainer:
    """Everything that :func:`train` runs."""
    torch.manual_seed(config.training.seed)
    sources = _real(config.data, data, held_out=False)
    held_out = _real(config.data, data, held_out=True)
    if config.data.synthetic_weight:
        sources.append((SyntheticSource(), config.data.synthetic_weight))
    shape = preset(config.preset)
    architecture = dataclasses.replace(shape, image_size=config.canvas or shape.image_size)
    model = _model(architecture, sources, init)
    handle = lora.inject(model, config.fine_tuning) if config.fine_tuning.lora_rank else None
    size = architecture.image_size
    return Stage1Trainer(
        model,
        EpisodeDataset(sources, config.training, size),
        out,
        held_out=EpisodeDataset(held_out, config.training, size) if held_out else None,
        processes=processes,
        encoder_rate=config.fine_tuning.encoder_rate,
        export=lambda trained: lora.merged(trained, handle) if handle else trained,
        identity=_identity(config),
    )


def tokenizer_corpus(sources: list[TaskSource]) -> list[str]:
    """All texts that Stage 1 shows to the VLM."""
    classes = [*TEXTS, *(t for s in sources if isinstance(s, FolderSource) for t in s.texts)]
    return prompts.corpus([f"{c.name} {c.description}" for c in classes])


def _real(data: DataConfig, root: Path, *, held_out: bool) -> Weighted:
    return [
        (FolderSource(source, root, held_out=held_out), source.weight) for source in data.sources
    ]


def _model(architecture: VessaConfig, sources: Weighted, init: Path | None) -> Vessa:
    if init is not None and (init / checkpoint.TOKENIZER_FILE).is_file():
        return checkpoint.load(architecture, init, partly=True).requires_grad_(True)
    words = tokenizer.build(
        tokenizer_corpus([source for source, _ in sources]), architecture.vlm.vocab_size
    )
    model = Vessa(architecture, words)
    if init is not None:
        file = init / checkpoint.WEIGHTS_FILE
        checkpoint.fill(model, checkpoint.read_safetensors(file), file, partly=True)
    return model


def _identity(config: Stage1Config) -> str:
    """Digest of all that a resumed run must share with its beginning."""
    plain = to_dict(config)
    for name in ("checkpoint_minutes", "log_every", "image_every", "validate_every"):
        del plain["training"][name]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
