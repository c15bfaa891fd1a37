"""The inspection page in a real browser, before a real server."""

from __future__ import annotations

import base64
import gzip
import io
import signal
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from support import CLASSES, RunningServer, engine_of, picture, running
from support_browser import CHROMIUM, Browser, Page, browsing
from support_dicom import write_series
from support_files import nifti, png
from support_process import server_process
from vessa_client import AnyArray, ClassDefinition, pictures

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")

VOXELS = np.stack([picture(seed)[0] for seed in range(7)], axis=-1)
AFFINE = np.diag([1.2, 1.5, 6.0, 1.0])
VOLUME = nifti(VOXELS, AFFINE)
HOSTILE = "<img src=x onerror=alert(1)>"
ANSWERED = "document.querySelector('#times').textContent.includes('asked')"
OPENED = "!document.querySelector('#go').disabled && document.querySelector('#progress').hidden"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running(engine_of(tmp_path_factory.mktemp("page"))) as started:
        yield started


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as started:
        yield started


@pytest.fixture
def page(browser: Browser, server: RunningServer) -> Iterator[Page]:
    """The page, which asks no other host and breaks no rule of its policy."""
    opened = Page(browser)
    opened.go(f"{server.http}/")
    opened.until("document.querySelectorAll('#class-boxes input').length > 0")
    yield opened
    own = (server.http, f"blob:{server.http}")
    assert [url for url in opened.requests if not url.startswith(own)] == []
    assert [c for c in opened.complaints if "the server responded with a status" not in c] == []
    opened.close()


def segment(page: Page, files: dict[str, bytes]) -> None:
    page.drop(files)
    page.until(OPENED)
    page.click("#go")
    page.until(ANSWERED)


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


def choose(page: Page, selector: str, value: object, event: str = "input") -> None:
    page.value(
        f"(() => {{ const e = document.querySelector('{selector}'); e.value = '{value}';"
        f"e.dispatchEvent(new Event('{event}')); }})()"
    )


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
    expected = httpx.post(
        f"{server.http}/pseudolabel", files={"image": image}, headers={"Accept": "image/png"}
    )
    assert (tmp_path / "slice_labels.png").read_bytes() == expected.content


def test_a_dicom_series_is_dropped_as_its_files(page: Page, tmp_path: Path) -> None:
    files = write_series(tmp_path / "series")
    page.drop({path.name: path.read_bytes() for path in files})
    page.until(OPENED)
    assert "9 × 12 × 5 voxels of 0.75 × 1.5 × 4 mm" in page.text("#chosen")


# --- What goes wrong


def test_errors_are_lines_with_field_and_fix(page: Page) -> None:
    page.drop({"notes.txt": b"no image"})
    page.until("document.querySelectorAll('#errors li').length === 1")
    assert page.text("#errors code") == "image.encoded"
    assert "expected PNG, JPEG, TIFF or NIfTI" in page.text("#errors li")
    broken = VOXELS.astype(np.float32)
    broken[..., 2] = np.nan
    segment(page, {"scan.nii": nifti(broken)})
    assert page.text("#errors code") == "slice 3"
    assert page.value("document.querySelectorAll('#errors li').length") == 1
    page.click("#errors button")
    assert page.value("document.querySelectorAll('#errors li').length") == 0


def test_a_server_that_dies_is_said_at_once(browser: Browser, tmp_path: Path) -> None:
    with server_process(tmp_path, runs="waits") as server:
        page = Page(browser)
        page.go(f"{server.http}/")
        page.until("document.querySelectorAll('#class-boxes input').length > 0")
        page.drop({"scan.nii": VOLUME})
        page.until(OPENED)
        page.click("#go")
        page.until("document.querySelector('#work').textContent === 'Working…'")
        server.signal(signal.SIGKILL)
        page.until("document.querySelector('#errors').textContent.includes('does not answer')")
        assert "`vessa-server serve`" in page.text("#errors")
        page.until("document.querySelector('#progress').hidden")
        assert page.text("#work") == ""
        page.until("document.querySelector('#server').textContent === 'Server does not answer'")
        page.close()


