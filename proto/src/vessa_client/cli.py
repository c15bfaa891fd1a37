"""Command ``vessa``: segment, label folders, keep the template bank."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from vessa_client._options import DEFAULT_TARGET
from vessa_client.cli_bank import bank
from vessa_client.cli_check import check
from vessa_client.cli_export import export
from vessa_client.cli_options import (
    Alone,
    AsJson,
    Axis,
    Bank,
    Classes,
    Frame,
    Server,
    Token,
    WindowText,
    connect,
    project_defaults,
    reported,
)
from vessa_client.cli_templates import templates
from vessa_client.console import (
    command_line,
    console,
    print_error,
    print_line,
    print_warning,
    progress_bar,
    shown,
)

# Everything else is imported by the commands when they run, so that --help is fast.
if TYPE_CHECKING:
    from vessa_client import AnyArray
    from vessa_client.annotated import LabelScheme
    from vessa_client.files import ImageFile

app = command_line("vessa-client", "Segment medical images with a VESSA server.", project_defaults)
app.add_typer(templates, name="templates")
app.add_typer(bank, name="bank")
app.add_typer(export, name="export")
app.command()(check)


@app.command()
@reported
def segment(
    image: Annotated[
        Path, typer.Argument(help="PNG, JPEG, TIFF, NIfTI, NRRD, or a DICOM file, folder or zip.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")] = Path("."),
    classes: Classes = None,
    student_mask: Annotated[
        Path | None, typer.Option(help="Label file of a student, given as prompt.")
    ] = None,
    point: Annotated[
        list[str] | None,
        typer.Option(
            help="CLASS:X,Y of a picture, CLASS:I,J,K of a volume, from 0: what a pixel is, which "
            "the answer follows; `background` is a class, too. May be repeated."
        ),
    ] = None,
    box: Annotated[
        list[str] | None,
        typer.Option(
            help="CLASS:X,Y,W,H of a picture (its left and top edge, width, height): the class is "
            "nowhere outside of it. "
            "May be repeated."
        ),
    ] = None,
    text: Annotated[str, typer.Option(help="Added to the prompt of every class.")] = "",
    explain: Annotated[bool, typer.Option(help="Print what the language model says.")] = False,
    window: WindowText = "auto",
    axis: Axis = None,
    frame: Frame = None,
    alone: Alone = False,
    bank: Bank = "",
    server: Server = DEFAULT_TARGET,
    token: Token = None,
) -> None:
    """Segment one image or volume: writes NAME_pseudo and a picture NAME_pseudo_overlay.png.

    Of DICOM it writes NIfTI and a DICOM segmentation, which names its source images.
    """
    from vessa_client import VolumeRequest, annotated, files, marks, pictures, windows
    from vessa_client.labelling import segment_slices
    from vessa_client.results import write_labels

    scheme = annotated.parse(classes) if classes else None
    choice = windows.parse(window)
    files.check_writable(out)
    source = files.read(image, axis=axis, channel=frame)
    students = _student_masks(student_mask, source, scheme)
    with connect(server, token, bank) as client:
        source = choice.of(source, client.list_templates().templates)
        request = VolumeRequest(
            slices=tuple(source.slices()),
            class_names=scheme.names if scheme else (),
            text=text,
            student_masks=students,
            points=marks.points(point or (), source),
            boxes=marks.boxes(box or (), source),
            explain=explain,
            window=source.window,
            priority="interactive",
        )
        results = segment_slices(client, request, alone=alone or source.axis is None)
    written, warning = write_labels(out, source, results, scheme)
    middle = max(range(len(results)), key=lambda i: int((results[i].labels > 0).sum()))
    picture = out / f"{files.own_stem(image)}_pseudo_overlay.png"
    files.write_picture(picture, pictures.overlay(source.seen(middle), results[middle].labels))
    table = Table("Label", "Class", "Pixels", "Predicted IoU", *(["Says"] if explain else []))
    for label, found in enumerate(results[middle].classes, start=1):
        pixels = sum(int((r.labels == label).sum()) for r in results)
        words = [found.explanation] if explain else []
        value = scheme.values[label - 1] if scheme else label
        cells = (str(value), found.class_name, str(pixels), f"{found.predicted_iou:.2f}", *words)
        table.add_row(*map(escape, cells))
    console.print(table)
    if source.window is not None:
        print_line(f"Window  {windows.described(source.window)}")
    for target in reversed(written):
        print_line(f"Labels  {target}")
    print_line(f"Picture {picture}")
    if warning:
        print_warning(warning)


@app.command()
@reported
def label(
    folder: Annotated[Path, typer.Argument(help="Folder of images; *_gt files are left out.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the pseudo-labels.")],
    classes: Classes = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Label anew what was made with other classes, templates or weights; never what "
            "was edited since.",
        ),
    ] = False,
    in_flight: Annotated[int, typer.Option(min=1, help="Slices in flight.")] = 8,
    window: WindowText = "auto",
    axis: Axis = None,
    frame: Frame = None,
    alone: Alone = False,
    as_json: AsJson = False,
    bank: Bank = "",
    server: Server = DEFAULT_TARGET,
    token: Token = None,
) -> None:
    """Pseudo-label a whole folder; started again, it goes on where it stopped.

    Writes NAME_pseudo (NIfTI in, NIfTI out, same geometry; a DICOM series is its folder, and has
    a DICOM segmentation besides), NAME_confidence, index.html with a picture of each image, the
    least sure first, and summary.csv. labelled.json keeps what each was made with.
    """
    from vessa_client import annotated, files, windows
    from vessa_client.labelling import LabelJob, label_folder
    from vessa_client.results import inputs

    scheme = annotated.parse(classes) if classes else None
    seen = windows.parse(window)
    files.check_writable(out)
    job = LabelJob(folder, out, scheme, in_flight, seen, axis, frame, alone, overwrite)
    images = inputs(folder, out)
    with connect(server, token, bank) as client, progress_bar() as progress:
        task = progress.add_task("Labelling", total=len(images), note="")
        done = skipped = failed = 0
        kept: Counter[str] = Counter()
        said: set[str] = set()

        def slices(image: ImageFile, done: int) -> None:
            note = f"{image.path.name}: slice {done} of {image.depth}" if image.depth > 1 else ""
            progress.update(task, note=shown(note))

        for outcome in label_folder(client, job, images, slices):
            done += outcome.state == "done"
            skipped += outcome.state == "skipped"
            failed += outcome.state == "failed"
            if outcome.state == "skipped":
                kept[outcome.message] += 1
            elif outcome.message and outcome.message not in said:
                said.add(outcome.message)
                say = print_error if outcome.state == "failed" else print_warning
                say(f"{outcome.image}: {outcome.message}")
            progress.advance(task)
    for message in filter(None, kept):
        print_warning(f"{kept[message]} of those there already: {message}")
    if as_json:
        counts = {"labelled": done, "there_already": skipped, "failed": failed}
        typer.echo(json.dumps({**counts, "page": str(out / "index.html")}))
    else:
        print_line(
            f"{done} labelled, {skipped} there already, {failed} failed. "
            f"Look: {out / 'index.html'}  Table: {out / 'summary.csv'}"
        )
    if failed:
        raise typer.Exit(1)


@app.command()
@reported
def info(
    as_json: AsJson = False, bank: Bank = "", server: Server = DEFAULT_TARGET, token: Token = None
) -> None:
    """Show the server's model, bank and limits."""
    from vessa_client import windows

    with connect(server, token, bank) as client:
        found = client.info()
        used = Counter(t.window for t in client.list_templates().templates)
    if as_json:
        typer.echo(json.dumps({**asdict(found), "windows": list(used)}))
        return
    table = Table(show_header=False)
    table.add_row("Server", f"{server}, version {found.version}")
    table.add_row("Model", f"{found.model_name}, {found.model_parameters / 1e6:.1f} M parameters")
    table.add_row("Weights", found.model_digest[:16])
    table.add_row(
        "Runtime",
        f"{found.runtime} on {found.device}, {found.dtype}, "
        f"{found.device_memory_bytes / 1024**2:.0f} MiB of weights",
    )
    table.add_row(
        "Bank",
        f"{found.bank or 'default'}: {found.num_templates} templates, version {found.bank_version}",
    )
    seen = [f"{windows.described(w)} ({count})" for w, count in used.most_common()]
    table.add_row("Windows", ", ".join(seen) or "none yet")
    table.add_row("Other banks", ", ".join(found.banks) or "none")
    table.add_row("Classes", escape(", ".join(c.name for c in found.classes)) or "none yet")
    rules = ", ".join(found.policy_rules) or "none"
    table.add_row("Policy", f"version {found.policy_version}, with the rules {rules}")
    table.add_row("Cache", found.cache_backend)
    table.add_row(
        "Limits",
        f"{found.limits.max_image_bytes // 1024**2} MiB, {found.limits.max_image_side} pixels "
        f"a side, {found.limits.max_classes} classes; pixels x classes x slices of a request: "
        f"{found.limits.max_request_pixels / 1e6:.0f} million",
    )
    console.print(table)


@app.command()
@reported
def health(server: Server = DEFAULT_TARGET) -> None:
    """Exit with 0 if the server serves, else with 1."""
    with connect(server, token=None) as client:
        serving = client.healthy()
    console.print(f"{server}: " + ("[green]serving[/]" if serving else "[red]not serving[/]"))
    if not serving:
        raise typer.Exit(1)


def _student_masks(
    path: Path | None, source: ImageFile, scheme: LabelScheme | None
) -> dict[int, AnyArray]:
    """Labels of a student for each slice; empty where there is no file of them."""
    from vessa_client import files

    if path is None:
        return {}
    student = files.read(path, axis=source.axis, labels=True)
    source.check_same_space(student)
    if scheme is None:
        return dict(enumerate(student.slices()))
    return {k: scheme.to_numbers(plane, str(path)) for k, plane in enumerate(student.slices())}


if __name__ == "__main__":
    app()
