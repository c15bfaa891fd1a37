"""Uploaded files on their way into a folder."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO

from vessa_client import InvalidRequestError, VessaError, files
from vessa_server.api.errors import DiskFullError
from vessa_server.api.monailabel.scans import too_large
from vessa_server.bank.errors import FULL
from vessa_server.cases import dicom

ZIP = ".zip"
MAX_FILES = 4096
MAX_NAME_BYTES = 200


class Upload:
    """A file as it was sent: its bytes, and its name without the folders of whoever sent it."""

    def __init__(self, name: str, content: BinaryIO) -> None:
        self.name = name.replace("\\", "/").rpartition("/")[2]
        self.content = content


def check_name(field: str, name: str) -> str:
    """A name of an image or tag that can be one of a file.

    Raises:
        InvalidRequestError: it cannot.
    """
    if (
        not name
        or name.startswith(".")
        or "/" in name
        or "\\" in name
        or not name.isprintable()
        or len(name.encode()) > MAX_NAME_BYTES
    ):
        raise InvalidRequestError(
            f"{field}: {name[:80]!r}, expected 1 to {MAX_NAME_BYTES} bytes of a file name without "
            "slashes, the first no '.'",
            field=field,
        )
    return name


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A hidden folder inside ``folder``, on the same disk, that is gone in the end."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".") as made:
            yield Path(made)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn what the operating system refuses into errors that say what to do.

    Raises:
        DiskFullError: no space is left.
        VessaError: the folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        if error.errno in FULL:
            raise DiskFullError(
                f"studies: the disk is full ({reason}), nothing was changed; free some space",
                field="studies",
            ) from error
        raise VessaError(
            f"studies: {folder.name} cannot be written ({reason}), nothing was changed; expected "
            "a folder that the server may write to",
            field="studies",
        ) from error


def receive(uploads: Sequence[Upload], folder: Path, field: str, max_bytes: int) -> Path:
    """Write what was sent into an empty folder; a zip is unpacked.

    Returns:
        The file, or the folder where there are several.

    Raises:
        InvalidRequestError: no files, too many, or two of one name.
        OverloadedError: a zip unpacks to more than ``max_bytes``.
    """
    if len(uploads) == 1 and uploads[0].name.lower().endswith(ZIP):
        try:
            _unpack(uploads[0].content, folder, field, max_bytes)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
            raise InvalidRequestError(
                f"{field}: zip is damaged or locked ({error}), expected a plain one", field=field
            ) from error
    else:
        for upload in uploads:
            _write(upload.content, folder, upload.name, field)
    written = list(folder.iterdir())
    if not written:
        raise InvalidRequestError(f"{field}: no file in it, expected a scan", field=field)
    return written[0] if len(written) == 1 else folder


def place(source: Path, target: Path) -> None:
    """Sync a file or folder and move it to its place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir() if source.is_dir() else [source]:
        with file.open("rb+") as stream:
            os.fsync(stream.fileno())
    os.replace(source, target)


def _unpack(content: BinaryIO, folder: Path, field: str, max_bytes: int) -> None:
    dicom.check_list(content, field)
    with zipfile.ZipFile(content) as archive:
        entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        if len(entries) > MAX_FILES:
            raise InvalidRequestError(
                f"{field}: {len(entries)} files in the zip, expected at most {MAX_FILES}",
                field=field,
            )
        if sum(entry.file_size for entry in entries) > max_bytes:
            raise too_large(field, "zip unpacks to more", max_bytes)
        for entry in entries:  # no more is unpacked of each than it announces
            with archive.open(entry) as stream:
                _write(stream, folder, PurePosixPath(entry.filename).name, field)


def _write(content: IO[bytes], folder: Path, name: str, field: str) -> None:
    path = folder / check_name(field, name or "scan")
    if path.exists():
        raise InvalidRequestError(f"{field}: two files of name {name[:80]!r}", field=field)
    with path.open("xb") as stream:
        shutil.copyfileobj(content, stream)


def ending(name: str) -> str:
    """The suffix of a volume's file name, lower-case; empty of others."""
    known = (*files.NIFTI_SUFFIXES, ".seg.nrrd", ".nrrd", ".dcm", ZIP)
    return next((suffix for suffix in known if name.lower().endswith(suffix)), "")
