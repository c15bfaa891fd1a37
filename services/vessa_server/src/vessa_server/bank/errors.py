"""Errors of the bank on disk.

::

    BankError
    └── BankFullError   its disk is full
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Disk full, quota used up, file-size limit reached: nothing more can be written.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class BankError(RuntimeError):
    """The bank on disk cannot be read or changed."""


class BankFullError(BankError):
    """The disk of the bank is full; nothing was added or changed."""


@contextmanager
def as_bank_errors(folder: Path) -> Iterator[None]:
    """Turn what the operating system refuses into errors that say what to do."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in FULL:
            raise BankFullError(
                f"bank: the disk of {folder} is full ({reason}), nothing was added or changed; "
                "free some space and try again"
            ) from error
        raise BankError(
            f"bank: {folder} cannot be written ({reason}), nothing was added or changed; "
            "expected a folder that the server may write to"
        ) from error
