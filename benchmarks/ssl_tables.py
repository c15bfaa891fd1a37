"""The tables of the README and of ``docs/results.md``, from the results files of ``ssl_runs.py``.

    python benchmarks/ssl_tables.py

A table stands between ``<!-- table NAME -->`` and ``<!-- end of table -->``. Scores are of volumes in
3D, of the last student, in the views of ``ssl_scores.py``; mean ± standard deviation over seeds,
whose number is in brackets. What was not run is "–".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache, partial

import numpy as np

import ssl_results
import ssl_statistics
from acdc import ROOT
from ssl_results import MAIN, by_patient, means, select
from ssl_scores import PLAIN, TURNED, VIEWS
from ssl_statistics import Gain, Scores, Values
from ssl_tasks import METHODS, Facts, Task
from vessa_client import files
from vessa_client.console import console

DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "results.md")
# Rivals of which the better one counts: turned by quarters or not, whichever suits a data set.
RIVALS = ("unimatch", "unimatch-quarters")
ALONE = tuple(name for name, method in METHODS.items() if not method.server)
NOTHING = "–"
ANNOTATED = ("1", "3", "7")

Row = list[str]
Budget = tuple[str, int]


def main() -> None:
    """Write the tables into the documents."""
    for document in DOCUMENTS:
        files.write_text(document, filled(document.read_text()))
        console.print(f"{document}", highlight=False)


def filled(text: str) -> str:
    """The document with each of its tables as the results files have it."""
    return re.sub(
        r"(?<=<!-- table )([\w ]+)( -->\n).*?(?=<!-- end of table -->)",
        lambda found: f"{found[1]}{found[2]}{markdown(TABLES[found[1]]())}\n",
        text,
        flags=re.DOTALL,
    )


def markdown(rows: Sequence[Row]) -> str:
    """A table whose first row is its head."""
    head, *others = rows
    lines = [head, ["---"] * len(head), *others]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
