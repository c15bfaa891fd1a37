"""``vessa templates``: the bank's annotated images."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from vessa_client._errors import InvalidRequestError, NotFoundError
from vessa_client._options import DEFAULT_TARGET
from vessa_client.cli_options import (
    Axis,
    Bank,
    Frame,
    LabelClasses,
    LabelFiles,
    LabelNames,
    LabelsSuffix,
    Server,
    Token,
    WindowText,
    connect,
    named,
    reported,
)
from vessa_client.console import console, print_line, progress_bar

if TYPE_CHECKING:
    from vessa_client import TemplateInfo

templates = typer.Typer(help="The template bank: annotated images.", no_args_is_help=True)


@templates.command("add")
@reported
def templates_add(
    context: typer.Context,
    image: Annotated[
        Path, typer.Argument(help="Image, volume, DICOM series, or a folder of annotated ones.")
    ],
    labels: LabelFiles = None,
    classes: LabelClasses = None,
    label_names: LabelNames = None,
    labels_suffix: LabelsSuffix = "_gt",
    max_slices: Annotated[
        int, typer.Option(min=1, help="Most slices of a volume, evenly spaced.")
    ] = 32,
    replace: Annotated[
        bool, typer.Option("--replace", help="Remove older labels of the same pixels.")
    ] = False,
    window: WindowText = "auto",
    axis: Axis = None,
    frame: Frame = None,
    bank: Bank = "",
    server: Server = DEFAULT_TARGET,
    token: Token = None,
) -> None:
    """Add annotated images, or the annotated slices of volumes: all of them, or none.

    Labels that were corrected since are told; --replace takes the new ones.

    Example: vessa templates add p1.nii.gz -c "liver" -c "tumour: dark lesion in the liver"
    """
    from vessa_client import annotated, files, windows
    from vessa_client.adding import outdated

    origin = context.get_parameter_source("classes")
    if label_names and origin is not None and origin.name == "DEFAULT_MAP":
        classes = None  # the project's; a file of names says more
    if not image.exists():
        raise files.FileError(f"{image}: no such file or folder")
    if bool(classes) == bool(label_names):
        raise files.FileError(
            "--class: missing; name the labels: -c NAME for 1, -c NAME for 2, or --label-names FILE"
        )
    scheme = annotated.read_scheme(label_names) if label_names else annotated.parse(classes or ())
    choice = windows.parse(window)
    known = annotated.read_windows(label_names) if label_names else {}
    pairs = annotated.find_pairs(image, labels, labels_suffix)
    with connect(server, token, bank) as client, progress_bar() as progress:
        held: tuple[TemplateInfo, ...] = ()
        with suppress(NotFoundError):  # the first template makes the bank
            held = client.list_templates().templates
        task = progress.add_task("Reading", total=len(pairs), note="")
        slices: list[annotated.AnnotatedSlice] = []
        for pair in pairs:  # all are read before any is added
            source, annotation = annotated.read_pair(*pair, axis=axis, frame=frame)
            source = choice.of(source, held)
            if source.stem in known:
                source = dataclasses.replace(source, window=known[source.stem])
            slices += annotated.cut(source, annotation, scheme, max_slices)
            progress.advance(task)
        find, wanted = client.get_template, scheme.classes
        old = [o for one in slices for o in outdated(find, held, one, wanted)]
        if old and not replace:
            more = f", and of {len(old) - 1} more" if len(old) > 1 else ""
            raise InvalidRequestError(
                f"{old[0].info.name}: the bank has it otherwise ({old[0].differs}){more}; "
                "--replace takes the new ones"
            )
        added = 0
        task = progress.add_task("Adding", total=len(slices), note="")
        for one in slices:
            _, created = client.add_template(
                one.image, one.labels, scheme.classes, name=one.name, window=one.window
            )
            added += created
            progress.advance(task)
        for gone in old:
            client.delete_template(gone.info.template_id)
        total = len(client.list_templates().templates)
    seen = {windows.described(one.window) for one in slices if one.window is not None}
    replaced = f", {len(old)} replaced" if old else ""
    print_line(
        f"{added} added{replaced}, {len(slices) - added} there already; "
        f"{named(bank)} has {total} templates."
        + (f" Window {', '.join(sorted(seen))}." if seen else "")
    )


@templates.command("list")
@reported
def templates_list(bank: Bank = "", server: Server = DEFAULT_TARGET, token: Token = None) -> None:
    """Show templates and classes."""
    with connect(server, token, bank) as client:
        listing = client.list_templates()
    table = Table("Id", "Name", "Size", "Classes", title=f"Bank {listing.version}")
    for t in listing.templates:
        cells = (t.template_id, t.name, f"{t.height} x {t.width}", ", ".join(t.class_names))
        table.add_row(*map(escape, cells))
    console.print(table)
    for c in listing.classes:
        console.print(f"[bold]{escape(c.name)}[/] {escape(c.description)}")


@templates.command("remove")
@reported
def templates_remove(
    template_ids: Annotated[
        list[str] | None, typer.Argument(help="Ids, or unique beginnings of ids.")
    ] = None,
    name: Annotated[
        list[str] | None, typer.Option(help="All slices of a scan, by its name; repeat.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of the bank.")] = False,
    bank: Bank = "",
    server: Server = DEFAULT_TARGET,
    token: Token = None,
) -> None:
    """Remove templates: by id, all slices of a scan by --name, or --all."""
    from vessa_client.checking import scans

    if not template_ids and not name and not everything:
        raise InvalidRequestError("templates: none named; give ids, --name SCAN, or --all")
    with connect(server, token, bank) as client:
        held = client.list_templates().templates
        chosen = {t.template_id: t for t in held if everything}
        for wanted in template_ids or ():
            matches = [t for t in held if t.template_id.startswith(wanted)]
            if len(matches) != 1:
                raise NotFoundError(f"{wanted}: {len(matches)} templates, expected exactly one")
            chosen[matches[0].template_id] = matches[0]
        known = {scan.name: scan.templates for scan in scans(held)}
        for wanted in name or ():
            if wanted not in known:
                raise NotFoundError(
                    f"--name: no scan {wanted!r}, expected one of {', '.join(known) or 'none'}"
                )
            chosen.update({t.template_id: t for t in known[wanted]})
        for template_id, info in chosen.items():
            client.delete_template(template_id)
            print_line(f"Removed {template_id} {info.name}")
    print_line(f"{len(chosen)} removed; {named(bank)} has {len(held) - len(chosen)} templates.")
