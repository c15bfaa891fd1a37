"""What is wrong with a file of a user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class FileError(ValueError):
    """A file cannot be read, or is not what was expected; the message names it."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever is raised while a file is read into a FileError that names it.

    Decoders raise what they like: nibabel a plain Exception, zlib an error of its own.
    """
    try:
        yield
    except FileError:
        raise
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise FileError(f"{path}: cannot be read ({reason})") from error
