"""Runs that the clock cuts off: their folders as files that come back, and are carried again."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import asdict, dataclass
from pathlib import Path

from gpu_jobs.errors import JobError
from gpu_jobs.stage2_train import PROGRESS
from ssl_runs import STARTS
from ssl_scores import scores_file
from ssl_tasks import Run
from ssl_trainer.regions.run import LOCATOR_FILE, REGIONS_FILE
from ssl_trainer.training.state import BEST_FILE, STATE_FILE

# In the carried folder, in what comes back, and in the ignored folder of this machine.
FOLDER, PREFIX, SUFFIX = "states", "state_", ".tar.gz"
# Beside the result and the log: how many come back, and bytes of each and of all.
MOST, LARGEST, ROOM = 5, 16 * 2**20, 56 * 2**20
NOTE = "note.json"
LOG = "log.jsonl"


@dataclass(frozen=True)
class Note:
    """What a file is of.

    Attributes:
        step: updates that were made.
        vessa: digest of the weights that the run asks; None without.
    """

    task: str
    run: str
    step: int
    steps: int
    vessa: str | None


def file_name(task: str, run: Run) -> str:
    """Of a run's state."""
    return f"{PREFIX}{task}_{run.name.replace('/', '_')}{SUFFIX}"


def pack(folder: Path, note: Note, file: Path, room: int = ROOM) -> str:
    """Write a run's state of at most ``room`` bytes; returns why there is none, or nothing."""
    if not (folder / STATE_FILE).is_file():
        return "no state was written yet"
    scores = [scores_file(folder, split).name for split in ("val", "test")]
    names = (STATE_FILE, BEST_FILE, LOCATOR_FILE, REGIONS_FILE, STARTS, PROGRESS, LOG, *scores)
    text = json.dumps(asdict(note)).encode()
    # Prompts of VESSA's requests are nearly all zeros.
    with tarfile.open(file, "w:gz", compresslevel=3) as archive:
        member = tarfile.TarInfo(NOTE)
        member.size = len(text)
        archive.addfile(member, io.BytesIO(text))
        for name in names:
            if (folder / name).is_file():
                archive.add(folder / name, name)
    size, most = file.stat().st_size, min(LARGEST, room)
    if size > most:
        file.unlink()
        return f"its state has {size / 2**20:.1f} MiB, more than {most / 2**20:.1f}"
    return ""


def note_of(file: Path) -> Note:
    """What a state is of.

    Raises:
        JobError: it is damaged.
    """
    try:
        with tarfile.open(file) as archive:
            stream = archive.extractfile(NOTE)
            assert stream is not None
            return Note(**json.loads(stream.read()))
    except (OSError, EOFError, tarfile.TarError, KeyError, ValueError, TypeError) as error:
        raise JobError(f"{file}: no state of a run ({error!r}); remove it") from error


def unpack(file: Path, folder: Path) -> None:
    """Put a run's state where the run goes on."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file) as archive:
        archive.extractall(folder, filter="data")
