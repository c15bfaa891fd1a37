"""``vessa bank``: banks by name, one for each project."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from vessa_client._errors import InvalidRequestError, NotFoundError, VessaError
from vessa_client._options import DEFAULT_TARGET
from vessa_client.cli_options import Bank, Server, Token, WindowText, connect, named, reported
from vessa_client.console import console, print_error, print_line, progress_bar

bank = typer.Typer(help="Banks by name, one for each project.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Of the bank: a-z, 0-9, '.', '_' and '-'.")]


@bank.command("list")
@reported
def bank_list(server: Server = DEFAULT_TARGET, token: Token = None) -> None:
    """Show the server's banks, their templates and classes."""
    from vessa_client.checking import scans

    table = Table("Bank", "Scans", "Templates", "Classes")
    with connect(server, token) as client:
        for name in ("", *client.info().banks):
            listing = client.list_templates(bank=name)
            classes = ", ".join(c.name for c in listing.classes) or "none yet"
            sizes = (str(len(scans(listing.templates))), str(len(listing.templates)))
            table.add_row(escape(name) or "(default)", *sizes, escape(classes))
    console.print(table)


@bank.command("use")
@reported
def bank_use(
    name: Name,
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", "-c", help="Class of the project, as in templates add; repeat."),
    ] = None,
    create: Annotated[
        bool, typer.Option("--create", help="A new bank; the first template makes it.")
    ] = False,
    window: WindowText = "auto",
    server: Server = DEFAULT_TARGET,
    token: Token = None,
) -> None:
    """Write vessa.toml: the commands take this bank here and in the folders below.

    Example: vessa bank use liver --create -c liver -c "tumour: dark lesion in the liver"
    """
    from vessa_client import annotated, files, project, windows

    if classes:
        annotated.parse(classes)
    windows.parse(window)
    files.check_writable(Path())
    with connect(server, token) as client:
        known = client.info().banks
    if create and name in known:
        raise InvalidRequestError(f"bank: {name!r} is there already; without --create it is used")
    if not create and name not in known:
        raise NotFoundError(
            f"bank: no bank {name!r}, expected one of {', '.join(known) or 'none yet'}; "
            "--create makes it"
        )
    file = Path(project.FILE)
    chosen = "" if window == "auto" else window
    found = project.Project(bank=name, server=server, classes=tuple(classes or ()), window=chosen)
    files.write_text(file, found.text)
    print_line(f"{file.resolve()}: bank {name!r} on {server}")


@bank.command("export")
@reported
def bank_export(
    out: Annotated[Path, typer.Argument(help="New folder for images, labels and dataset.json.")],
    bank: Bank = "",
    server: Server = DEFAULT_TARGET,
    token: Token = None,
) -> None:
    """Write a bank's templates as images with labels, which templates add reads again."""
    from vessa_client import exporting

    with connect(server, token, bank) as client, progress_bar() as progress:
        listing = client.list_templates()
        task = progress.add_task("Exporting", total=len(listing.templates), note="")
        for _ in exporting.export(client, listing, out):
            progress.advance(task)
    print_line(
        f"{len(listing.templates)} templates of {named(bank)}: {out}  Back: vessa templates add "
        f"{out} --label-names {out / exporting.CLASSES_FILE}"
    )


@bank.command("verify")
@reported
def bank_verify(bank: Bank = "", server: Server = DEFAULT_TARGET, token: Token = None) -> None:
    """Read every template of a bank, and name those that are damaged."""
    with connect(server, token, bank) as client, progress_bar() as progress:
        templates = client.list_templates().templates
        task = progress.add_task("Reading", total=len(templates), note="")
        damaged = 0
        for info in templates:
            try:
                client.get_template(info.template_id)
            except VessaError as error:
                damaged += 1
                print_error(f"{info.template_id} {info.name}: {error}")
            progress.advance(task)
    print_line(f"{len(templates) - damaged} of {len(templates)} templates of {named(bank)} whole")
    if damaged:
        raise typer.Exit(1)
