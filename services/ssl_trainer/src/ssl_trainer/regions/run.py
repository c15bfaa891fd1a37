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
from ssl_trainer.data.frame import Roi
from ssl_trainer.data.slices import Slice
from ssl_trainer.regions import find, training
from ssl_trainer.regions import picture as pictures
from ssl_trainer.regions.locator import Locator
from ssl_trainer.training import state
from vessa_client import files

REGIONS_FILE, LOCATOR_FILE = "regions.json", "locator.safetensors"
PICTURE_FILE = "regions.png"
# Series that VESSA is asked about before the first update.
MOST_ASKED = 200
# Called with what begins and how often it goes on; returns what is called each time.
Stage = Callable[[str, int], Callable[[], object]]

log = structlog.get_logger(__name__)


def no_stage(name: str, total: int) -> Callable[[], object]:
    """Shows nothing."""
    return lambda: None


def find_all(
    config: TrainConfig,
    labelled: Sequence[Slice],
    unlabelled: Sequence[Slice],
    assistant: Assistant | None,
    out: Path,
    stage: Stage,
    device: torch.device,
) -> None:
    """Train a locator on labelled series, and on what VESSA says of the others; write its regions.

    Raises:
        AssistantError: the server does not answer.
        ValueError: no label shows a structure, and VESSA names no region.
    """
    windows = {} if assistant is None else _windows(assistant, labelled, unlabelled, stage)
    known = find.of_labels(labelled)
    if not windows and not known:
        raise ValueError(
            "data.labelled: no annotated slice shows a structure, so there is nothing to find in "
            "the others; annotate one, or set regions to false"
        )
    margin = find.window_margin(known, windows)
    shapes = {item.series: item.image.shape for item in unlabelled}
    asked = {
        series: seen.scaled(margin).or_whole(shapes[series])
        for series, seen in windows.items()
        if series in shapes
    }
    advance = stage("Regions: the locator learns", training.STEPS)
    slices = [*labelled, *unlabelled]
    locator = training.train(slices, asked | known, config.seed, device, advance)
    series = {item.series for item in unlabelled}
    found = find.by_locator(locator, unlabelled, stage("Regions of the locator", len(series)))
    weights = save({name: value.contiguous() for name, value in locator.state_dict().items()})
    files.write_bytes(out / LOCATOR_FILE, weights)
    rows = {
        "vessa": find.as_rows(asked),
        "used": find.as_rows(found | known),
        "window_margin": margin,
    }
    files.write_text(out / REGIONS_FILE, json.dumps(rows) + "\n")
    if found:
        picture = pictures.draw(unlabelled, found, asked)
        files.write_picture(out / PICTURE_FILE, picture)
    log.info("regions.found", series=len(series), by_vessa=len(asked), labelled=len(known))


def _windows(
    assistant: Assistant, labelled: Sequence[Slice], unlabelled: Sequence[Slice], stage: Stage
) -> dict[str, Roi]:
    """Where VESSA sees the structures of each series, or of some where there are very many.

    They teach the locator the rest; labelled ones say how large its windows are.
    """
    each = _one_of_each(unlabelled)
    asked = [*_one_of_each(labelled), *(each[i] for i in files.spread(len(each), MOST_ASKED))]
    answers = assistant.regions(asked, stage("Regions of VESSA", len(asked)))
    if not answers:
        log.warning(
            "regions.unknown",
            effect="the server says of no volume where it looked (is it older than this trainer?); "
            "the locator learns from the labelled ones only",
        )
    return {series: find.window(seen) for series, seen in answers.items()}


def _one_of_each(slices: Sequence[Slice]) -> list[Slice]:
    """The first slice of each series."""
    return list({item.series: item for item in reversed(slices)}.values())[::-1]


def load_regions(out: Path) -> tuple[dict[str, Roi], float]:
    """The region of each series of a run with regions, and how much larger than VESSA's it is.

    Raises:
        ValueError: the file is damaged.
    """
    file = out / REGIONS_FILE
    try:
        content = json.loads(file.read_text())
        return find.from_rows(content["used"]), float(content["window_margin"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file}: damaged ({error!r}); remove it, and the run asks again"
        ) from error


def load_locator(out: Path, device: torch.device) -> Locator:
    """The locator of a run with regions.

    Raises:
        StateError: the file is missing or damaged.
    """
    file = out / LOCATOR_FILE
    locator = Locator().to(memory_format=torch.channels_last)
    state.load_student(file, locator)
    return locator.to(device).eval()
