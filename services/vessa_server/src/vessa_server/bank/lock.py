"""A lock between threads and processes, on a file."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vessa_server.bank.errors import BankError

_POLL_SECONDS = 0.01


@contextmanager
def exclusive(file: Path, seconds: float) -> Iterator[None]:
    """Hold the lock, alone; wait for it at most ``seconds``.

    Raises:
        BankError: somebody else holds it for longer.
        OSError: the file cannot be opened or locked.
    """
    deadline = time.monotonic() + seconds
    with file.open("w") as stream:
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    raise BankError(
                        f"bank: {file} is held by another process for more than {seconds:g} s, "
                        "nothing was changed; try again, or end the process that holds it "
                        f"(`fuser {file}` names it)"
                    ) from error
                time.sleep(_POLL_SECONDS)
        yield
