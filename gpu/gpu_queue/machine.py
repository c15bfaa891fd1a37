"""What the machine with the GPU is expected to have: ``gpu/machine.toml``."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from packaging.utils import canonicalize_name

MIB = 2**20


@dataclass(frozen=True)
class Machine:
    """Its Python, its packages and the limits of what goes there and comes back.

    Attributes:
        python: such as 3.12.
        platforms: tags of wheels that run there.
        versions: of packages, by canonical name.
        unversioned: packages that are there in a version that nobody has written down.
        travels: bytes of the working tree and of what is carried beside it.
        files_back, file_back: how many files come back, and bytes of each.
        command_seconds: of one command, at most.
    """

    python: str
    platforms: tuple[str, ...]
    versions: dict[str, str]
    unversioned: frozenset[str]
    travels: int
    files_back: int
    file_back: int
    command_seconds: int

    def has(self, name: str) -> bool:
        """Whether a package of that name is there, in whatever version."""
        return name in self.versions or name in self.unversioned


def read(file: Path) -> Machine:
    """Read the description of a machine."""
    content = tomllib.loads(file.read_text())
    limits = content["limits"]
    return Machine(
        python=content["python"],
        platforms=tuple(content["platforms"]),
        versions={canonicalize_name(n): v for n, v in content["versions"].items()},
        unversioned=frozenset(map(canonicalize_name, content["unversioned"]["packages"])),
        travels=limits["travels_mib"] * MIB,
        files_back=limits["files_back"],
        file_back=limits["file_back_mib"] * MIB,
        command_seconds=limits["command_seconds"],
    )
