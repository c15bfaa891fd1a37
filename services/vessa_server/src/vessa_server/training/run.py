"""Assemble and run Stage 1 training."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from functools import partial
from pathlib import Path

import torch
import yaml

from vessa_client import files
from vessa_client.console import progress_bar
from vessa_common.processes import Processes
from vessa_server.model import checkpoint, prompts, tokenizer
from vessa_server.model.config import VessaConfig
from vessa_server.model.presets import preset
from vessa_server.model.vessa import Vessa
from vessa_server.training import pack, planning, sources
from vessa_server.training.config import Stage1Config, to_dict
from vessa_server.training.episodes import EpisodeGenerator
from vessa_server.training.pack import Pack
from vessa_server.training.trainer import Export, Stage1Trainer, Start, as_it_is


def make_pack(config: Stage1Config, data: Path) -> Pack | None:
    """Read all sources in ``data``; None without any.

    Raises:
        DataError: a source's folder is not in ``data``, or is not as described.
    """
    if not config.data.sources:
        return None
    read = []
    with progress_bar() as progress:
        task = progress.add_task("Reading", total=len(config.data.sources), note="")
        for source in config.data.sources:
            progress.update(task, note=source.folder)
            read.append(sources.read(source, data))
            progress.advance(task)
    return pack.build(read, pack.side_for(_architecture(config).image_size))


def train(
    config: Stage1Config,
    slices: Pack | None,
    out: Path,
    *,
    init: Path | None = None,
    processes: Processes | None = None,
) -> Stage1Trainer:
    """Train on annotated slices and on made-up tasks.

    Args:
        config: of the run.
        slices: of all sources; None for made-up tasks only.
        out: folder for weights, state, logs and a copy of the configuration.
        init: folder of weights to begin with; what they lack is random. Batches go on where the
            run that made them stopped.
        processes: those of the run; one without.

    Raises:
        CheckpointError: ``init`` is of another architecture.
        ConfigError: ``out`` holds a run of another configuration.
    """
    trainer = build(config, slices, out, init=init, processes=processes)
    if trainer.processes.first:
        out.mkdir(parents=True, exist_ok=True)
        files.write_text(out / "config.yaml", yaml.safe_dump(to_dict(config), sort_keys=False))
    trainer.run()
    return trainer


def build(
    config: Stage1Config,
    slices: Pack | None,
    out: Path,
    *,
    init: Path | None = None,
    processes: Processes | None = None,
) -> Stage1Trainer:
    """Everything that :func:`train` runs."""
    processes = processes or Processes()
    torch.manual_seed(config.training.seed)
    architecture = _architecture(config)
    model = _model(architecture, slices, init)
    export: Export = as_it_is
    if config.fine_tuning.lora_rank:
        # Adapters need peft, which training without them does not.
        from vessa_server.training import lora

        export = partial(lora.merged, handle=lora.inject(model, config.fine_tuning))
    size, device = architecture.image_size, processes.device
    start = Start.after(init)
    generator = EpisodeGenerator(slices, config.training, size, device)
    held_out = None
    if slices is not None and planning.tasks(slices, config.training, held_out=True):
        held_out = generator.of_held_out(slices)
    return Stage1Trainer(
        model,
        generator,
        out,
        held_out=held_out,
        processes=processes,
        encoder_rate=config.fine_tuning.encoder_rate,
        export=export,
        identity=_identity(config, slices, start),
        start=start,
    )


def _architecture(config: Stage1Config) -> VessaConfig:
    shape = preset(config.preset)
    return dataclasses.replace(shape, image_size=config.canvas or shape.image_size)


def tokenizer_corpus(slices: Pack | None) -> list[str]:
    """All texts that Stage 1 shows to the VLM."""
    texts = [t for source in slices.sources for t in source.texts] if slices is not None else []
    return prompts.corpus([f"{t.name} {t.description}" for t in texts])


def _model(architecture: VessaConfig, slices: Pack | None, init: Path | None) -> Vessa:
    if init is not None and (init / checkpoint.TOKENIZER_FILE).is_file():
        return checkpoint.load(architecture, init, partly=True).requires_grad_(True)
    words = tokenizer.build(tokenizer_corpus(slices), architecture.vlm.vocab_size)
    model = Vessa(architecture, words)
    if init is not None:
        file = init / checkpoint.WEIGHTS_FILE
        checkpoint.fill(model, checkpoint.read_safetensors(file), file, partly=True)
    return model


def _identity(config: Stage1Config, slices: Pack | None, start: Start) -> str:
    """Digest of all that a resumed run must share with its beginning; its time may change."""
    plain = to_dict(config)
    plain["start"] = dataclasses.astuple(start)
    plain["slices"] = None if slices is None else slices.digest()
    for name in ("minutes", "checkpoint_minutes", "log_every", "image_every", "validate_every"):
        del plain["training"][name]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
