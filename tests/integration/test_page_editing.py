"""The inspection page's brush: painted, undone, asked again, accepted as template, saved."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from support import CLASSES, RunningServer, engine_of, picture, running, without
from support_browser import CHROMIUM, Browser, Page
from support_files import nifti, png, read_png
from support_page import (
    AFFINE,
    OPENED,
    VOLUME,
    VOXELS,
    at_voxel,
    browser,
    choose,
    labels_of,
    opened,
    page,
    seen_at,
    segment,
    server,
)
from vessa_client import NotFoundError, pictures
from vessa_server.engine import VessaEngine

__all__ = ["browser", "page", "server"]  # fixtures

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")

CTRL, SHIFT = 2, 8


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[tuple[RunningServer, VessaEngine]]:
    """A server whose bank has no template."""
    engine = engine_of(tmp_path / "empty", templates=0)
    with running(engine) as started:
        yield started, engine


@pytest.fixture
def correcting(tmp_path: Path) -> Iterator[RunningServer]:
    """A server that answers otherwise than it is told, however unsure it is."""
    with running(engine_of(tmp_path / "correcting", settings=without("keep_unsure"))) as started:
        yield started


def painted(page: Page, class_name: str, size: int = 6) -> None:
    """Take the brush."""
    choose(page, "#paint-class", class_name, "change")
    choose(page, "#size", size)
    page.click("#tool-brush")


def cells(page: Page, row: int) -> list[str]:
    """What a row of the legend says."""
    return page.text(f"#legend tr:nth-child({row})").split()


def is_on(page: Page, selector: str) -> bool:
    return bool(page.value(f"!document.querySelector('{selector}').disabled"))


# --- Painting


@pytest.mark.parametrize("orientation", ["RAS", "LPI", "SAR"])
def test_strokes_are_saved_where_they_were_painted(
    page: Page, tmp_path: Path, orientation: str
) -> None:
    image = nib.Nifti1Image(VOXELS, AFFINE)
    order = nib.orientations.axcodes2ornt(orientation)
    turned = image.as_reoriented(
        nib.orientations.ornt_transform(nib.orientations.io_orientation(AFFINE), order)
    )
    opened(page, {"scan.nii": bytes(turned.to_bytes())})
    page.value("document.querySelector('#viewer').focus()")
    page.key("End")
    painted(page, "bar", size=1)
    page.drag(at_voxel(page, 10, 20), at_voxel(page, 30, 20))
    painted(page, "disc", size=1)
    page.drag(at_voxel(page, 40, 40), at_voxel(page, 40, 45))
    page.until("document.querySelectorAll('#legend tr').length === 3")
    expected = np.zeros(VOXELS.shape, np.uint8)
    expected[10:31, 20, 6], expected[40, 40:46, 6] = 1, 2
    saved = labels_of(page, tmp_path)
    geometry = nib.load(tmp_path / "scan_labels.nii.gz")
    assert geometry.shape == turned.shape
    assert np.allclose(geometry.affine, turned.affine)
    back = nib.as_closest_canonical(nib.Nifti1Image(saved, geometry.affine))
    assert np.array_equal(back.dataobj, expected)
    assert [cells(page, n)[:2] for n in (2, 3)] == [["1", "bar"], ["2", "disc"]]


def test_a_picture_keeps_colours_and_numbers(page: Page, tmp_path: Path) -> None:
    opened(page, {"slice.png": png(np.full((40, 60), 20, np.uint8))})
    painted(page, "bar", size=9)
    middle = seen_at(page, (40, 60), 20.5, 30.5)
    page.drag(middle)
    choose(page, "#opacity", 1)
    page.downloads_to(tmp_path)
    page.downloaded("#download")
    rows, columns = np.mgrid[0:40, 0:60]
    disc = (rows - 20) ** 2 + (columns - 30) ** 2 <= 4.5**2
    with Image.open(tmp_path / "slice_labels.png") as saved:
        assert np.array_equal(np.asarray(saved), disc)
        colour = np.asarray(saved.convert("RGB"))[20, 30]
    assert np.array_equal(colour, pictures.COLOURS[2])  # of the bank's second class
    shot = tmp_path / "shot.png"
    page.mouse("mouseMoved", 2, 2)
    page.value("new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))")
    page.picture(shot)
    with Image.open(shot) as seen:
        column, row = map(int, middle)
        assert np.array_equal(np.asarray(seen.convert("RGB"))[row, column], colour)


def test_steps_are_undone_and_done_again_slice_by_slice(page: Page, tmp_path: Path) -> None:
    segment(page, {"scan.nii": VOLUME})
    states = [labels_of(page, tmp_path)]
    painted(page, "disc")
    for k in range(21):
        page.drag(at_voxel(page, 5 + 2 * k, 10), at_voxel(page, 5 + 2 * k, 14))
    states.append(labels_of(page, tmp_path))
    page.click("#tool-eraser")
    page.drag(at_voxel(page, 5, 12), at_voxel(page, 45, 12))
    states.append(labels_of(page, tmp_path))
    assert (states[1] != states[0]).any()
    assert (states[1][..., 3] == 1).sum() > (states[2][..., 3] == 1).sum()
    for state in states[1:]:
        assert np.array_equal(state[..., :3], states[0][..., :3])
    choose(page, "#slice", 2)
    page.until("document.querySelector('#slice-text').textContent === 'Slice 3 of 7'")
    assert not is_on(page, "#undo")
    choose(page, "#slice", 3)
    page.until("!document.querySelector('#undo').disabled")
    page.key("z", modifiers=CTRL)
    assert np.array_equal(labels_of(page, tmp_path), states[1])
    for _ in range(21):
        page.click("#undo")
    assert np.array_equal(labels_of(page, tmp_path), states[0])
    assert not is_on(page, "#undo")
    for _ in range(22):
        page.key("Z", modifiers=CTRL | SHIFT)
    assert np.array_equal(labels_of(page, tmp_path), states[2])
    assert not is_on(page, "#redo")


def test_keys_choose_tools_and_size_and_leave_text_alone(page: Page) -> None:
    opened(page, {"scan.nii": VOLUME})
    pressed = "[...document.querySelectorAll('#editing [aria-pressed=true]')].map(b => b.id)"
    page.value("document.querySelector('#viewer').focus()")
    for key, tool in (("b", "brush"), ("e", "eraser"), ("p", "point"), ("x", "box"), ("v", "look")):
        page.key(key)
        assert page.value(pressed) == [f"tool-{tool}"]
    size = "document.querySelector('#size').valueAsNumber"
    opacity = "document.querySelector('#opacity').valueAsNumber"
    before = page.value(size), page.value(opacity)
    page.key("b")
    page.key("]")
    assert page.value(size) > before[0]
    page.key("[")
    page.key("[")
    assert page.value(size) < before[0]
    assert page.value(opacity) == before[1]
    page.value("document.querySelector('#text').parentElement.parentElement.open = true")
    page.value("document.querySelector('#text').focus()")
    page.key("e")
    assert page.value(pressed) == ["tool-brush"]
    choose(page, "#plane", 1, "change")  # through all slices
    page.until(f"{pressed}.join() === 'tool-look'")


def test_a_finger_and_a_pens_eraser_paint_on_a_telephone(page: Page, tmp_path: Path) -> None:
    page.size(390, 844)
    opened(page, {"scan.nii": VOLUME})
    assert page.value("document.documentElement.scrollWidth <= innerWidth")
    painted(page, "disc")
    page.swipe(at_voxel(page, 10, 20), at_voxel(page, 20, 20), at_voxel(page, 30, 20))
    page.until("!document.querySelector('#undo').disabled")
    before = labels_of(page, tmp_path)
    assert (before[10:31, 20, 3] == 1).all()
    choose(page, "#size", 1)
    places = (at_voxel(page, 15, 20), at_voxel(page, 18, 20))
    kinds = {"pointerdown": places[0], "pointermove": places[1], "pointerup": places[1]}
    for kind, (x, y) in kinds.items():
        buttons = 0 if kind == "pointerup" else 32
        page.value(f"""document.querySelector('#canvas').dispatchEvent(new PointerEvent('{kind}', {{
            clientX: {x}, clientY: {y}, buttons: {buttons}, pointerId: 1, isPrimary: true,
            pointerType: 'pen'}}))""")
    erased = np.argwhere(labels_of(page, tmp_path) != before)
    assert erased.tolist() == [[x, 20, 3] for x in range(15, 19)]


# --- Asked again


def test_a_corrected_slice_is_the_prompt_of_the_next_answer(
    browser: Browser, correcting: RunningServer, tmp_path: Path
) -> None:
    server, page = correcting, Page(browser)
    page.go(f"{server.http}/")
    page.until("document.querySelectorAll('#class-boxes input').length > 0")
    segment(page, {"scan.nii": VOLUME})
    first = labels_of(page, tmp_path)
    page.value("document.querySelector('#viewer').focus()")
    page.key("End")
    painted(page, "disc", size=16)
    page.drag(at_voxel(page, 20, 28), at_voxel(page, 20, 32))
    mine = labels_of(page, tmp_path)
    assert cells(page, 2)[2] == "–"  # no IoU of what is painted
    page.click("#again")
    page.until(OPENED)
    again = labels_of(page, tmp_path)
    lines = httpx.post(
        f"{server.http}/pseudolabel/volume",
        files={"image": VOLUME},
        headers={"Accept": "application/x-ndjson"},
    ).text.splitlines()
    seen = next(line for line in map(json.loads, lines) if line["slice_index"] == 6)
    body = {
        "image_ref": seen["image_ref"],
        "region": seen["region"],
        "student_mask": base64.b64encode(png(mine[..., 6])).decode(),
    }
    answer = httpx.post(f"{server.http}/pseudolabel", json=body).raise_for_status().json()
    expected = first.copy()
    expected[..., 6] = read_png(base64.b64decode(answer["labels_png"]))
    assert (expected[mine != first] != mine[mine != first]).any()
    expected[mine != first] = mine[mine != first]  # what was painted stays
    assert (expected != mine).any()
    assert np.array_equal(again, expected)
    assert cells(page, 2)[2] != "–"
    page.key("z", modifiers=CTRL)
    assert np.array_equal(labels_of(page, tmp_path), mine)
    page.key("z", modifiers=CTRL)
    assert np.array_equal(labels_of(page, tmp_path), first)
    page.key("Z", modifiers=CTRL | SHIFT)
    page.key("Z", modifiers=CTRL | SHIFT)
    assert np.array_equal(labels_of(page, tmp_path), again)
    assert page.complaints == []
    page.close()


# --- Templates


def test_the_first_template_of_an_empty_bank_is_painted(
    browser: Browser, empty: tuple[RunningServer, VessaEngine], tmp_path: Path
) -> None:
    server, engine = empty
    page = Page(browser)
    page.go(f"{server.http}/")
    opened(page, {"scan.nii": nifti(VOXELS.astype(np.int16) - 100, AFFINE)})
    assert not is_on(page, "#again")
    assert "accept this one as the first" in page.text("#again-why")
    page.value("document.querySelector('#new-class').value = ' nidus '")
    page.click("#add-class")
    choose(page, "#size", 12)
    page.drag(at_voxel(page, 30, 25), at_voxel(page, 32, 25))
    page.value("document.querySelector('#viewer').focus()")
    page.key("End")
    page.value("document.querySelector('#accept').open = true")
    page.until("!document.querySelector('#accept-slice').hidden")
    page.click("#accept-slice")  # nothing is labelled there
    mine = labels_of(page, tmp_path)
    page.click("#accept-go")
    page.until("document.querySelector('#accept-text').textContent")
    assert page.text("#accept-text") == "1 added, 1 without a label, not added: default bank."
    (info,) = engine.bank.snapshot().templates
    assert (info.name, info.class_names) == ("scan slice 3", ("nidus",))
    template = engine.bank.find(info.template_id)
    assert np.array_equal(template.image, VOXELS[..., 3].astype(float) - 100)
    assert np.array_equal(template.labels, mine[..., 3])
    page.until("!document.querySelector('#again').disabled")
    page.click("#again")
    page.until(OPENED)
    assert page.value("document.querySelectorAll('#errors li').length") == 0
    page.until("document.querySelector('#matched').textContent.includes('nidus')")
    assert page.complaints == []
    page.close()


def test_corrected_labels_of_a_template_replace_it_after_a_question(
    browser: Browser, empty: tuple[RunningServer, VessaEngine]
) -> None:
    server, engine = empty
    image, labels = picture(7)
    engine.add_template(image, labels, CLASSES, name="slice", bank="hearts")
    hearts = engine.banks.get("hearts")
    page = Page(browser)
    page.go(f"{server.http}/")
    page.until("document.querySelectorAll('#bank-asked option').length === 2")
    choose(page, "#bank-asked", "hearts", "change")
    page.until("document.querySelectorAll('#class-boxes input').length === 2")
    segment(page, {"slice.png": png(image)})
    painted(page, "disc")
    page.drag(seen_at(page, (60, 52), 10.5, 10.5))
    before = hearts.snapshot()
    page.value("document.querySelector('#accept').open = true")
    for button, told in (("#no", "1 left as the bank has them"), ("#yes", "1 replaced")):
        page.click("#accept-go")
        page.until("document.querySelector('#question').open")
        assert "bank has 'slice' otherwise (disc by" in page.text("#question-text")
        assert page.text("#yes") == "Replace"
        page.click(button)
        page.until(f"document.querySelector('#accept-text').textContent.startsWith('{told}')")
        page.until(OPENED)
        if button == "#no":
            assert hearts.snapshot() == before
    (info,) = hearts.snapshot().templates
    assert info.template_id != before.templates[0].template_id
    assert hearts.find(info.template_id).mask("disc")[10, 10] == 1
    with pytest.raises(NotFoundError):
        hearts.find(before.templates[0].template_id)
    page.close()


# --- What must not be lost


def test_unsaved_edits_are_asked_for_before_they_go(page: Page, tmp_path: Path) -> None:
    opened(page, {"scan.nii": VOLUME})
    painted(page, "disc")
    page.drag(at_voxel(page, 30, 25))
    page.until("document.querySelector('#edited-text').textContent.includes('slice 4; not in')")
    for ask in (lambda: page.drop({"slice.png": png(picture(1)[0])}), lambda: page.click("#go")):
        ask()
        page.until("document.querySelector('#question').open")
        assert "Slice 4: edited" in page.text("#question-text")
        page.click("#no")
        assert "slice 4; not in" in page.text("#edited-text")
    page.value("void setTimeout(() => location.reload())")
    assert page.dialog(accept=False) == "beforeunload"
    labels_of(page, tmp_path)
    page.until("document.querySelector('#edited-text').textContent.includes('in a file or')")
    opened(page, {"slice.png": png(picture(1)[0])})
    assert page.text("#chosen").startswith("slice.png")


def test_edits_outlive_the_server(browser: Browser, tmp_path: Path) -> None:
    with ExitStack() as until_gone:
        server = until_gone.enter_context(running(engine_of(tmp_path / "gone")))
        page = Page(browser)
        page.go(f"{server.http}/")
        page.until("document.querySelectorAll('#class-boxes input').length > 0")
        segment(page, {"scan.nii": VOLUME})
    page.until("document.querySelector('#server').textContent === 'Server does not answer'")
    painted(page, "disc", size=1)
    page.drag(at_voxel(page, 30, 25))
    page.click("#again")
    page.until("document.querySelector('#errors').textContent.includes('does not answer')")
    page.until("document.querySelector('#progress').hidden")
    assert labels_of(page, tmp_path)[30, 25, 3] == 1
    page.close()


def test_steps_are_bounded_in_memory(page: Page) -> None:
    """Speckles in 4096 slices' worth of steps: the oldest go, the newest stay."""
    found = page.value("""(async () => {
        const folder = document.querySelector('script').src.replace('main.js', '');
        const { LabelEdit, MOST_STEPS } = await import(`${folder}edit.js`);
        const { Scan } = await import(`${folder}scan.js`);
        const scan = new Scan({ values: new Uint8Array(64 * 64), channels: 1, size: [64, 64, 1],
            spacing: [1, 1, 1], axis: 2, stored: null });
        const step = (edit, label, every) => {
            edit.begin(0);
            for (let v = 0; v < 4096; v += every) scan.labels[v] = label;
            edit.end();
        };
        const small = new LabelEdit(scan);
        for (let k = 0; k < 2 * MOST_STEPS; k++) step(small, k % 200 + 1, 1);
        let undone = 0;
        while (small.undo(0)) undone += 1;
        const large = new LabelEdit(scan, 100_000);
        for (let k = 0; k < 50; k++) step(large, k % 200 + 1, 3);
        return [undone, MOST_STEPS, large.bytes, large.canUndo(0), large.edited];
    })()""")
    undone, most, held, can_undo, edited = found
    assert undone == most >= 20
    assert 50_000 < held <= 100_000
    assert can_undo
    assert edited == [0]
