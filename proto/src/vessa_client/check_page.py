"""``index.html`` of a check: of each scan the worst slices, as annotated and as segmented."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from vessa_client import files, index_page, pictures
from vessa_client._types import UInt8Array
from vessa_client.checking import ScanCheck, Slice

# Of each scan, the worst ones.
SLICES_SHOWN = 4


def write(out: Path, found: Sequence[ScanCheck], title: str, verdict: str) -> None:
    """Write the page and its pictures.

    Args:
        out: folder.
        found: the worst scans first.
        title: of the page.
        verdict: its first paragraph.

    Raises:
        FileError: a file cannot be written.
    """
    articles = []
    for number, one in enumerate(found, start=1):
        path = Path("pictures") / f"{number}.png"
        files.write_picture(out / path, picture(one))
        articles.append(_article(one, path.as_posix()))
    page = index_page.PAGE.format(
        title=escape(title), summary=escape(verdict), articles="\n".join(articles)
    )
    files.write_text(out / "index.html", page)


def picture(one: ScanCheck) -> UInt8Array:
    """(H, W, 3): the worst slices; below each other as they are, as annotated, by the others."""
    shown = one.slices[:SLICES_SHOWN]
    rows = [
        pictures.panels([(_title(item, one.scan), pictures.grey(item.image)) for item in shown]),
        pictures.panels([("annotated", _overlay(item, item.truth_HW)) for item in shown]),
        pictures.panels([("by the others", _overlay(item, item.labels_HW)) for item in shown]),
    ]
    return pictures.rows([pictures.legend(one.class_names), *rows])


def _title(item: Slice, scan: str) -> str:
    own = item.name.removeprefix(scan).strip()
    return f"{own} Dice {item.dice:.2f}".strip()


def _overlay(item: Slice, labels_HW: UInt8Array) -> UInt8Array:
    return pictures.overlay(item.image, labels_HW)


def _article(one: ScanCheck, path: str) -> str:
    values = "".join(
        f"<li>{escape(name)}: {'no other scan shows it' if dice is None else f'{dice:.2f}'}</li>"
        for name, dice in one.dice.items()
    )
    return (
        f"<article><h2>{escape(one.scan)}: Dice {one.mean:.2f}</h2><ul>{values}</ul>"
        f'<img src="{quote(path)}" alt="Slices of {escape(one.scan)}: image, annotation, and '
        'what the other scans make of it" loading="lazy"></article>'
    )