def test_a_token_is_asked_for_and_used(browser: Browser, tmp_path: Path) -> None:
    with running(engine_of(tmp_path), token="secret") as server:
        page = Page(browser)
        page.go(f"{server.http}/")
        page.until("document.querySelector('#errors').textContent.includes('authorization')")
        choose(page, "#token", "secret", "change")
        page.until("document.querySelector('#server').textContent.includes('tiny')")
        assert page.value("document.querySelectorAll('#errors li').length") == 0
        segment(page, {"slice.png": png(picture(0)[0])})
        page.until("document.querySelector('#matched img').src.startsWith('blob:')")
        page.close()


# --- Banks


def fill_add_form(page: Page, folder: Path, name: str, bank: str) -> None:
    image, labels = picture(31)
    for field, pixels in (("image", image), ("labels", labels)):
        (folder / f"{field}.png").write_bytes(png(pixels))
        page.choose(f"#add-form [name={field}]", folder / f"{field}.png")
    page.value(f"""(() => {{ const form = document.querySelector('#add-form');
        form.class_names.value = 'disc, bar'; form.name = ''; form.elements.name.value = {name!r};
        form.bank.value = {bank!r}; form.requestSubmit(); }})()""")


def test_templates_are_added_and_removed_after_a_question(page: Page, tmp_path: Path) -> None:
    page.value("location.hash = '#bank'")
    page.until("document.querySelectorAll('#bank section').length === 2")
    assert "3 templates" in page.text("#bank-text")
    fill_add_form(page, tmp_path, "scan slice 4", "hearts")
    page.until("document.querySelector('#bank-text').textContent.endsWith('added')")
    assert page.value("document.querySelector('#bank-shown').value") == "hearts"
    assert "scan (1)" in page.text("#bank summary")
    page.until("document.querySelector('#bank img').src.startsWith('blob:')")
    for answer in ("#no", "#yes"):
        page.click("#bank figure button")
        assert "scan slice 4 from the hearts bank" in page.text("#question-text")
        assert page.value("document.activeElement.id") == "no"
        page.click(answer)
        if answer == "#no":
            assert page.value("!document.querySelector('#question').open")
            assert page.value("document.querySelectorAll('#bank figure').length") == 2
    page.until("document.querySelectorAll('#bank figure').length === 0")


def test_names_are_text_and_nothing_else(browser: Browser, tmp_path: Path) -> None:
    engine = engine_of(tmp_path, templates=0)
    image, labels = picture(1)
    classes = [ClassDefinition(name=HOSTILE, description=HOSTILE), CLASSES[1]]
    engine.add_template(image, labels, classes, name=HOSTILE, bank="")
    with running(engine) as server:
        page = Page(browser)
        page.go(f"{server.http}/")
        page.until("document.querySelectorAll('#class-boxes input').length > 0")
        segment(page, {f"{HOSTILE}.png": png(image)})
        for place in ("#class-boxes", "#legend", "#matched", "#chosen"):
            assert HOSTILE in page.text(place), place
        page.value("location.hash = '#bank'")
        page.until("document.querySelectorAll('#bank figure').length > 0")
        assert HOSTILE in page.text("#bank")
        page.click("#bank figure button")
        assert HOSTILE in page.text("#question-text")
        assert page.value("document.querySelectorAll('img[onerror]').length") == 0
        assert page.complaints == []
        page.close()


# --- The page as such


def test_pages_fit_a_telephone(page: Page) -> None:
    page.size(390, 844)
    segment(page, {"scan.nii": VOLUME})
    for view in ("#segment", "#bank"):
        page.value(f"location.hash = '{view}'")
        assert page.value("document.documentElement.scrollWidth <= innerWidth")


def test_the_reference_lists_every_call(page: Page, server: RunningServer) -> None:
    page.go(f"{server.http}/docs")
    page.until("document.querySelectorAll('#operations summary').length > 0")
    listed: dict[str, Any] = httpx.get(f"{server.http}/openapi.json").json()["paths"]
    for path, methods in listed.items():
        for method in methods:
            assert f"{method.upper()} {path}" in page.text("#operations")


def test_other_scripts_do_not_run(page: Page) -> None:
    """The policy that the other tests rely on holds in the browser."""
    refused = page.value("""(() => {
        try { document.body.innerHTML = '<b>x</b>'; return false; } catch { return true; }
    })()""")
    assert refused
    ran = page.value("""new Promise(resolve => {
        const script = document.createElement('script');
        document.addEventListener('securitypolicyviolation', () => resolve(false));
        window.ran = () => resolve(true);
        try { script.textContent = 'ran()'; } catch { resolve(false); }
        document.head.append(script);
    })""")
    assert not ran
    page.complaints.clear()
