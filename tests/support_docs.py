"""Code blocks and messages of the documents, and a folder in which their commands run."""

from __future__ import annotations

import ast
import contextlib
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import typer
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundMultiFrameImageStorage, generate_uid
from typer.testing import CliRunner

from support import ROOT, SAMPLE, RunningServer, picture
from vessa_client import UInt8Array

# A comment before a block says why no test runs it.
BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```",
    re.MULTILINE | re.DOTALL,
)
# A training of two updates.
SHORT = (
    *("--steps", "2", "--threads", "1", "--set", "validate_every=2", "--set", "data.size=32"),
    *("--set", "regions=false", "--set", "assistant.feedback_start=0.0"),
)


@dataclass(frozen=True)
class Block:
    """A code block; ``reason`` says why it is not run, and is empty where it is."""

    language: str
    text: str
    reason: str

    @property
    def lines(self) -> list[str]:
        """Its commands."""
        return self.text.replace("\\\n", " ").splitlines()


def blocks(text: str) -> list[Block]:
    """Code blocks of a document, in order."""
    found = BLOCK.finditer(text)
    return [Block(m["language"], m["text"], m["reason"] or "") for m in found]


def applications() -> dict[str, typer.Typer]:
    """The project's commands."""
    from ssl_trainer.cli import app as trainer
    from vessa_client.cli import app as client
    from vessa_server.cli import app as server

    return {"vessa": client, "vessa-server": server, "ssl-trainer": trainer}


def messages(*folders: Path) -> set[str]:
    """Texts in the source, with ``…`` for what is put into them."""
    found = set()
    for file in (file for folder in folders for file in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = (p.value if isinstance(p, ast.Constant) else "…" for p in node.values)
                found.add("".join(map(str, parts)))
    return found


class Reader:
    """Somebody who does what a document says, in a folder of their own, beside a server.

    ``ssl-trainer train`` takes two updates only, and ``vessa-server serve`` is ``server``.
    """

    def __init__(self, folder: Path, server: RunningServer) -> None:
        self.folder, self._server = folder, server

    def follow(self, text: str) -> int:
        """Run the blocks of a text that are not marked; returns how many lines were run."""
        count = 0
        for block in blocks(text):
            if block.reason:
                continue
            if block.language == "python":
                with contextlib.chdir(self.folder):
                    exec(compile(self._here(block.text), block.text, "exec"), {})
                count += 1
                continue
            assert not block.language, f"{block.language}: run it, or say why not"
            for line in block.lines:
                count += self._run(line, self.folder)
        return count

    def _here(self, text: str) -> str:
        there = text.replace("localhost:50051", self._server.grpc)
        return there.replace("localhost:8080", self._server.http.removeprefix("http://"))

    def _run(self, line: str, folder: Path) -> int:
        inside = re.fullmatch(r"\(cd (\S+) && (.+)\)", line)
        if inside:
            return self._run(inside[2], folder / inside[1])
        words = shlex.split(self._here(line), comments=True)
        if not words or words[:2] == ["vessa-server", "serve"]:
            return 0
        if words[0] not in applications():
            subprocess.run(words, cwd=folder, check=True, stdout=subprocess.DEVNULL)
            return 1
        more = SHORT if words[:2] == ["ssl-trainer", "train"] else ()
        with contextlib.chdir(folder):
            done = CliRunner().invoke(
                applications()[words[0]],
                [*words[1:], *more],
                env={"VESSA_SERVER": self._server.grpc, "COLUMNS": "200"},
            )
        assert done.exit_code == 0, f"{line}\n{done.output}\n{done.exception!r}"
        return 1


def write_scans(folder: Path, classes: int) -> None:
    """What the documents speak of: a small sample, annotated images, others, a film, slices."""
    sample = folder / "examples" / SAMPLE.name
    for name in ("train", "val"):
        (sample / name).mkdir(parents=True)
    shutil.copy(ROOT / "examples" / "acdc.yaml", folder / "examples")
    for seed, name in enumerate(("train/patient099_frame01", "val/patient028_frame01")):
        _write(sample / f"{name}.nii.gz", 50 + seed, 3, "_gt", depth=5)
    _write(sample / "train" / "patient041_frame01.nii.gz", 60, 3)
    for name in ("annotated", "scans", "frames"):
        (folder / name).mkdir()
    for seed, name in enumerate(("scan1.nii.gz", "annotated/a.nii.gz", "annotated/b.png")):
        _write(folder / name, seed, classes, "_labels" if seed == 0 else "_gt")
    for seed, name in enumerate(("one_1.png", "one_2.png", "two_1.png")):
        _write(folder / "frames" / name, 10 + seed, classes, "_gt")
    for seed, name in enumerate(("scans/patient1.nii.gz", "scans/patient2.png", "volume.nii.gz")):
        _write(folder / name, 20 + seed, classes)
    _write(folder / "slice.png", 30, classes)
    _write(folder / "slice.nii.gz", 31, classes, depth=1)
    _write_film(folder / "film.dcm", [picture(40 + seed)[0] for seed in range(3)])


def _write(path: Path, seed: int, classes: int, suffix: str = "", *, depth: int = 2) -> None:
    for place, planes in zip(_places(path, suffix), _planes(seed, classes, depth), strict=False):
        if path.suffix == ".png":
            Image.fromarray(planes[0]).save(place)
        else:
            nib.save(nib.Nifti1Image(np.stack(planes, -1), np.diag([1.0, 1.0, 5.0, 1.0])), place)


def _places(path: Path, suffix: str) -> Iterator[Path]:
    """Of the image, and of its labels where these have a suffix."""
    yield path
    if suffix:
        name, dot, kind = path.name.partition(".")
        yield path.with_name(f"{name}{suffix}{dot}{kind}")


def _planes(seed: int, classes: int, depth: int) -> tuple[list[UInt8Array], list[UInt8Array]]:
    """Slices, and labels of one to three classes."""
    pairs = [picture(100 * seed + z) for z in range(depth)]
    for image, labels in pairs:
        labels[labels > classes] = 0
        if classes == 3:
            image[2:12, 2:20], labels[2:12, 2:20] = 250, 3
    return [image for image, _ in pairs], [labels for _, labels in pairs]


def _write_film(path: Path, frames: list[UInt8Array]) -> None:
    """An ultrasound film as DICOM."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = UltrasoundMultiFrameImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    film = FileDataset(str(path), Dataset(), preamble=b"\0" * 128, file_meta=meta)
    film.SOPClassUID = meta.MediaStorageSOPClassUID
    film.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    film.Modality = "US"
    film.NumberOfFrames, (film.Rows, film.Columns) = len(frames), frames[0].shape
    film.SamplesPerPixel, film.PhotometricInterpretation = 1, "MONOCHROME2"
    film.BitsAllocated, film.BitsStored, film.HighBit, film.PixelRepresentation = 8, 8, 7, 0
    film.PixelData = np.stack(frames).tobytes()
    film.save_as(path, enforce_file_format=True)
