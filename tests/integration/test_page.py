"""The inspection page in a real browser, before a real server."""

from __future__ import annotations

import base64
import gzip
import io
from itertools import pairwise
from pathlib import Path

import httpx
import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from support import CLASSES, RunningServer, picture
from support_browser import CHROMIUM, Page
from support_dicom import write_series
from support_files import png
from support_page import (
    AFFINE,
    ANSWERED,
    OPENED,
    VOLUME,
    browser,
    choose,
    page,
    segment,
    server,
)
from vessa_client import AnyArray, pictures

__all__ = ["browser", "page", "server"]  # fixtures

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")


def drawn(page: Page) -> AnyArray:
    """(H, W, 3), what the canvas shows."""
    frames = "new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))"
    url = page.value(f"{frames}.then(() => document.querySelector('#canvas').toDataURL())")
    data = base64.b64decode(url.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def at(shown: AnyArray, size: tuple[float, float], row: float, column: float) -> AnyArray:
    """The colour at a place of an image of ``size`` mm that is fitted into the canvas."""
    scale = min(shown.shape[0] / size[0], shown.shape[1] / size[1])
    top, left = ((shown.shape[k] - size[k] * scale) / 2 for k in range(2))
    colour: AnyArray = shown[int(top + row * scale), int(left + column * scale)].astype(int)
    return colour


def labelled(server: RunningServer) -> tuple[int, AnyArray]:
    """The slice of the volume with most labels, and the labels of all."""
    answer = httpx.post(f"{server.http}/pseudolabel/volume", files={"image": VOLUME}, timeout=60)
    labels = np.asarray(nib.Nifti1Image.from_bytes(answer.raise_for_status().content).dataobj)
    index = int(np.argmax((labels > 0).sum(axis=(0, 1))))
    assert (labels[..., index] > 0).any()
    return index, labels


# --- Images


def test_a_picture_is_shown_as_it_lies_and_answered(page: Page) -> None:
    image = np.full((40, 60), 20, np.uint8)
    image[:10, :10], image[30:, 50:] = 240, 120
    segment(page, {"slice.png": png(image)})
    page.key("o", ["keyDown"])
    shown = drawn(page)
    page.key("o", ["keyUp"])
    corners = [at(shown, (40, 60), *place)[0] for place in ((5, 5), (35, 55), (5, 55), (35, 5))]
    assert corners[0] > corners[1] > corners[2]
    assert corners[2] == corners[3]
    assert page.value("document.querySelectorAll('#legend tr').length") == 1 + len(CLASSES)
    assert "picture 0" in page.text("#matched")
    assert "match" in page.text("#times")
    assert page.text("#chosen") == "slice.png: 60 × 40 pixels"


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "SAR"])
def test_right_is_on_the_left_and_front_is_up(page: Page, orientation: str) -> None:
    voxels = np.full((30, 20, 6), 10, np.int16)
    voxels[20:, 14:] = 900  # to the right and to the front in RAS
    voxels[:10, :7] = 400
    image = nib.Nifti1Image(voxels, AFFINE)
    order = nib.orientations.axcodes2ornt(orientation)
    turned = image.as_reoriented(
        nib.orientations.ornt_transform(nib.orientations.io_orientation(AFFINE), order)
    )
    page.drop({"scan.nii.gz": gzip.compress(bytes(turned.to_bytes()))})
    page.until(OPENED)
    choose(page, "#plane", 2, "change")
    shown, size = drawn(page), (20 * 1.5, 30 * 1.2)
    assert at(shown, size, 3, 3)[0] > 200
    assert 60 < at(shown, size, 27, 33)[0] < 160
    assert at(shown, size, 3, 33)[0] < 20
    assert at(shown, size, 27, 3)[0] < 20


def test_slices_go_by_wheel_keys_and_slider(page: Page) -> None:
    page.drop({"scan.nii": VOLUME})
    page.until(OPENED)
    page.until("document.querySelector('#slice-text').textContent === 'Slice 4 of 7'")
    before = drawn(page)
    page.mouse("mouseWheel", 300, 300, deltaX=0, deltaY=80)
    page.until("document.querySelector('#slice-text').textContent === 'Slice 6 of 7'")
    assert (drawn(page) != before).any()
    page.value("document.querySelector('#viewer').focus()")
    for key, slice_ in (
        ("ArrowDown", 5),
        ("ArrowUp", 6),
        ("Home", 1),
        ("ArrowLeft", 1),
        ("End", 7),
    ):
        page.key(key)
        page.until(f"document.querySelector('#slice').value === '{slice_ - 1}'")
    choose(page, "#slice", 3)
    page.until("document.querySelector('#slice-text').textContent === 'Slice 4 of 7'")
    assert np.array_equal(drawn(page), before)


