"""What travels: the working tree without what git ignores, and the carried folder."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from gpu_jobs.errors import JobError
from gpu_queue.machine import MIB

# Of the whole, left free for what the copying itself needs.
MARGIN = MIB // 2
NAMED = 5


@dataclass(frozen=True)
class Load:
    """Bytes of what travels, by path: what git knows or does not ignore, and what is carried."""

    tree: dict[str, int]
    carried: dict[str, int]

    @property
    def total(self) -> int:
        """Bytes in all."""
        return sum(self.tree.values()) + sum(self.carried.values())

    def fits(self, limit: int, margin: int = MARGIN) -> bool:
        """Whether all of it may travel, with ``margin`` to spare."""
        return self.total <= limit - margin

    def check(self, limit: int) -> str:
        """A line of sums.

        Raises:
            JobError: it is too much; the largest files are named.
        """
        line = (
            f"Travels: the working tree {_mib(sum(self.tree.values()))}, the carried folder "
            f"{_mib(sum(self.carried.values()))}; {_mib(self.total)} of {_mib(limit)} MiB"
        )
        if self.fits(limit):
            return line
        largest = sorted({**self.tree, **self.carried}.items(), key=lambda item: -item[1])[:NAMED]
        named = ", ".join(f"{path} {_mib(size)}" for path, size in largest)
        raise JobError(f"{line}, {_mib(MARGIN)} of which stay free; largest: {named}")


def load(root: Path, carried: Path) -> Load:
    """What would travel from the project in ``root`` with the folder ``carried``."""
    files = [f for f in sorted(carried.rglob("*")) if f.is_file()]
    return Load(
        {name: (root / name).lstat().st_size for name in _tree(root)},
        {str(file.relative_to(root)): file.stat().st_size for file in files},
    )


def export(root: Path, carried: Path, target: Path) -> None:
    """Copy all that travels to the new folder ``target``."""
    for name in _tree(root):
        file = target / name
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, file, follow_symlinks=False)
    shutil.copytree(carried, target / carried.relative_to(root))


def commit(root: Path) -> str:
    """The commit of the working tree, with ``+`` where tracked files differ from it."""
    found = _git(root, "rev-parse", "HEAD").strip()
    return found + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")


def _tree(root: Path) -> list[str]:
    """Tracked files, and new ones that are not ignored."""
    names = _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    # A tracked file may have been deleted and not committed yet.
    there = {n for n in names if n and ((root / n).is_symlink() or (root / n).is_file())}
    return sorted(there)


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise JobError(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def _mib(size: int) -> str:
    return f"{size / MIB:.1f}"
