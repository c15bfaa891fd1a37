"""Runs of the trainer, as the files of their folders say; nothing is written, no link followed."""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import yaml

from vessa_client import InvalidRequestError, NotFoundError, pictures
from vessa_common.training_log import LOG_FILE, Entry, answered, parse
from vessa_server.api.errors import printable

T = TypeVar("T")
Json = dict[str, Any]
CONFIG_FILE = "config.yaml"
RECEIVED, REQUESTED = "assistant/received", "assistant/requested"
SCORES = re.compile(r"scores_([\w-]{1,60})\.json")
# The page draws `curves` anew.
PICTURES = ("gallery", "regions", "pseudo_labels", "curves")
KIB, MIB = 1 << 10, 1 << 20
# Of a log the end is read.
MAX_LOG, MAX_CONFIG, MAX_SCORES, MAX_PICTURE = 4 * MIB, 64 * KIB, 4 * MIB, 32 * MIB
MAX_RUNS, MAX_ENTRIES, MAX_FILES, MAX_SCORE_FILES = 100, 10_000, 1000, 8
MAX_POINTS, MAX_CURVES, MAX_WORST, MAX_NAME = 500, 40, 10, 200
PNG = b"\x89PNG\r\n\x1a\n"
# Curves between 0 and 1 beside those of the Dice.
SHARES = {
    "assistant/answered": "VESSA's answers that came",
    "teacher/confident": "pixels of which the teacher is sure",
    "assistant/agreement": "pixels on which teacher and VESSA agree",
    "assistant/weight": "weight of VESSA",
    "quality/teacher": "Dice of the teacher's labels",
    "quality/vessa": "Dice of VESSA's labels",
}


@dataclass
class _Run:
    """A folder, with what ``lstat`` says of its files, and what is wrong with them in words."""

    folder: Path
    files: dict[str, os.stat_result] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def written(self) -> float:
        """When a file was last written, in seconds since 1970."""
        return max((found.st_mtime for found in self.files.values()), default=0.0)

    @property
    def state(self) -> tuple[tuple[str, int, int], ...]:
        """Changes when a file does."""
        return tuple((n, f.st_mtime_ns, f.st_size) for n, f in sorted(self.files.items()))

    def parsed(self, name: str, most: int, parser: Callable[[bytes], T], empty: T) -> T:
        """What a file says; ``empty`` where it is not there or wrong, which is noted."""
        if name not in self.files:
            return empty
        try:
            return parser(_read(self.folder, name, most))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            self.problems.append(f"{name}: is damaged or half written")
        except OSError as error:
            self.problems.append(f"{name}: {error.strerror}")
        return empty

    def log(self) -> list[Entry]:
        """Of a long log its end."""
        size = self.files[LOG_FILE].st_size if LOG_FILE in self.files else 0
        cut = size > MAX_LOG
        entries, damaged = self.parsed(LOG_FILE, -MAX_LOG, parse, parse(b""))
        if cut:
            damaged = damaged[damaged[:1] == [1] :]  # the first line was cut by us
            self.problems.append(
                f"{LOG_FILE}: {size / MIB:.0f} MiB, only the last {MAX_LOG // MIB} MiB are shown"
            )
        if damaged:
            where = "" if cut else f", the first is line {damaged[0]}"
            self.problems.append(f"{LOG_FILE}: damaged lines left out: {len(damaged)}{where}")
        return entries

    def config(self) -> Json:
        """Its sections, as far as they are understood."""
        if CONFIG_FILE not in self.files and not self.problems:
            self.problems.append(f"{CONFIG_FILE}: missing, expected what the run was told")
        return self.parsed(CONFIG_FILE, MAX_CONFIG, _told, _told(b"{}"))


