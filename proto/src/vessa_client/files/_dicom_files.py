"""Which files are DICOM, and which of them are one image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

SUFFIXES = (".dcm", ".dicom", ".ima")
ZIP = ".zip"
_MAGIC, _MAGIC_AT = b"DICM", 128


def is_dicom(path: Path) -> bool:
    """Whether a path is a DICOM file, a folder of them, or a zip."""
    if path.is_dir():
        return any(is_dicom_file(file) for file in sorted(path.iterdir()))
    return is_dicom_file(path) or (path.suffix.lower() == ZIP and path.is_file())


def is_dicom_file(path: Path) -> bool:
    """By its suffix; without one, as scanners write them, by its content."""
    if not path.is_file() or path.name.startswith(".") or path.name == "DICOMDIR":
        return False
    if path.suffix.lower() in SUFFIXES:
        return True
    # Names such as 1.2.840.113619 end like a suffix.
    if path.suffix and not path.suffix[1:].isdigit():
        return False
    with path.open("rb") as stream:
        return stream.read(_MAGIC_AT + len(_MAGIC))[_MAGIC_AT:] == _MAGIC


def images(folder: Path, entries: Sequence[Path]) -> Iterator[Path]:
    """The DICOM images of a folder.

    The folder itself, where its files are slices of a volume; files that have no place in space
    or hold several frames, each by itself; zips.
    """
    yield from (path for path in entries if path.suffix.lower() == ZIP and path.is_file())
    found = [path for path in entries if is_dicom_file(path)]
    alone = [path for path in found if len(found) == 1 or not _is_slice(path)]
    yield from alone
    if len(alone) < len(found):
        yield folder


def _is_slice(path: Path) -> bool:
    """Whether a file is one slice of a volume; what cannot be read says so when it is."""
    import pydicom

    try:
        header = pydicom.dcmread(
            path, stop_before_pixels=True, specific_tags=["ImagePositionPatient", "NumberOfFrames"]
        )
        return "ImagePositionPatient" in header and int(header.get("NumberOfFrames") or 1) == 1
    except Exception:
        return False


def is_dicom_content(data: bytes) -> bool:
    """Whether a file's content is DICOM's."""
    return data[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] == _MAGIC
