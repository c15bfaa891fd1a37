"""What ``log.jsonl`` of a training says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

LOG_FILE = "log.jsonl"
Entry = dict[str, float]


@dataclass(frozen=True)
class Answered:
    """How many answers VESSA was asked for, and gave.

    Attributes:
        requested, received: in all.
        gaps: first and last updates of the stretches in which some did not come.
    """

    requested: int
    received: int
    gaps: tuple[tuple[int, int], ...]

    @property
    def share(self) -> float:
        """Of the answers that came; 1 where none was asked for."""
        return self.received / self.requested if self.requested else 1.0


def read_log(file: Path) -> list[Entry]:
    """Lines by step; see :func:`parse`.

    Raises:
        ValueError: a line is damaged; names it.
    """
    entries, damaged = parse(file.read_bytes() if file.is_file() else b"")
    if damaged:
        raise ValueError(f"{file}: line {damaged[0]} is damaged; remove it")
    return entries


def parse(data: bytes) -> tuple[list[Entry], list[int]]:
    """Lines by step, and the numbers of those that are damaged, from 1.

    A resumed run may have written a step twice, and the last one counts. A last line that was cut
    off, by a full disk or while it is written, is left out.
    """
    by_step, damaged = dict[float, Entry](), list[int]()
    for number, line in enumerate(data.splitlines(keepends=True), start=1):
        if line.endswith(b"\n"):
            try:
                entry = _entry(line)
                by_step[entry["step"]] = entry
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
                damaged.append(number)
    return [by_step[step] for step in sorted(by_step)], damaged


def _entry(line: bytes) -> Entry:
    entry = json.loads(line)
    if type(entry["step"]) is not int or not all(type(v) in (int, float) for v in entry.values()):
        raise TypeError("expected numbers")
    return {name: float(value) for name, value in entry.items()} | {"step": entry["step"]}


def mend(file: Path) -> None:
    """Remove a last line that was cut off, so that the next one is not written behind it."""
    if file.is_file():
        with file.open("rb+") as stream:
            stream.truncate(stream.read().rfind(b"\n") + 1)


def answered(log: Sequence[Entry]) -> Answered:
    """What a log says of VESSA's answers; each line counts those since the line before."""
    requested = received = before = 0
    gaps: list[tuple[int, int]] = []
    for entry in log:
        step, asked = int(entry["step"]), int(entry.get("assistant/requested", 0))
        came = int(entry.get("assistant/received", 0))
        requested, received = requested + asked, received + came
        if came < asked:
            goes_on = bool(gaps) and gaps[-1][1] == before
            gaps.append((gaps.pop()[0] if goes_on else before + 1, step))
        before = step
    return Answered(requested, received, tuple(gaps))
