"""The regions of interest of a run, and its locator: found once, kept in its folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog
import torch
from safetensors.torch import save

from ssl_trainer.assistant.assistant import Assistant
from ssl_trainer.config import TrainConfig
from ssl_trainer.data.cases import Slice
from ssl_trainer.data.frame import Roi
from ssl_trainer.regions import find, training
from ssl_trainer.regions.locator import Locator
from ssl_trainer.unimatch import state
from vessa_client import files

REGIONS_FILE, LOCATOR_FILE = "regions.json", "locator.safetensors"
# Told what begins and how often it goes on; returns what is called each time.
Stage = Callable[[str, int], Callable[[], object]]

log = structlog.get_logger(__name__)


def no_stage(name: str, total: int) -> Callable[[], object]:
    """Tells nobody."""
    return lambda: None


def find_all(
    config: TrainConfig,
    labelled: Sequence[Slice],
    unlabelled: Sequence[Slice],
    assistant: Assistant,
    out: Path,
    stage: Stage,
) -> None:
    """Ask VESSA about each unlabelled series, train a locator, and write what it finds.

    Raises:
        AssistantError: the server does not answer.
    """
    first = list({item.series: item for item in reversed(unlabelled)}.values())[::-1]
    answers = assistant.regions(first, stage("Regions: VESSA looks at volumes", len(first)))
    asked = {series: find.of_answer(region) for series, region in answers.items()}
    known = find.of_labels(labelled)
    advance = stage("Regions: the locator learns them", training.STEPS)
    locator = training.train([*labelled, *unlabelled], asked | known, config.seed, advance)
    found = find.by_locator(locator, unlabelled, stage("Regions: the locator looks", len(first)))
    weights = save({name: value.contiguous() for name, value in locator.state_dict().items()})
    files.write_bytes(out / LOCATOR_FILE, weights)
    rows = {"vessa": find.as_rows(asked), "used": find.as_rows(found | known)}
    files.write_text(out / REGIONS_FILE, json.dumps(rows) + "\n")
    log.info("regions.found", series=len(found), asked=len(asked), file=str(out / REGIONS_FILE))


def load_regions(out: Path) -> dict[str, Roi]:
    """The region of each series of a run; empty where it has none.

    Raises:
        ValueError: the file is damaged.
    """
    file = out / REGIONS_FILE
    if not file.is_file():
        return {}
    try:
        return find.from_rows(json.loads(file.read_text())["used"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file}: damaged ({error!r}); remove it, and the run asks again"
        ) from error


def load_locator(out: Path, device: torch.device) -> Locator | None:
    """The locator of a run; None where it has none.

    Raises:
        StateError: the file is damaged.
    """
    file = out / LOCATOR_FILE
    if not file.is_file():
        return None
    locator = Locator().to(memory_format=torch.channels_last)
    state.load_student(file, locator)
    return locator.to(device).eval()
