"""Scans in a folder, and labels beside them.

Layout, readable by people::

    NAME.nii.gz, NAME.nrrd, NAME/   scans: files, and folders of DICOM series
    labels/<tag>/NAME.nii.gz        label maps, with NAME.json of what is known of each
    .info/NAME.json                 what clients noted of a scan

What is hidden, and links, are not there.
"""

from __future__ import annotations

import filecmp
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vessa_client import InvalidRequestError, NotFoundError, files
from vessa_server.api.monailabel import scans, uploads
from vessa_server.api.monailabel.uploads import Upload, check_name

LABELS, INFO = "labels", ".info"
FINAL = "final"
MAX_INFO_BYTES = 1 << 20
Info = dict[str, Any]


class Datastore:
    """Finds and changes scans and labels; whoever changes some takes care to be alone."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """``max_bytes``: most that a scan's voxels take in memory."""
        self.folder = folder
        self.max_bytes = max_bytes
        self._series: dict[tuple[Path, int], str] = {}

    def images(self) -> dict[str, Path]:
        """Scans by id: the name without its suffix, or with it where two share a name."""
        found = [
            path
            for path in _visible(self.folder)
            if files.is_volume(path)
            and path.suffix.lower() != uploads.ZIP
            and path.name != LABELS
            and not files.stem(path).endswith(files.LABEL_SUFFIX)
        ]
        names = Counter(files.stem(path) for path in found)
        return {
            stem if names[stem] == 1 else path.name: path
            for path in found
            for stem in [files.stem(path)]
        }

    def image(self, image_id: str) -> Path:
        """A scan by its id, or a series by its SeriesInstanceUID, as OHIF names it.

        Raises:
            NotFoundError: there is none.
        """
        return self.named(image_id)[1]

    def named(self, image_id: str) -> tuple[str, Path]:
        """Id and place of a scan; see :meth:`image`."""
        found = self.images()
        if image_id in found:
            return image_id, found[image_id]
        for name, path in found.items():
            if path.is_dir() and self._series_of(path) == image_id:
                return name, path
        raise NotFoundError(f"image: no image {image_id[:80]!r} in the datastore", field="image")

    def tags(self) -> dict[str, dict[str, Path]]:
        """Label files by tag and image."""
        return {
            tag.name: {files.stem(path): path for path in _labels(tag)}
            for tag in _visible(self.folder / LABELS)
            if tag.is_dir()
        }

    def label(self, image_id: str, tag: str) -> Path:
        """The label file of an image.

        Raises:
            NotFoundError: there is none.
        """
        found = self.tags().get(tag, {})
        if image_id not in found:
            image_id = self.named(image_id)[0]
        if image_id not in found:
            raise NotFoundError(
                f"label: no label of {image_id[:80]!r} with tag {tag[:80]!r}", field="label"
            )
        return found[image_id]

    def unlabelled(self) -> dict[str, Path]:
        """Scans without a final label."""
        done = self.tags().get(FINAL, {})
        return {name: path for name, path in self.images().items() if name not in done}

    def put_image(self, image_id: str, upload: Upload) -> str:
        """Add a scan; returns its id.

        Raises:
            InvalidRequestError: it is no volume, or another of that name is there.
            OverloadedError: it is too large.
            DiskFullError: there is no space for it; nothing was added.
        """
        suffix = uploads.ending(upload.name)
        name = check_name("image", image_id or upload.name[: len(upload.name) - len(suffix)])
        if name in (LABELS, INFO) or name.endswith(files.LABEL_SUFFIX):
            raise InvalidRequestError(
                f"image: {name!r} is a name of labels, expected another", field="image"
            )
        with uploads.scratch(self.folder) as made:
            inside = made / "files"
            inside.mkdir()
            received = uploads.receive([upload], inside, "file", self.max_bytes)
            scans.read(received, "file", self.max_bytes)
            target = self.folder / name
            if suffix == uploads.ZIP and received.suffix.lower() == ".dcm":
                received = inside  # a series of one file
            if received.is_file():
                target = self.folder / (name + uploads.ending(received.name))
            known = self.images().get(name)
            if known is None and not target.exists():
                uploads.place(received, target)
            elif known != target or not _same(received, target):
                raise InvalidRequestError(
                    f"image: another {name!r} is there already; delete it, or choose another id",
                    field="image",
                )
        return name

    def delete_image(self, image_id: str) -> None:
        """Remove a scan for good, with its labels.

        Raises:
            NotFoundError: there is none.
        """
        name, path = self.named(image_id)
        with uploads.writing(self.folder):
            for tag, labels in self.tags().items():
                if name in labels:
                    self.delete_label(name, tag)
            self._info_file(name).unlink(missing_ok=True)
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def put_label(self, image_id: str, tag: str, label: Path, info: Info) -> None:
        """Put a label file, which was checked, in its place, and note ``info`` of it."""
        folder = self.folder / LABELS / check_name("tag", tag)
        with uploads.writing(self.folder):
            target = folder / (image_id + uploads.ending(label.name))
            uploads.place(label, target)
            for other in _labels(folder):
                if files.stem(other) == image_id and other != target:
                    other.unlink()
        self._write_info(image_id, tag, info)

    def delete_label(self, image_id: str, tag: str) -> None:
        """Remove a label file.

        Raises:
            NotFoundError: there is none.
        """
        path = self.label(image_id, tag)
        with uploads.writing(self.folder):
            path.unlink()
            self._info_file(files.stem(path), tag).unlink(missing_ok=True)

    def info(self, image_id: str, tag: str = "") -> Info:
        """What was noted of a scan, or of its label with a tag."""
        try:
            found = json.loads(self._info_file(image_id, tag).read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def put_info(self, image_id: str, info: Info, tag: str = "") -> None:
        """Note something of a scan or label, beside what was noted before.

        Raises:
            InvalidRequestError: it is too long.
        """
        self._write_info(image_id, tag, {**self.info(image_id, tag), **info})

    def _write_info(self, image_id: str, tag: str, info: Info) -> None:
        text = json.dumps(info, indent=2)
        if len(text) > MAX_INFO_BYTES:
            raise InvalidRequestError(
                f"info: {len(text)} bytes, expected at most {MAX_INFO_BYTES}", field="info"
            )
        with uploads.writing(self.folder):
            files.write_text(self._info_file(image_id, tag), text)

    def series(self, path: Path) -> dict[str, str]:
        """PatientID, StudyInstanceUID and SeriesInstanceUID of a DICOM series; else nothing."""
        import pydicom

        wanted = ["PatientID", "StudyInstanceUID", "SeriesInstanceUID"]
        inside = _visible(path) if path.is_dir() else [path]
        first = next((file for file in inside if files.is_dicom(file)), None)
        if first is None:
            return {}
        try:
            header = pydicom.dcmread(first, stop_before_pixels=True, specific_tags=wanted)
            return {name: str(header.get(name, "")) for name in wanted}
        except Exception:  # what cannot be read says so when its pixels are asked for
            return {}

    def _series_of(self, path: Path) -> str:
        key = path, path.stat().st_mtime_ns
        if key not in self._series:
            self._series[key] = self.series(path).get("SeriesInstanceUID", "")
        return self._series[key]

    def _info_file(self, image_id: str, tag: str = "") -> Path:
        folder = self.folder / LABELS / check_name("tag", tag) if tag else self.folder / INFO
        return folder / f"{check_name('image', image_id)}.json"


def _visible(folder: Path) -> Iterator[Path]:
    """What lies in a folder and is neither hidden nor a link, sorted."""
    entries = sorted(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else []
    return (path for path in entries if path.name[0] != "." and not path.is_symlink())


def _labels(folder: Path) -> Iterator[Path]:
    return (path for path in _visible(folder) if path.is_file() and files.is_volume(path))


def _same(one: Path, other: Path) -> bool:
    """Whether two files, or the files of two folders, have the same bytes."""
    if one.is_dir() != other.is_dir():
        return False
    if one.is_file():
        return filecmp.cmp(one, other, shallow=False)
    names = sorted(path.name for path in one.iterdir())
    if names != sorted(path.name for path in other.iterdir()):
        return False
    return all(filecmp.cmp(one / name, other / name, shallow=False) for name in names)
