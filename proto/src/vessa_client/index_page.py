"""``index.html`` of labelled images: the least sure ones first, each with its picture."""

from __future__ import annotations

from html import escape
from urllib.parse import quote

from vessa_client.pictures import hex_colour
from vessa_client.records import Record, Records

# One file that needs nothing else; the pictures are beside it.
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; font: 16px/1.4 system-ui, sans-serif; }}
body {{ margin: 1rem auto; max-width: 80rem; padding: 0 1rem; }}
article {{ border-top: 1px solid #8888; padding: 1rem 0; }}
h2 {{ font-size: 1rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }}
img {{ display: block; max-width: 100%; height: auto; margin-top: .5rem; background: #000; }}
li {{ display: inline-block; margin-right: 1.2rem; }}
ul {{ list-style: none; margin: 0; padding: 0; }}
i {{ display: inline-block; width: .8rem; height: .8rem; margin-right: .35rem; }}
p {{ margin: .2rem 0; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{summary}</p>
{articles}
</body>
</html>
"""


def page(records: Records, title: str) -> str:
    """The whole page; images without a structure come first, then by the least predicted IoU."""
    ordered = sorted(records.entries.items(), key=lambda item: (item[1].confidence, item[0]))
    articles = "\n".join(_article(name, record) for name, record in ordered)
    count = f"{len(ordered)} image{'s' if len(ordered) != 1 else ''}"
    summary = (
        f"{count}, from the least sure to the most. The predicted IoU is VESSA's own estimate of "
        "how well a structure is outlined; look at the first ones, and at those where a structure "
        "is missing. For research; not a medical device."
    )
    return PAGE.format(title=escape(title), summary=escape(summary), articles=articles)


def _article(name: str, record: Record) -> str:
    structures = "".join(
        f'<li><i style="background:{hex_colour(number)}"></i>'
        f"{escape(str(found['class']))} ({found['label']}): "
        + (
            f"{_iou(record, found['predicted_iou'])}, {found['voxels']:,} voxels"
            if found["voxels"]
            else "not found"
        )
        + "</li>"
        for number, found in enumerate(record.structures, start=1)
    )
    templates = ", ".join(f"{escape(t)} ({value:.2f})" for t, value in record.templates)
    slices = f", {record.slices} slices" if record.slices > 1 else ""
    return (
        f"<article><h2>{escape(name)}{slices}</h2><ul>{structures}</ul>"
        f"<p>Templates (similarity): {templates or 'none'}</p>"
        f'<img src="{quote(record.picture)}" alt="Slices of {escape(name)} with pseudo-labels" '
        'loading="lazy"></article>'
    )


def _iou(record: Record, value: float) -> str:
    return "edited" if record.edited else f"predicted IoU {value:.2f}"