class Runs:
    """The runs in a folder, one in each folder below it that has a log or a configuration."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # By name, with the state of the files that they were made of.
        self._known: dict[str, tuple[object, Json]] = {}

    def listing(self) -> tuple[list[Json], int]:
        """The newest runs, newest first, and how many there are.

        Raises:
            NotFoundError: the folder cannot be read.
        """
        found = sorted(self._found().items(), key=lambda item: -item[1].written)
        known: dict[str, tuple[object, Json]] = {}
        for name, run in found[:MAX_RUNS]:
            state, summary = self._known.get(name, (None, {}))
            if state != run.state:
                summary = _summary(name, run, run.config(), run.log())
            known[name] = run.state, summary
        self._known = known
        return [summary for _, summary in known.values()], len(found)

    def run(self, name: str) -> Json:
        """All that is shown of a run: its summary, what it was told, curves, scores, pictures.

        Raises:
            NotFoundError: there is none of this name.
        """
        run = self._named(name)
        config, log = run.config(), run.log()
        files = [of for file in sorted(run.files) if (of := SCORES.fullmatch(file))]
        scores = [
            {
                "of": of[1].replace("_", ", "),
                **run.parsed(of[0], MAX_SCORES, _scores, _scores(b"[]")),
            }
            for of in files[:MAX_SCORE_FILES]
        ]
        shown = [
            {"name": picture, "version": str(run.files[f"{picture}.png"].st_mtime_ns)}
            for picture in PICTURES
            if f"{picture}.png" in run.files
        ]
        return {
            **_summary(name, run, config, log),
            "told": config,
            "charts": _charts(log),
            "scores": scores,
            "pictures": shown,
        }

    def picture(self, name: str, picture: str) -> bytes:
        """A picture of a run, as PNG.

        Raises:
            NotFoundError: there is no such run or picture.
            InvalidRequestError: it is too large, a link, or no PNG.
        """
        run, file = self._named(name), f"{picture}.png"
        if picture not in PICTURES or file not in run.files:
            raise NotFoundError(f"picture: the run has no {picture[:80]!r}", field="picture")
        data = run.parsed(file, MAX_PICTURE, _png, b"")
        if run.problems:
            raise InvalidRequestError(f"picture: {run.problems[0]}", field="picture")
        return data

    def _named(self, name: str) -> _Run:
        found = self._found().get(name)
        if found is None:
            raise NotFoundError(f"name: no run {name[:80]!r}", field="name")
        return found

    def _found(self) -> dict[str, _Run]:
        """Runs by their names as they are shown."""
        found = {}
        try:
            with os.scandir(self.folder) as entries:
                for entry in islice(entries, MAX_ENTRIES):
                    if entry.name[0] != "." and entry.is_dir(follow_symlinks=False):
                        run = _opened(Path(entry.path))
                        if run.problems or {LOG_FILE, CONFIG_FILE} & run.files.keys():
                            found[printable(entry.name, MAX_NAME)] = run
        except OSError as error:
            raise NotFoundError(
                f"runs: the folder cannot be read: {error.strerror}", field="runs"
            ) from error
        return found


def _opened(folder: Path) -> _Run:
    run = _Run(folder)
    try:
        with os.scandir(folder) as entries:
            for entry in islice(entries, MAX_FILES):
                if not entry.is_dir(follow_symlinks=False):
                    run.files[entry.name] = entry.stat(follow_symlinks=False)
    except OSError as error:
        run.problems.append(f"folder: {error.strerror}")
    return run


def _read(folder: Path, name: str, most: int) -> bytes:
    """A file of a folder, or of a longer one the end, where ``most`` is below 0.

    Raises:
        OSError: it cannot be read, is a link or no file, or too large.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW
    inside = os.open(folder, flags | os.O_DIRECTORY)
    try:
        file = os.open(name, flags | os.O_NONBLOCK, dir_fd=inside)  # of a pipe nobody may write
    except OSError as error:
        if (Path(folder) / name).is_symlink():
            raise OSError(error.errno, "is a link, which is not followed") from error
        raise
    finally:
        os.close(inside)
    with os.fdopen(file, "rb") as stream:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(0, "is no file")
        if found.st_size > abs(most):
            if most > 0:
                raise OSError(0, f"{found.st_size} bytes, expected at most {most}")
            stream.seek(most, os.SEEK_END)
        return stream.read(abs(most))


def _png(data: bytes) -> bytes:
    if not data.startswith(PNG):
        raise ValueError("no PNG")
    return data


