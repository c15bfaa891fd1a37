"""A bank of one's own: the annotated slices that a run trains on, as templates."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from ssl_trainer.assistant import connection
from ssl_trainer.assistant.connection import AssistantError
from ssl_trainer.config import ConfigError, TrainConfig
from ssl_trainer.data.cases import find, sliced
from ssl_trainer.data.slices import Slice, read_slices
from vessa_client import ClassDefinition, files, wire

# As many as `vessa templates add` takes: neighbours in a volume look alike.
SLICES_PER_VOLUME = 32
DIGITS = 12
MOST_LETTERS = 40


def templates(config: TrainConfig) -> list[Slice]:
    """Slices with structures, at most 32 of each annotated volume; some show each class.

    As their files have them, not through ``data.window``: other programs use the bank, too, and
    see scans in their own unit through the window of its templates.

    Raises:
        ConfigError: the data do not fit the configuration, or no slice shows a class.
        FileError: an image or label file cannot be used.
    """
    classes = config.data.classes
    split = find(config.data)
    labelled = split.read_as(sliced(config.data, split)).labelled
    stored = tuple(replace(case, window=None) for case in labelled)
    slices = read_slices(stored, len(classes), labelled=True)
    chosen: dict[str, Slice] = {}
    for _, group in itertools.groupby(slices, key=lambda item: item.key.rpartition("/")[0]):
        own = [item for item in group if item.labels is not None and item.labels.any()]
        picks = files.spread(len(own), SLICES_PER_VOLUME)
        chosen |= {own[index].key: own[index] for index in picks}
    for label, name in enumerate(classes, start=1):
        if not any(_pixels(item, label) for item in chosen.values()):  # too rare to be picked
            best = max(slices, key=lambda item: _pixels(item, label))
            if not _pixels(best, label):
                raise ConfigError(
                    f"data.labelled: no annotated slice shows {name!r} (label {label}); annotate "
                    "one, or leave it out of data.classes"
                )
            chosen[best.key] = best
    return list(chosen.values())


def named(config: TrainConfig, chosen: Sequence[Slice]) -> TrainConfig:
    """With the name of the bank: the one that is set, or one for the annotated slices.

    That is made of the name of the data's folder, for people, and a digest of classes, slices and
    window.
    So two projects never meet, and all runs of one share its bank.
    """
    if config.assistant.bank:
        return config
    content = [
        (wire.image_digest(item.image), wire.image_digest(item.labels))
        for item in chosen
        if item.labels is not None
    ]
    seen = [] if config.data.window is None else [config.data.window]
    plain = json.dumps([config.data.classes, content, *seen])
    letters = re.sub(r"[^a-z0-9]+", "-", config.data.root.name.lower()).strip("-")[:MOST_LETTERS]
    name = f"{letters or 'run'}-{hashlib.sha256(plain.encode()).hexdigest()[:DIGITS]}"
    return replace(config, assistant=replace(config.assistant, bank=name))


def fill(config: TrainConfig, chosen: Sequence[Slice], advance: Callable[[], object]) -> int:
    """Add slices to the bank ``assistant.bank``; returns how many were not there yet.

    Args:
        config: of the run.
        chosen: those slices; what is there already is known by its content.
        advance: called after each.

    Raises:
        AssistantError: the server is away, or refuses a slice.
    """
    assistant, classes = config.assistant, config.data.classes
    definitions, added = [ClassDefinition(name=name) for name in classes], 0
    with connection.connect(assistant, assistant.timeout_seconds) as client:
        for item in chosen:
            assert item.labels is not None
            add = partial(
                client.add_template,
                item.image,
                item.labels,
                definitions,
                name=wire.template_name(item.key),
                window=config.data.window,
            )
            try:
                _, created = connection.reached(assistant, classes, add)
            except AssistantError as error:
                raise AssistantError(f"--fill-bank: {item.key}: {error}") from error
            added += created
            advance()
    return added


def _pixels(item: Slice, label: int) -> int:
    return 0 if item.labels is None else int((item.labels == label).sum())
