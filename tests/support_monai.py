"""Scans in a folder, and a server that MONAI Label's clients are pointed at."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from support import RunningServer, engine_of, picture, running
from support_dicom import write_series
from support_files import nifti
from vessa_client import AnyArray

SLICES = 5
PAIRS = [picture(seed) for seed in range(SLICES)]
VOXELS = np.stack([image for image, _ in PAIRS], axis=-1)
LABELS = np.stack([labels for _, labels in PAIRS], axis=-1)
TILT = np.radians(10)
TILTED = np.array([[1, 0, 0], [0, np.cos(TILT), -np.sin(TILT)], [0, np.sin(TILT), np.cos(TILT)]])
AFFINE = np.eye(4)
AFFINE[:3, :3] = TILTED @ np.diag([1.2, 1.5, 6.0])
AFFINE[:3, 3] = -30, 12, 5
SWAPPED = AFFINE[:, [1, 0, 2, 3]]
# DICOM's first two axes go the other way.
SERIES_LABELS = LABELS[::-1, ::-1]
INFO = [{"name": "disc", "idx": 1}, {"name": "bar", "idx": 2}]


def packed(array: AnyArray, affine: AnyArray = AFFINE) -> bytes:
    """A .nii.gz file."""
    return gzip.compress(nifti(array, affine), mtime=0)


def nrrd_file(folder: Path, array: AnyArray, affine: AnyArray = AFFINE, **more: Any) -> bytes:
    """An .nrrd file, as Slicer writes it."""
    import nrrd  # type: ignore[import-untyped]

    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    header = {
        "space": "left-posterior-superior",
        "space directions": lps[:3, :3].T,
        "space origin": lps[:3, 3],
        "kinds": ["domain"] * 3,
        **more,
    }
    path = folder / "written.nrrd"
    nrrd.write(str(path), array, header)
    return path.read_bytes()


def studies(folder: Path) -> Path:
    """A scan as one.nii.gz, as two.nrrd with its axes swapped, and its pixels as series/."""
    made = folder / "studies"
    made.mkdir()
    (made / "one.nii.gz").write_bytes(packed(VOXELS))
    (made / "two.nrrd").write_bytes(nrrd_file(folder, VOXELS.transpose(1, 0, 2), SWAPPED))
    planes = np.ascontiguousarray(VOXELS[::-1, ::-1].transpose(2, 1, 0))
    write_series(made / "series", planes.astype(np.uint16))
    return made


@contextmanager
def serving(folder: Path, **settings: Any) -> Iterator[RunningServer]:
    """A server of a tiny model over a folder of scans."""
    scans = settings.pop("studies", None) or studies(folder)
    with running(engine_of(folder), studies=scans, **settings) as started:
        yield started


def ask(server: RunningServer, method: str, path: str, **more: Any) -> httpx.Response:
    """A request to a path below /monai; no redirect is followed, as by `http.client`."""
    return httpx.request(method, f"{server.http}/monai{path}", timeout=60, **more)


def params(**values: Any) -> dict[str, str]:
    """The text field of forms."""
    return {"params": json.dumps(values)}


def put_label(
    server: RunningServer,
    image: str,
    content: bytes,
    name: str = "label.nii.gz",
    tag: str = "final",
    **values: Any,
) -> httpx.Response:
    """What Slicer sends for `Submit Label`."""
    values.setdefault("label_info", INFO)
    return ask(
        server,
        "PUT",
        "/datastore/label",
        params={"image": image, "tag": tag},
        data=params(**values),
        files={"label": (name, content)},
    )


def error_of(answer: httpx.Response) -> str:
    """The line that an error says."""
    assert answer.status_code >= 400, answer.text
    found: str = answer.json()["error"]["message"]
    assert "\n" not in found
    return found
