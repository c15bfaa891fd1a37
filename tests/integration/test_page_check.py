"""The bank view checks the bank: a table, a verdict, pictures, and a button to stop."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from support import CLASSES, RunningServer, engine_of, gate_of, picture, running
from support_browser import CHROMIUM, Browser, Page
from support_page import browser, choose, page

__all__ = ["browser", "page"]  # fixtures

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
DONE = "document.querySelector('#check-text').textContent.startsWith('Mean Dice')"
IDLE = "document.querySelector('#check-stop').hidden"
TABLE = (
    "[...document.querySelectorAll('#check-table tr')].map(r => [...r.cells].map(c => c.innerText))"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One patient of its bank has two scans."""
    engine = engine_of(tmp_path_factory.mktemp("check"))
    engine.add_template(*picture(103), CLASSES, name="picture 2 again")
    with running(engine) as started:
        yield started


def open_bank(page: Page) -> None:
    page.value("location.hash = '#bank'")
    page.until("document.querySelectorAll('#bank section').length === 2")


@pytest.mark.parametrize("width", [1280, 390])
def test_the_bank_is_checked_by_one_button(page: Page, server: RunningServer, width: int) -> None:
    page.size(width, 844)
    open_bank(page)
    page.click("#check-go")
    page.until(DONE)
    answer = httpx.post(f"{server.http}/check", timeout=60)
    last = httpx.Response(200, text=answer.text.splitlines()[-1]).json()
    assert page.text("#check-text") == last["verdict"]
    found = [*last["summary"]["scans"], {"scan": "Mean", "dice": last["summary"]["classes"]}]
    found[-1]["mean"] = last["summary"]["mean"]
    expected = [
        [one["scan"], *(f"{v:.2f}" for v in (one["dice"]["disc"], one["dice"]["bar"], one["mean"]))]
        for one in found
    ]
    assert page.value(TABLE) == [["Scan held out", "disc", "bar", "Mean"], *expected]
    page.until("document.querySelector('#check-pictures img').naturalHeight > 3 * 224")
    assert page.value("document.querySelectorAll('#check-pictures img').length") == 4
    assert page.value("document.documentElement.scrollWidth <= innerWidth")
    assert page.value(IDLE)
    choose(page, "#check-patient", " 2")  # two of the four, side by side
    page.click("#check-go")
    page.until("document.querySelectorAll('#check-pictures img').length === 3")
    page.until("document.querySelector('#check-pictures img[alt*=\"of picture:\"]').width > 390")
    assert page.value("document.documentElement.scrollWidth <= innerWidth")
    page.until(DONE)
    choose(page, "#check-patient", " ")
    page.click("#check-go")
    page.until("document.querySelectorAll('#errors li').length > 0")
    assert "1 annotated scans, expected two or more" in page.text("#errors li")
    assert page.value(f"{IDLE} && !document.querySelector('#check-table').rows.length")


def test_a_check_is_stopped_by_a_button_or_a_change_of_the_bank(
    browser: Browser, tmp_path: Path
) -> None:
    gate = gate_of(tmp_path)
    with running(gate) as server:
        page = Page(browser)
        page.go(f"{server.http}/")
        open_bank(page)
        for end in ("#check-stop", "#bank figure button"):
            page.click("#check-go")
            page.until("document.querySelector('#check-text').textContent.startsWith('0 of 3')")
            assert not page.value(IDLE)
            page.click(end)
            if end != "#check-stop":
                page.click("#yes")
            page.until(IDLE)
            while "vessa_queue_depth 0.0" not in httpx.get(f"{server.http}/metrics").text:
                pass
            assert page.text("#check-text") == ""
        gate.opened.set()
        page.click("#check-go")
        page.until(DONE)
        assert page.complaints == []
        page.close()
