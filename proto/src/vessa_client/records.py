"""What each label map of a folder was made with, so that no stale one is taken for a new one.

``labelled.json`` in the folder of results: one entry for each image.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from vessa_client import files

FILE = "labelled.json"
# "made": as asked for now. "other": of other classes, options, templates or weights. "edited": not
# as it was written, such as corrected by hand. "unknown": nothing says what it was made with.
State = Literal["missing", "made", "other", "edited", "unknown"]


@dataclass(frozen=True)
class Settings:
    """What label maps depend on, besides the image.

    Attributes:
        classes: name and value of each, in order; empty for all of the bank.
        options: of the command that change an answer.
        bank: its name.
        bank_version: its content.
        model: digest of the weights.
        policy: version of the server's rules.
    """

    classes: tuple[tuple[str, int], ...]
    options: tuple[str, ...]
    bank: str
    bank_version: str
    model: str
    policy: str

    def differs(self, other: Settings) -> str:
        """How the other settings differ, in words; empty if they do not."""
        if self.classes != other.classes:
            return f"classes {_classes(other)}, now {_classes(self)}"
        names = {"options": "options", "bank": "bank", "bank_version": "templates"}
        names |= {"model": "weights", "policy": "rules of the server"}
        found = [
            words for name, words in names.items() if getattr(self, name) != getattr(other, name)
        ]
        return f"other {', '.join(found)}" if found else ""


@dataclass(frozen=True)
class Record:
    """One label map.

    Attributes:
        settings: that it was made with.
        digest: sha256 of the file as it was written.
        structures: for each class its name, value, voxels and mean predicted IoU.
        templates: that served most, name and similarity.
        slices: of the image.
        picture: below the folder of results.
        edited: digest of the label map as somebody changed it, where voxels and picture are of
            that one; its predicted IoU is 0, since nobody predicted it.
    """

    settings: Settings
    digest: str
    structures: tuple[Mapping[str, Any], ...]
    templates: tuple[tuple[str, float], ...]
    slices: int
    picture: str
    edited: str = ""

    @property
    def confidence(self) -> float:
        """Predicted IoU of the least sure structure that was found; 0 where nothing was.

        1 of what was edited: somebody has looked at it.
        """
        if self.edited:
            return 1.0
        found = [float(s["predicted_iou"]) for s in self.structures if s["voxels"]]
        return min(found, default=0.0)


@dataclass(frozen=True)
class Records:
    """Those of a folder, by the image's place below the labelled folder."""

    folder: Path
    entries: Mapping[str, Record]

    @staticmethod
    def read(folder: Path) -> Records:
        """Of an earlier call; none where there was none.

        Raises:
            FileError: the file is damaged.
        """
        file = folder / FILE
        if not file.is_file():
            return Records(folder, {})
        try:
            content = json.loads(file.read_text())
            return Records(folder, {name: _record(entry) for name, entry in content.items()})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise files.FileError(
                f"{file}: damaged ({error!r}); remove it, and its label maps count as unknown"
            ) from error

    def state(self, name: str, target: Path, settings: Settings) -> tuple[State, str]:
        """Of the label map of an image, and how its settings differ from those of now."""
        if not target.is_file():
            return "missing", ""
        record = self.entries.get(name)
        if record is None:
            return "unknown", ""
        if digest(target) != record.digest:
            return "edited", ""
        how = settings.differs(record.settings)
        return ("other", how) if how else ("made", "")

    def with_entry(self, name: str, record: Record) -> Records:
        """With one more, written."""
        found = replace(self, entries={**self.entries, name: record})
        content = {key: asdict(found.entries[key]) for key in sorted(found.entries)}
        files.write_text(self.folder / FILE, json.dumps(content, indent=1) + "\n")
        return found

    def table(self) -> str:
        """As CSV: a line for each structure of each image."""
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(["image", "class", "label", "voxels", "mean_predicted_iou"])
        for name in sorted(self.entries):
            for found in self.entries[name].structures:
                iou = "" if self.entries[name].edited else f"{found['predicted_iou']:.3f}"
                writer.writerow([name, found["class"], found["label"], found["voxels"], iou])
        return text.getvalue()


def digest(file: Path) -> str:
    """sha256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _record(entry: Mapping[str, Any]) -> Record:
    own = dict(entry["settings"])
    own["classes"] = tuple((str(name), int(value)) for name, value in own["classes"])
    own["options"] = tuple(own["options"])
    return Record(
        settings=Settings(**own),
        digest=str(entry["digest"]),
        structures=tuple(entry["structures"]),
        templates=tuple((str(name), float(value)) for name, value in entry["templates"]),
        slices=int(entry["slices"]),
        picture=str(entry["picture"]),
        edited=str(entry.get("edited", "")),
    )


def _classes(settings: Settings) -> str:
    return ", ".join(f"{value}={name}" for name, value in settings.classes) or "all of the bank"
