"""The regions of interest of a run, and its locator: found once, kept in its folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog
import torch
from safetensors.torch import save

from ssl_trainer.assistant.assistant import WINDOW_MARGIN, Assistant
from ssl_trainer.config import TrainConfig
from ssl_trainer.data.frame import Roi
from ssl_trainer.data.slices import Slice
from ssl_trainer.models import weights
from ssl_trainer.regions import find, training
from ssl_trainer.regions import picture as pictures
from ssl_trainer.regions.locator import Locator
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
    asked = {} if assistant is None else _asked(assistant, unlabelled, stage)
    known = find.of_labels(labelled)
    if not asked and not known:
        raise ValueError(
            "data.labelled: no annotated slice shows a structure, so there is nothing to find in "
            "the others; annotate one, or set regions to false"
        )
    advance = stage("Locator", training.STEPS)
    slices = [*labelled, *unlabelled]
    locator = training.train(slices, asked | known, config.seed, device, advance)
    # An annotated volume without any structure is looked at as those without labels.
    open_ = [*unlabelled, *(item for item in labelled if item.series not in known)]
    series = {item.series for item in open_}
    found = find.by_locator(locator, open_, stage("Regions", len(series)))
    tensors = save({name: value.contiguous() for name, value in locator.state_dict().items()})
    files.write_bytes(out / LOCATOR_FILE, tensors)
    rows = {"vessa": find.as_rows(asked), "used": find.as_rows(found | known)}
    files.write_text(out / REGIONS_FILE, json.dumps(rows) + "\n")
    if found:
        picture = pictures.draw(unlabelled, found, asked)
        files.write_picture(out / PICTURE_FILE, picture)
    log.info("regions.found", series=len(series), by_vessa=len(asked), labelled=len(known))


def _asked(assistant: Assistant, unlabelled: Sequence[Slice], stage: Stage) -> dict[str, Roi]:
    """The region of each series by VESSA, or of some where there are very many.

    They teach the locator the rest.
    """
    # The first slice of each series.
    each = list({item.series: item for item in reversed(unlabelled)}.values())[::-1]
    asked = [each[i] for i in files.spread(len(each), MOST_ASKED)]
    answers = assistant.regions(asked, stage("Regions by VESSA", len(asked)))
    if not answers:
        log.warning(
            "regions.unknown",
            effect="the server says of no volume where it looked (is it older than this trainer?); "
            "the locator learns from the labelled ones only",
        )
    shapes = {item.series: item.image.shape for item in asked}
    return {
        series: find.window(seen).scaled(WINDOW_MARGIN).or_whole(shapes[series])
        for series, seen in answers.items()
    }


def load_regions(out: Path) -> dict[str, Roi]:
    """The region of each series of a run with regions.

    Raises:
        ValueError: the file is damaged.
    """
    file = out / REGIONS_FILE
    try:
        return find.from_rows(json.loads(file.read_text())["used"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file}: damaged ({error!r}); remove it, and the run asks again"
        ) from error


def load_locator(out: Path, device: torch.device) -> Locator:
    """The locator of a run with regions.

    Raises:
        WeightsError: the file is missing or damaged.
    """
    file = out / LOCATOR_FILE
    locator = Locator().to(memory_format=torch.channels_last)
    weights.load(file, locator)
    return locator.to(device).eval()
