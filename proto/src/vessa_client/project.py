"""``vessa.toml``: what the commands use in a folder and below, so that two projects never meet.

::

    bank = "liver"
    server = "localhost:50051"
    classes = ["liver", "tumour: dark lesion in the liver"]
    window = "soft"

Flags and variables of the environment win.
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path

FILE = "vessa.toml"


class ProjectError(ValueError):
    """A project's file cannot be read."""


@dataclass(frozen=True, kw_only=True)
class Project:
    """Values of options; what is empty is left to the commands.

    Attributes:
        bank: its name.
        server: host:port of its gRPC.
        classes: as ``-c`` takes them.
        window: as ``--window`` takes it.
    """

    bank: str = ""
    server: str = ""
    classes: tuple[str, ...] = ()
    window: str = ""

    @property
    def text(self) -> str:
        """Of its file: what is set."""
        lines = [f"{k} = {json.dumps(v, ensure_ascii=False)}" for k, v in asdict(self).items() if v]
        return "\n".join(lines) + "\n"


def find(folder: Path) -> Path | None:
    """The project's file, in a folder or the nearest above it."""
    places = (place / FILE for place in (folder, *folder.parents))
    return next((place for place in places if place.is_file()), None)


def read(file: Path) -> Project:
    """Read a project's file.

    Raises:
        ProjectError: it is no TOML, or has other keys or values than a project.
    """
    try:
        found = tomllib.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ProjectError(f"{file}: {error}") from error
    texts = {key: found.pop(key, "") for key in ("bank", "server", "window")}
    classes = found.pop("classes", [])
    if not isinstance(classes, list):
        classes = [None]
    wrong = sorted(found) + [key for key, value in texts.items() if not isinstance(value, str)]
    wrong += ["classes"] * any(not isinstance(text, str) for text in classes)
    if wrong:
        raise ProjectError(
            f"{file}: {wrong[0]}, expected bank, server, window (texts), and classes (a list of "
            "texts)"
        )
    return Project(**texts, classes=tuple(classes))
