"""Files and folders as answers."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path

from fastapi import Response
from fastapi.responses import FileResponse
from starlette.background import BackgroundTask


def sent(path: Path) -> Response:
    """A file as it is, or a folder as a zip of its files."""
    if path.is_dir():
        return zipped(path.name, {file.name: file for file in path.iterdir() if file.is_file()})
    return FileResponse(path, filename=path.name)


def zipped(name: str, inside: dict[str, Path]) -> Response:
    """A zip of files by their names in it; they are packed already, or hardly shrink."""
    made = tempfile.NamedTemporaryFile(suffix=".zip", delete=False)  # noqa: SIM115
    path = Path(made.name)
    try:
        with made, zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as archive:
            for entry, file in inside.items():
                archive.write(file, entry)
    except BaseException:
        path.unlink()
        raise
    return FileResponse(path, filename=f"{name}.zip", background=BackgroundTask(path.unlink))
