"""``vessa check``: what to expect of a bank, before hundreds of scans are labelled."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from vessa_client._options import DEFAULT_TARGET
from vessa_client.cli_options import AsJson, Bank, Server, Token, connect, named, reported
from vessa_client.console import console, print_line, progress_bar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vessa_client.checking import ScanCheck


@reported
def check(
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for index.html, with pictures, and check.json."),
    ] = None,
    patient: Annotated[
        str | None,
        typer.Option(
            help="What names of scans of one patient share, as a regular expression, such as "
            "'patient[0-9]+'; they are held out together. Default: each scan is a patient."
        ),
    ] = None,
    as_json: AsJson = False,
    bank: Bank = "",
    server: Server = DEFAULT_TARGET,
    token: Token = None,
) -> None:
    """Hold each annotated scan of the bank out, and segment it with the others.

    Shows Dice of each class and scan, the worst ones first, and whether more annotated scans
    would help. Weights that were adapted to the bank have seen all of them: check them on others.
    """
    from vessa_client import check_page, checking, files

    try:
        shared = re.compile(patient) if patient else None
    except re.error as error:
        raise files.FileError(
            f"--patient: {patient!r} is no regular expression ({error})"
        ) from error
    with connect(server, token, bank) as client, progress_bar() as progress:
        total = len(checking.scans(client.list_templates().templates, shared))
        task = progress.add_task("Checking", total=total, note="")
        found = []
        for one in checking.check(client, shared):
            found.append(one)
            progress.update(task, advance=1, note=f"{one.scan}: Dice {one.mean:.2f}")
    found.sort(key=lambda one: one.mean)
    summary, verdict = checking.summary(found), checking.verdict(found)
    if out is not None:
        check_page.write(out, found, f"Check of {named(bank)}", verdict)
        files.write_text(out / "check.json", json.dumps(summary, indent=1) + "\n")
    if as_json:
        typer.echo(json.dumps(summary))
        return
    console.print(_table(found))
    print_line(verdict)
    if out is not None:
        print_line(f"Look: {out / 'index.html'}")


def _table(found: Sequence[ScanCheck]) -> Table:
    """A line for each scan, the worst first, and their mean."""
    from vessa_client.checking import by_class

    means = by_class(found)
    table = Table("Scan held out", *map(escape, means), "Mean", title="Dice with the others")
    for one in found:
        cells = [_figure(one.dice[name]) if name in one.dice else "" for name in means]
        table.add_row(escape(one.scan), *cells, f"{one.mean:.2f}")
    mean = sum(one.mean for one in found) / len(found)
    table.add_section()
    table.add_row("Mean", *map(_figure, means.values()), f"{mean:.2f}", style="bold")
    return table


def _figure(value: float | None) -> str:
    return "no other" if value is None else f"{value:.2f}"
