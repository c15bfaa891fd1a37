"""What travels: the working tree without what git ignores, and the carried folder."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from gpu_queue.errors import QueueError
from gpu_queue.machine import MIB

# Of the whole, left free for what the copying itself needs.
MARGIN = MIB // 2
NAMED = 5


@dataclass(frozen=True)
class Load:
    """Bytes of what travels, by path; ``carried`` is the ignored folder that goes along."""

    tracked: dict[str, int]
    untracked: dict[str, int]
    carried: dict[str, int]

    @property
    def total(self) -> int:
        """Bytes in all."""
        return sum(sum(part.values()) for part in (self.tracked, self.untracked, self.carried))

    def describe(self, limit: int) -> str:
        """One line of sums."""
        parts = [
            f"{name} {_mib(sum(part.values()))}"
            for name, part in (
                ("tracked files", self.tracked),
                ("new files", self.untracked),
                ("the carried folder", self.carried),
            )
        ]
        return f"Travels: {', '.join(parts)}; {_mib(self.total)} of {_mib(limit)} MiB"

    def check(self, limit: int) -> None:
        """Whether all of it may travel.

        Raises:
            QueueError: it is too much; the largest files are named.
        """
        if self.total <= limit - MARGIN:
            return
        everything = {**self.tracked, **self.untracked, **self.carried}
        largest = sorted(everything.items(), key=lambda item: -item[1])[:NAMED]
        named = ", ".join(f"{path} {_mib(size)}" for path, size in largest)
        raise QueueError(
            f"{_mib(self.total)} MiB would travel, more than {_mib(limit - MARGIN)}; "
            f"largest: {named}"
        )


def load(root: Path, carried: Path) -> Load:
    """What would travel from the project in ``root`` with the folder ``carried``."""
    tracked = _listed(root, "--cached")
    untracked = _listed(root, "--others", "--exclude-standard")
    files = [f for f in sorted(carried.rglob("*")) if f.is_file()] if carried.is_dir() else []
    return Load(
        {name: (root / name).lstat().st_size for name in tracked},
        {name: (root / name).lstat().st_size for name in untracked},
        {str(file.relative_to(root)): file.stat().st_size for file in files},
    )


def export(root: Path, carried: Path, target: Path) -> None:
    """Copy all that travels to the new folder ``target``."""
    names = [*_listed(root, "--cached"), *_listed(root, "--others", "--exclude-standard")]
    for name in names:
        file = target / name
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, file, follow_symlinks=False)
    shutil.copytree(carried, target / carried.relative_to(root))


def commit(root: Path) -> str:
    """The commit of the working tree, with ``+`` where tracked files differ from it."""
    found = _git(root, "rev-parse", "HEAD").strip()
    return found + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")


def _listed(root: Path, *options: str) -> list[str]:
    names = _git(root, "ls-files", "-z", *options).split("\0")
    # A tracked file may have been deleted and not committed yet.
    return sorted({n for n in names if n and _is_there(root / n)})


def _is_there(path: Path) -> bool:
    return path.is_symlink() or path.is_file()


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        reason = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else error
        raise QueueError(f"git {' '.join(arguments)}: {reason}") from error
    return done.stdout


def _mib(size: int) -> str:
    return f"{size / MIB:.1f}"
