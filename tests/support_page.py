"""The inspection page, opened in a browser before a server, and what people do there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from support import RunningServer, engine_of, picture, running
from support_browser import Browser, Page, browsing
from support_files import nifti
from vessa_client import AnyArray

VOXELS = np.stack([picture(seed)[0] for seed in range(7)], axis=-1)
AFFINE = np.diag([1.2, 1.5, 6.0, 1.0])
VOLUME = nifti(VOXELS, AFFINE)
SIZE = (52 * 1.5, 60 * 1.2)  # mm
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


def seen_at(
    page: Page, size: tuple[float, float], row: float, column: float
) -> tuple[float, float]:
    """Where on the page a place of an image of ``size`` mm is, that is fitted into the canvas."""
    left, top, width, height = page.value("""(() => {
        const canvas = document.querySelector('#canvas');
        canvas.scrollIntoView({block: 'center'});
        const r = canvas.getBoundingClientRect();
        return [r.left, r.top, r.width, r.height];
    })()""")
    scale = min(height / size[0], width / size[1])
    return (
        left + (width - size[1] * scale) / 2 + column * scale,
        top + (height - size[0] * scale) / 2 + row * scale,
    )


def segment(page: Page, files: dict[str, bytes]) -> None:
    page.drop(files)
    page.until(OPENED)
    page.click("#go")
    page.until(ANSWERED)


def choose(page: Page, selector: str, value: object, event: str = "input") -> None:
    page.value(
        f"(() => {{ const e = document.querySelector('{selector}'); e.value = '{value}';"
        f"e.dispatchEvent(new Event('{event}')); }})()"
    )


def opened(page: Page, files: dict[str, bytes]) -> None:
    page.drop(files)
    page.until(OPENED)


def at_voxel(page: Page, x: float, y: float) -> tuple[float, float]:
    """Where the middle of a voxel of the volume, 60 x 52 x 7, is on the page."""
    return seen_at(page, SIZE, (51.5 - y) * 1.5, (59.5 - x) * 1.2)


def labels_of(page: Page, folder: Path, name: str = "scan_labels.nii.gz") -> AnyArray:
    """The labels that the page saves."""
    (folder / name).unlink(missing_ok=True)
    page.downloads_to(folder)
    page.downloaded("#download")
    return np.asarray(nib.load(folder / name).dataobj)
