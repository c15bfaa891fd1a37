"""The states of the jobs: the last column of the table in ``gpu/README.md``, and nowhere else."""

from __future__ import annotations

import re
from pathlib import Path

from gpu_queue.errors import QueueError
from vessa_client import files


def states(document: Path) -> dict[str, str]:
    """State of each job."""
    rows = re.findall(r"^\| `([\w-]+)` \|.*\| ([^|\n]*) \|$", document.read_text(), re.MULTILINE)
    return {job: state.strip() for job, state in rows}


def set_state(document: Path, job: str, state: str) -> None:
    """Write a job's state.

    Raises:
        QueueError: the table has no row for it.
    """
    text = document.read_text()
    row = re.compile(rf"^(\| `{re.escape(job)}` \|.*\| )[^|\n]*( \|)$", re.MULTILINE)
    if not row.search(text):
        raise QueueError(f"{document}: no row for job {job}")
    files.write_text(document, row.sub(lambda m: f"{m[1]}{state}{m[2]}", text))
