"""What a resumed run must share with its beginning, and what may change.

What makes the batches or the model must be the same: configuration and cases.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import structlog

from ssl_trainer.data.cases import Case, Split

log = structlog.get_logger(__name__)

# Version of how batches are made of configuration and data: a state of another one does not go on.
BATCHES = 1
# Keys that change how a run goes on, for one that cannot go on as it was; the log says so.
CHANGES_RESULT = frozenset({"learning_rate", "precision"})
# Keys that no batch and no model depends on; weights of a pretrained part are in the state. Of a
# server it matters whether there is one, and a run may become longer, but not shorter.
MAY_CHANGE = CHANGES_RESULT | frozenset(
    {
        "data.root",
        "data.watch_quality",
        "student.pretrained",
        "assistant.timeout_seconds",
        "assistant.retry_seconds",
        "assistant.root_certificates",
        "assistant.wait_seconds",
        "assistant.required",
        "validate_every",
        "checkpoint_every",
    }
)
MISSING = object()


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What must not differ between two configurations and does, as `key: value now, value before`.

    Args:
        before: with which the run began, as ``config.to_dict`` makes it.
        now: with which it is to go on.
    """
    return [
        _line(key, old, new)
        for key, old, new in _differences(before, now)
        if not _may_change(key, old, new)
    ]


def _may_change(key: str, before: object, now: object) -> bool:
    if key == "assistant.server":
        return bool(before) == bool(now)
    if key == "steps":
        return isinstance(before, int) and isinstance(now, int) and now >= before
    return key in MAY_CHANGE


def case_lists(split: Split, labelled: int, unlabelled: int) -> dict[str, str]:
    """A line on the cases of each kind that a run depends on, the same wherever they lie.

    Args:
        split: the cases.
        labelled: number of labelled slices.
        unlabelled: number of unlabelled slices.
    """
    validated = [case for case in split.val if case.labels is not None]
    return {
        "labelled": f"{_files(split.labelled)}, {labelled} slices",
        "unlabelled": f"{_files(split.unlabelled)}, {unlabelled} slices",
        "validation": _files(validated),
    }


def announce(step: int, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Say from where a run goes on, and what of it is not as it began; see :func:`changes`."""
    log.info("run.resumed", step=step)
    if before["steps"] < now["steps"]:
        log.info(
            "run.longer",
            planned=before["steps"],
            steps=now["steps"],
            effect="the schedules go on with the new length, so the student will not be bit for "
            "bit that of a run planned that long",
        )
    altered = [_line(*found) for found in _differences(before, now) if found[0] in CHANGES_RESULT]
    if altered:
        log.info(
            "run.changed",
            keys=altered,
            effect="the student will not be that of a run that was so from its beginning",
        )


def _files(cases: Sequence[Case]) -> str:
    names = "\n".join(case.name for case in cases)
    digest = hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()  # any file's name
    return f"{len(cases)} files, names {digest[:12]}"


def _differences(
    before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, object, object]]:
    """Keys, with dots, whose values differ; ``MISSING`` where there is no such key."""
    for name in dict.fromkeys([*now, *before]):
        key, old, new = f"{prefix}{name}", before.get(name, MISSING), now.get(name, MISSING)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _differences(old, new, f"{key}.")
        elif old != new:
            yield key, old, new


def _line(key: str, before: object, now: object) -> str:
    return f"{key}: {_shown(now)} now, {_shown(before)} when it began"


def _shown(value: object) -> str:
    return "no such key" if value is MISSING else json.dumps(value)
