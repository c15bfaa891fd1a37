"""The inspection page's points and boxes, which the answer follows."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import httpx
import numpy as np
import pytest

from support import RunningServer
from support_browser import CHROMIUM, Page
from support_files import read_png
from support_page import (
    OPENED,
    VOLUME,
    at_voxel,
    browser,
    choose,
    labels_of,
    opened,
    page,
    segment,
    server,
)
from vessa_client import AnyArray

__all__ = ["browser", "page", "server"]  # fixtures

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")

CTRL, SHIFT = 2, 8
LAST = 6


def answered(server: RunningServer, **known: object) -> AnyArray:
    """What the server makes of the last slice."""
    lines = httpx.post(
        f"{server.http}/pseudolabel/volume",
        files={"image": VOLUME},
        headers={"Accept": "application/x-ndjson"},
    ).text.splitlines()
    seen = next(line for line in map(json.loads, lines) if line["slice_index"] == LAST)
    body = {"image_ref": seen["image_ref"], "region": seen["region"], **known}
    answer = httpx.post(f"{server.http}/pseudolabel", json=body).raise_for_status().json()
    return read_png(base64.b64decode(answer["labels_png"]))


def told(page: Page, tool: str, *places: tuple[float, float], name: str = "disc") -> None:
    """Take a tool, use it in the last slice, and wait for the answer."""
    choose(page, "#paint-class", name, "change")
    page.value("document.querySelector('#viewer').focus()")
    page.key("End")
    page.click(f"#tool-{tool}")
    page.drag(*places)
    page.until(OPENED)


def test_the_answer_follows_points_and_they_are_undone(
    page: Page, server: RunningServer, tmp_path: Path
) -> None:
    segment(page, {"scan.nii": VOLUME})
    first = labels_of(page, tmp_path)
    told(page, "point", at_voxel(page, 41, 12))
    one = labels_of(page, tmp_path)
    told(page, "background", at_voxel(page, 30, 25))
    two = labels_of(page, tmp_path)
    points = [
        {"row": 41, "column": 12, "class_name": "disc"},
        {"row": 30, "column": 25, "class_name": ""},
    ]
    assert np.array_equal(one[..., LAST], answered(server, points=points[:1]))
    assert np.array_equal(two[..., LAST], answered(server, points=points))
    assert one[41, 12, LAST] == two[41, 12, LAST] == 1
    assert two[30, 25, LAST] == 0
    assert np.array_equal(two[..., :LAST], first[..., :LAST])
    for expected in (one, first):
        page.key("z", modifiers=CTRL)
        assert np.array_equal(labels_of(page, tmp_path), expected)
    page.key("Z", modifiers=CTRL | SHIFT)
    told(page, "background", at_voxel(page, 30, 25))  # beside the one that is done again
    assert np.array_equal(labels_of(page, tmp_path), two)


def test_a_class_stays_within_its_box(page: Page, server: RunningServer, tmp_path: Path) -> None:
    segment(page, {"scan.nii": VOLUME})
    told(page, "box", at_voxel(page, 40, 14), at_voxel(page, 30, 20), at_voxel(page, 20, 30))
    found = labels_of(page, tmp_path)[..., LAST]
    box = {"top": 20, "left": 14, "height": 21, "width": 17, "class_name": "disc"}
    assert np.array_equal(found, answered(server, boxes=[box]))
    found[20:41, 14:31] = 0
    assert not (found == 1).any()
    assert page.value("document.querySelector('#box-frame').hidden")
    # Beyond the image it ends at its border, and takes the place of the one before.
    told(page, "box", at_voxel(page, 40, 14), at_voxel(page, -3, 20))
    box = {"top": 0, "left": 14, "height": 41, "width": 7, "class_name": "disc"}
    assert np.array_equal(labels_of(page, tmp_path)[..., LAST], answered(server, boxes=[box]))


def test_points_are_drawn_where_they_are(page: Page, tmp_path: Path) -> None:
    segment(page, {"scan.nii": VOLUME})
    place = at_voxel(page, 41, 12)
    told(page, "background", place)
    page.mouse("mouseMoved", 2, 2)
    page.value("new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))")
    page.picture(tmp_path / "shot.png")
    column, row = map(int, place)
    shot = read_png((tmp_path / "shot.png").read_bytes())
    assert shot[row, column, :3].tolist() == [0, 0, 0]
    around = shot[row - 7 : row + 8, column - 7 : column + 8, :3].reshape(-1, 3)
    assert (around == 255).all(axis=1).any()


def test_what_points_cannot_say_is_told_in_words(page: Page) -> None:
    opened(page, {"scan.nii": VOLUME})
    told(page, "background", at_voxel(page, 30, 25))
    assert "labels: none yet, expected some to correct" in page.text("#errors")
    page.value("document.querySelector('#new-class').value = 'nidus'")
    page.click("#add-class")
    told(page, "point", at_voxel(page, 30, 25), name="nidus")
    assert "'nidus' is not in the bank" in page.text("#errors")