class _Loader(yaml.SafeLoader):
    """Without aliases: some lines of them can stand for gigabytes, and the trainer writes none."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not read")
        return super().compose_node(parent, index)


def _told(data: bytes) -> Json:
    """What of a configuration is shown.

    Raises:
        ValueError: it is damaged.
    """
    try:
        config = yaml.load(data, _Loader)  # noqa: S506
    except yaml.YAMLError as error:
        raise ValueError("no YAML") from error
    if not isinstance(config, dict):
        raise TypeError("no configuration")
    data_, assistant, student = (_section(config, n) for n in ("data", "assistant", "student"))
    steps = config.get("steps")
    return {
        "steps": steps if type(steps) is int and 0 < steps < 1 << 53 else None,
        "classes": _words(data_.get("classes")),
        "labelled": _words(data_.get("labelled")),
        "server": _word(assistant.get("server")),
        "bank": _word(assistant.get("bank")),
        "method": _word(config.get("method")),
        "student": _word(student.get("kind")),
        "size": _word(data_.get("size")),
        "seed": _word(config.get("seed")),
    }


def _section(config: Mapping[Any, Any], name: str) -> Mapping[Any, Any]:
    found = config.get(name)
    return found if isinstance(found, dict) else {}


def _word(value: object) -> str:
    return printable(str(value), MAX_NAME) if type(value) in (str, int, float) else ""


def _words(value: object) -> list[str]:
    return [_word(one) for one in value[:MAX_NAME]] if isinstance(value, list) else []


def _summary(name: str, run: _Run, config: Json, log: list[Entry]) -> Json:
    """A run in one line of a table."""
    steps, step = config["steps"], int(log[-1]["step"]) if log else 0
    dice = [entry["val/dice"] for entry in log if math.isfinite(entry.get("val/dice", math.nan))]
    answers = answered(
        [e for e in log if 0 <= e.get(RECEIVED, 0) <= e.get(REQUESTED, 0) < math.inf]
    )
    return {
        "name": name,
        "step": step,
        "steps": steps,
        "best_dice": max(dice, default=None),
        "answered": answers.share if answers.requested else None,
        "written": run.written,
        "finished": steps is not None and step >= steps,
        "problems": list(run.problems),
    }


def _charts(log: list[Entry]) -> list[Json]:
    """Curves by what they have in common, each of at most ``MAX_POINTS`` points."""
    names = dict.fromkeys(name for entry in log for name in entry)
    losses = {name: name[5:] for name in names if name.startswith("loss/")}
    classes = [name for name in names if name.startswith("val/dice/")]
    dice = {"val/dice": "mean"} | {name: name[9:] for name in classes}
    colours = {name: pictures.hex_colour(number) for number, name in enumerate(classes, start=1)}
    return [
        {
            "title": title,
            "is_share": title != "Losses",
            "curves": [
                _curve(log, name, printable(label, MAX_NAME), colours.get(name, ""))
                for name, label in islice(curves.items(), MAX_CURVES)
                if name in names
            ],
        }
        for title, curves in (
            ("Losses", losses),
            ("Dice on validation cases", dice),
            ("Answers and confidence", SHARES),
        )
    ]


def _curve(log: Iterable[Entry], name: str, label: str, colour: str) -> Json:
    """Of many points the means of stretches, at their last update."""
    points = [(e["step"], e[name]) for e in log if math.isfinite(e.get(name, math.nan))]
    width = max(1, math.ceil(len(points) / MAX_POINTS))
    stretches = [points[i : i + width] for i in range(0, len(points), width)]
    means = [sum(value for _, value in part) / len(part) for part in stretches]
    return {
        "label": label,
        "colour": colour,
        "steps": [part[-1][0] for part in stretches],
        "values": [float(f"{mean:.5g}") if math.isfinite(mean) else None for mean in means],
    }


def _scores(data: bytes) -> Json:
    """How many cases a file of scores has, and those with the lowest mean Dice.

    Raises:
        ValueError: it is damaged.
    """
    cases: list[Json] = [
        {
            "name": _word(case["name"]),
            "dice": [_number(value) for value in case["dice"]],
            "hd95": [_number(value) for value in case["hd95"]],
            "unit": _word(case["unit"]),
        }
        for case in json.loads(data)
    ]
    cases.sort(key=lambda case: sum(case["dice"]) / max(1, len(case["dice"])))
    return {"cases": len(cases), "worst": cases[:MAX_WORST]}


def _number(value: object) -> float:
    if type(value) not in (int, float) or not math.isfinite(found := float(value)):  # type: ignore[arg-type]
        raise ValueError("no number")
    return round(found, 4)
