"""``vessa templates``: the bank's annotated images."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from vessa_client._errors import InvalidRequestError, NotFoundError
from vessa_client._options import DEFAULT_TARGET
from vessa_client.cli_options import Axis, Bank, Frame, Server, Token, connect, named, reported
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
    labels: Annotated[
        Path | None,
        typer.Argument(help="Label file, or a folder of them. Default: NAME_gt beside the image."),
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--class",
            "-c",
            help='Label 1, 2, ..., in order: "name" or "name: description"; or by its value: '
            '"3=name", then other values are background.',
        ),
    ] = None,
    label_names: Annotated[
        Path | None,
        typer.Option(help="File that names labels: ITK-SNAP's descriptions, or dataset.json."),
    ] = None,
    labels_suffix: Annotated[
        str, typer.Option(help="What the names of label files have after the image's.")
    ] = "_gt",
    max_slices: Annotated[
        int, typer.Option(min=1, help="Most slices of a volume, evenly spaced.")
    ] = 32,
    replace: Annotated[
        bool, typer.Option("--replace", help="Remove older labels of the same pixels.")
    ] = False,
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
    from vessa_client import annotated, files
    from vessa_client.adding import outdated

    source = context.get_parameter_source("classes")
    if label_names and source is not None and source.name == "DEFAULT_MAP":
        classes = None  # the project's; a file of names says more
    if bool(classes) == bool(label_names):
        raise files.FileError(
            "--class: missing; name the labels: -c NAME for 1, -c NAME for 2, or --label-names FILE"
        )
    scheme = annotated.read_scheme(label_names) if label_names else annotated.parse(classes or ())
    pairs = annotated.find_pairs(image, labels, labels_suffix)
    with connect(server, token, bank) as client, progress_bar() as progress:
        held: tuple[TemplateInfo, ...] = ()
        with suppress(NotFoundError):  # the first template makes the bank
            held = client.list_templates().templates
        task = progress.add_task("Reading", total=len(pairs), note="")
        slices: list[annotated.AnnotatedSlice] = []
        for pair in pairs:  # all are read before any is added
            slices += annotated.slices(*pair, scheme, max_slices, axis=axis, frame=frame)
            progress.advance(task)
        old = [o for one in slices for o in outdated(client, held, one, scheme.classes)]
        if old and not replace:
            more = f", and of {len(old) - 1} more" if len(old) > 1 else ""
            raise InvalidRequestError(
                f"{old[0].info.name}: the bank has other labels of it ({old[0].differs}){more}; "
                "--replace takes the new ones"
            )
        added = 0
        task = progress.add_task("Adding", total=len(slices), note="")
        for one in slices:
            _, created = client.add_template(one.image, one.labels, scheme.classes, name=one.name)
            added += created
            progress.advance(task)
        for gone in old:
            client.delete_template(gone.info.template_id)
        total = len(client.list_templates().templates)
    replaced = f", {len(old)} replaced" if old else ""
    print_line(
        f"{added} added{replaced}, {len(slices) - added} there already; "
        f"{named(bank)} has {total} templates."
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
