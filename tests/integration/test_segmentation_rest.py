"""Labels of a DICOM series go out as a DICOM segmentation, over REST and from the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pydicom
import pytest
from highdicom.seg import segread

from support import CLASSES, RunningServer
from support_browser import CHROMIUM, Page
from support_dicom import SHIPPED, write_series, zip_of
from support_files import nifti, png
from support_page import OPENED, browser, choose, page, seen_at, segment, server
from vessa_client import AnyArray, files

__all__ = ["browser", "page", "server"]  # fixtures

NAMES = [definition.name for definition in CLASSES]
VOXELS = np.random.default_rng(2).integers(0, 4000, (4, 60, 52)).astype(np.uint16)


@pytest.fixture
def series(tmp_path: Path) -> list[Path]:
    return write_series(tmp_path / "series", VOXELS, along=((0, 1, 0), (0, 0, -1)))


def numbers(array: AnyArray) -> np.ndarray[Any, np.dtype[np.int64]]:
    return array.astype(np.int64)


def planes_of(series: list[Path], segmentation: Path) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Labels of a segmentation in the order of its sources, by an independent reader."""
    uids = [str(pydicom.dcmread(path).SOPInstanceUID) for path in series]
    masks = segread(segmentation).get_pixels_by_source_instance(
        uids, combine_segments=True, ignore_spatial_locations=True
    )
    return numbers(masks)


def asked(server: RunningServer, scan: bytes, labels: bytes, **texts: str) -> httpx.Response:
    texts = {"class_names": ",".join(NAMES)} | texts
    sent = {"image": scan, "labels": labels}
    return httpx.post(f"{server.http}/segmentation", files=sent, data=texts)


@pytest.mark.parametrize(("corrected", "kind"), [("", "AUTOMATIC"), ("true", "SEMIAUTOMATIC")])
def test_each_voxel_is_labelled_where_it_lies(
    server: RunningServer, series: list[Path], tmp_path: Path, corrected: str, kind: str
) -> None:
    image = files.read(tmp_path / "series")
    labels = [
        (plane > 3000).astype(np.uint8) + (plane > 3500) for plane in map(numbers, image.slices())
    ]
    files.write_labels(tmp_path / "l.nii.gz", labels, image)
    answer = asked(
        server, zip_of(series), (tmp_path / "l.nii.gz").read_bytes(), corrected=corrected
    )
    assert answer.raise_for_status().headers["content-type"] == "application/dicom"
    (tmp_path / "s.dcm").write_bytes(answer.content)
    found = segread(tmp_path / "s.dcm")
    assert [s.SegmentLabel for s in found.SegmentSequence] == NAMES
    assert {s.SegmentAlgorithmType for s in found.SegmentSequence} == {kind}
    for path, mask in zip(series, planes_of(series, tmp_path / "s.dcm"), strict=True):
        plane = pydicom.dcmread(path).pixel_array
        assert np.array_equal(mask, (plane > 3000).astype(int) + (plane > 3500))


def test_what_does_not_fit_is_refused_in_words(
    server: RunningServer, series: list[Path], tmp_path: Path
) -> None:
    image = files.read(tmp_path / "series")
    most = [np.full(image.slice(0).shape, 3, np.uint8)] * image.depth
    files.write_labels(tmp_path / "l.nii.gz", most, image)
    scan, labels = zip_of(series), (tmp_path / "l.nii.gz").read_bytes()
    elsewhere = nifti(np.zeros((3, 4, 5), np.uint8))
    film = (SHIPPED / "examples_ybr_color.dcm").read_bytes()
    of_film = nifti(np.zeros((320, 240, 30), np.uint8), np.diag([-1.0, -1.0, 1.0, 1.0]))
    for sent, said in (
        ((scan, labels), "class_names: 2, expected one for each label up to 3"),
        ((scan, elsewhere), "labels: "),
        ((scan, b"x" * 400), "labels: "),
        ((scan, nifti(np.full((3, 4, 5), 0.5, np.float32))), "labels: "),
        ((labels, labels), "image: no DICOM, expected a DICOM file, or a zip of a series"),
        ((png(np.zeros((4, 4), np.uint8)), labels), "image: no DICOM"),
        ((scan[:-40], labels), "image: "),
        ((film, of_film), "image"),
    ):
        answer = asked(server, *sent)
        assert answer.status_code == 422, said
        assert said in answer.json()["error"]["message"]
        assert "/tmp" not in answer.json()["error"]["message"]
    many = asked(server, scan, labels, class_names=",".join(map(str, range(33))))
    assert "class_names: 33, expected 32 at most" in many.json()["error"]["message"]
    missing = httpx.post(f"{server.http}/segmentation", files={"image": scan})
    assert "labels: missing, expected a NIfTI file" in missing.json()["error"]["message"]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
def test_the_page_saves_what_was_painted_as_a_segmentation(
    page: Page, series: list[Path], tmp_path: Path
) -> None:
    segment(page, {"series.zip": zip_of(series)})
    choose(page, "#paint-class", "bar", "change")
    choose(page, "#size", 1)
    page.click("#tool-brush")
    page.drag(seen_at(page, (1, 1), 0.5, 0.5))  # the middle
    page.downloads_to(tmp_path)
    page.downloaded("#download")
    page.downloaded("#download-dicom")
    page.until(OPENED)
    labels = files.read(tmp_path / "series_labels.nii.gz", labels=True)
    files.read(tmp_path / "series").check_same_space(labels)
    segmentation = segread(tmp_path / "series_labels.dcm")
    assert {s.SegmentAlgorithmType for s in segmentation.SegmentSequence} == {"SEMIAUTOMATIC"}
    masks = planes_of(series, tmp_path / "series_labels.dcm")
    assert (masks == 1 + NAMES.index("bar")).sum() == np.sum(labels.pixels == 2) > 0
    assert (masks > 0).sum() == np.count_nonzero(labels.pixels)
    page.drop({"scan.png": png(np.zeros((40, 60), np.uint8))})
    page.until("document.querySelector('#download-dicom').hidden")
