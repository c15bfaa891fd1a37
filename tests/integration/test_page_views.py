"""The inspection page: errors, banks, hostile names, small screens, its policy."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from support import CLASSES, RunningServer, engine_of, picture, running
from support_browser import CHROMIUM, Browser, Page
from support_files import nifti, png
from support_page import (
    OPENED,
    VOLUME,
    VOXELS,
    browser,
    choose,
    page,
    segment,
    server,
)
from support_process import server_process
from vessa_client import ClassDefinition

__all__ = ["browser", "page", "server"]  # fixtures

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")

HOSTILE = "<img src=x onerror=alert(1)>"


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


def test_a_file_that_cannot_be_read_is_no_dead_server(page: Page, tmp_path: Path) -> None:
    (tmp_path / "scan.nii").write_bytes(VOLUME)
    page.choose("#mask", tmp_path / "scan.nii")
    (tmp_path / "scan.nii").unlink()
    page.value("""(() => { const data = new DataTransfer();
        data.items.add(document.querySelector('#mask').files[0]);
        document.dispatchEvent(new DragEvent('drop', {dataTransfer: data, cancelable: true}));
    })()""")
    page.until("document.querySelector('#errors').textContent.includes('cannot be read')")
    assert "does not answer" not in page.text("#errors")
    page.complaints.clear()


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