def test_window_zoom_and_pan_change_what_is_seen(page: Page) -> None:
    page.drop({"scan.nii": VOLUME})
    page.until(OPENED)
    seen = [drawn(page)]
    choose(page, "#preset", "40 400", "change")
    seen.append(drawn(page))
    assert page.text("#level-text") == "Level 40"
    assert page.text("#width-text") == "Width 400"
    for kind, x, y in (
        ("mousePressed", 300, 300),
        ("mouseMoved", 300, 240),
        ("mouseReleased", 300, 240),
    ):
        page.mouse(kind, x, y, button="right", buttons=2, clickCount=1)
    seen.append(drawn(page))
    assert seen[2].mean() < seen[1].mean()  # a higher level is darker
    page.click("#zoom-in")
    seen.append(drawn(page))
    for kind, x, y in (
        ("mousePressed", 300, 300),
        ("mouseMoved", 340, 300),
        ("mouseReleased", 340, 300),
    ):
        page.mouse(kind, x, y, button="left", buttons=1, clickCount=1)
    seen.append(drawn(page))
    for one, other in pairwise(seen):
        assert (one != other).any()
    page.click("#zoom-fit")
    assert np.array_equal(drawn(page), seen[2])


# --- Answers


def test_labels_lie_on_their_voxels_in_the_colours_of_all_pictures(
    page: Page, server: RunningServer
) -> None:
    index, labels = labelled(server)
    segment(page, {"scan.nii": VOLUME})
    choose(page, "#slice", index)
    choose(page, "#opacity", 1)
    shown, size = drawn(page), (52 * 1.5, 60 * 1.2)
    hits = [
        np.abs(
            at(shown, size, (51.5 - y) * 1.5, (59.5 - x) * 1.2)
            - pictures.COLOURS[labels[x, y, index]]
        ).max()
        < 3
        for x, y in np.argwhere(labels[..., index])
    ]
    assert np.mean(hits) > 0.99
    for number, definition in enumerate(CLASSES, start=1):
        counted = page.text(f"#legend tr:nth-child({number + 1}) td:last-child")
        assert int(counted) == int((labels[..., index] == number).sum()), definition.name


def test_a_class_is_switched_off_and_the_original_is_one_key_away(
    page: Page, server: RunningServer
) -> None:
    index, labels = labelled(server)
    page.drop({"scan.nii": VOLUME})
    page.until(OPENED)
    choose(page, "#slice", index)
    bare = drawn(page)
    page.click("#go")
    page.until(ANSWERED)
    whole = drawn(page)
    assert (whole != bare).any()
    present = [int(n) for n in np.unique(labels[..., index]) if n]
    for number in present:
        page.click(f"#class-{number - 1}")
    assert np.array_equal(drawn(page), bare)
    for number in present:
        page.click(f"#class-{number - 1}")
    assert np.array_equal(drawn(page), whole)
    page.key("o", ["keyDown"])
    assert np.array_equal(drawn(page), bare)
    page.key("o", ["keyUp"])
    assert np.array_equal(drawn(page), whole)
    views = [whole]
    for layer in ("contours", "confidence"):
        choose(page, "#layer", layer, "change")
        views.append(drawn(page))
        assert (views[-1] != views[-2]).any()
    assert page.value("!document.querySelector('#scale').hidden")


def test_labels_are_saved_in_the_place_of_the_image(
    page: Page, server: RunningServer, tmp_path: Path
) -> None:
    _, labels = labelled(server)
    page.downloads_to(tmp_path)
    segment(page, {"scan.nii": VOLUME, ".hidden": b"x"})
    page.downloaded("#download")
    saved = nib.load(tmp_path / "scan_labels.nii.gz")
    assert np.array_equal(saved.dataobj, labels)
    assert np.allclose(saved.affine, AFFINE)
    image = png(picture(5)[0])
    segment(page, {"slice.png": image})
    page.downloaded("#download")
    answer = httpx.post(
        f"{server.http}/pseudolabel", files={"image": image}, headers={"Accept": "image/png"}
    )
    expected = Image.open(io.BytesIO(answer.raise_for_status().content))
    with Image.open(tmp_path / "slice_labels.png") as picked:
        assert np.array_equal(np.asarray(picked), np.asarray(expected))
        colours = [np.asarray(p.convert("RGB")) for p in (picked, expected)]
        assert np.array_equal(colours[0], colours[1])


def test_a_dicom_series_is_dropped_as_its_files(page: Page, tmp_path: Path) -> None:
    files = write_series(tmp_path / "series")
    page.drop({path.name: path.read_bytes() for path in files})
    page.until(OPENED)
    assert "9 × 12 × 5 voxels of 0.75 × 1.5 × 4 mm" in page.text("#chosen")
