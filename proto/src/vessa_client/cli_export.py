"""``vessa export``: annotated images and pseudo-labels for other programs."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vessa_client.cli_options import (
    Axis,
    Frame,
    LabelClasses,
    LabelFiles,
    LabelNames,
    LabelsSuffix,
    reported,
)
from vessa_client.console import print_line, progress_bar, shown

if TYPE_CHECKING:
    from vessa_client.datasets.cases import Case, Cases

export = typer.Typer(
    help="Annotated images and pseudo-labels for other programs.", no_args_is_help=True
)

Images = Annotated[Path, typer.Argument(help="Image, volume, DICOM series, or a folder of them.")]
OutFolder = Annotated[Path, typer.Option("--out", "-o", help="New folder for the data set.")]
OutFile = Annotated[Path, typer.Option("--out", "-o", help="New file, such as datalist.json.")]
LeastIou = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="Of vessa label's results: a pseudo-label with a structure of a lower predicted IoU "
        "counts as none; one that was edited since is kept.",
    ),
]


@export.command("nnunet")
@reported
def nnunet(
    images: Images,
    out: OutFolder,
    labels: LabelFiles = None,
    classes: LabelClasses = None,
    label_names: LabelNames = None,
    labels_suffix: LabelsSuffix = "_gt",
    least_iou: LeastIou = None,
    channel: Annotated[
        str | None,
        typer.Option(
            help="What volumes show: CT for Hounsfield units, else MRI, ultrasound, ...: nnU-Net "
            "normalises by it. DICOM says it."
        ),
    ] = None,
    frame: Frame = None,
) -> None:
    """A raw data set of nnU-Net v2; images without labels go into imagesTs.

    Volumes become NIfTI, pictures PNG; labels are 1, 2, ... in the order of the classes. The
    folder is called DatasetNNN_NAME. LABELS may be the folder that vessa label wrote.

    Example: vessa export nnunet scans/ -c liver --channel CT --out nnUNet_raw/Dataset501_Liver
    """
    from vessa_client.datasets import nnunet

    cases = _cases(images, labels, labels_suffix, classes, label_names, least_iou)
    chosen = (*cases.labelled, *cases.others)
    _follow(nnunet.write(cases, out, channel=channel, frame=frame), chosen)
    _report(cases, out, "in imagesTs")


@export.command("monai")
@reported
def monai(
    images: Images,
    out: OutFile,
    labels: LabelFiles = None,
    classes: LabelClasses = None,
    label_names: LabelNames = None,
    labels_suffix: LabelsSuffix = "_gt",
    least_iou: LeastIou = None,
) -> None:
    """A datalist of MONAI; images without labels go into "testing".

    It names the files where they are, relative to its own folder, and copies nothing. LABELS may
    be the folder that vessa label wrote.

    Example: vessa export monai scans/ pseudo/ --least-iou 0.8 --out datalist.json
    """
    from vessa_client.datasets import datalist

    cases = _cases(images, labels, labels_suffix, classes, label_names, least_iou)
    _follow(datalist.write(cases, out), (*cases.labelled, *cases.others))
    _report(cases, out, "in testing")


@export.command("coco")
@reported
def coco(
    images: Images,
    out: OutFolder,
    labels: LabelFiles = None,
    classes: LabelClasses = None,
    label_names: LabelNames = None,
    labels_suffix: LabelsSuffix = "_gt",
    least_iou: LeastIou = None,
    axis: Axis = None,
    frame: Frame = None,
) -> None:
    """COCO: images/ and annotations.json, a run-length encoded mask for each class of an image.

    Of a volume each slice that shows a label is a PNG. Images without labels are left out. LABELS
    may be the folder that vessa label wrote.

    Example: vessa export coco slides/ -c nucleus --out slides-coco
    """
    from vessa_client.datasets import coco

    cases = _cases(images, labels, labels_suffix, classes, label_names, least_iou)
    _follow(coco.write(cases, out, axis=axis, frame=frame), cases.labelled)
    _report(cases, out, "left out")


def _cases(
    images: Path,
    labels: Path | None,
    suffix: str,
    classes: list[str] | None,
    label_names: Path | None,
    least_iou: float | None,
) -> Cases:
    from vessa_client import annotated
    from vessa_client.datasets import cases

    scheme = annotated.parse(classes) if classes else None
    if label_names:
        scheme = annotated.read_scheme(label_names)
    return cases.find(images, labels, suffix, scheme, least_iou)


def _follow(written: Iterable[Case], cases: Sized) -> None:
    with progress_bar() as progress:
        task = progress.add_task("Exporting", total=len(cases), note="")
        for case in written:
            progress.update(task, advance=1, note=shown(case.image.name))


def _report(cases: Cases, out: Path, others: str) -> None:
    unsure = f", {cases.unsure} of these not sure enough" if cases.unsure else ""
    print_line(
        f"{len(cases.labelled)} with labels, {len(cases.others)} without ({others}{unsure}): {out}"
    )
