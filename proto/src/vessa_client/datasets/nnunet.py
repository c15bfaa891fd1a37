"""A raw data set of nnU-Net v2: ``DatasetNNN_Name`` with images, labels and ``dataset.json``.

Its format: documentation/dataset_format.md of https://github.com/MIC-DKFZ/nnUNet.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vessa_client import annotated, files
from vessa_client.annotated import LabelScheme
from vessa_client.datasets.cases import Case, Cases, read

# What these mean to nnU-Net is not a structure.
RESERVED = ("background", "ignore")
ENDINGS = {"volume": ".nii.gz", "grey picture": ".png", "colour picture": ".png"}


def write(
    cases: Cases, out: Path, *, channel: str | None = None, frame: int | None = None
) -> Iterator[Case]:
    """Write a data set, one case after the other; it is there when all are.

    Volumes become NIfTI, pictures PNG. Labels are 1, 2, ... in the order of the classes.

    Args:
        cases: with labels for training; those without go into ``imagesTs``.
        out: new folder.
        channel: what images show, by which nnU-Net normalises; that of DICOM, or of a picture, is
            known without.
        frame: which volume of files that hold several.

    Raises:
        FileError: nnU-Net would not take it; names the image.
    """
    _check_names(out, cases.scheme)
    first: tuple[Case, str] | None = None
    channels: tuple[Case, tuple[str, ...]] | None = None
    with files.new_folder(out) as folder:
        for case in (*cases.labelled, *cases.others):
            source, annotation = read(case, frame=frame)
            kind = _kind(source)
            first = first or (case, kind)
            if kind != first[1]:
                raise files.FileError(
                    f"{case.image}: a {kind}, but {first[0].image} is a {first[1]}; nnU-Net takes "
                    "one kind, give each a folder of its own"
                )
            shown = _channels(source, kind, channel)
            channels = channels or (case, shown)
            if shown != channels[1]:
                raise files.FileError(
                    f"{case.image}: is {shown[0]}, but {channels[0].image} is {channels[1][0]}; "
                    "leave one out, or name both by --channel"
                )
            part = "Ts" if annotation is None else "Tr"
            ending = ENDINGS[kind]
            files.write_image(folder / f"images{part}" / f"{case.name}_0000{ending}", source)
            if annotation is not None:
                numbers = annotated.numbers(annotation, cases.scheme)
                files.write_labels(folder / "labelsTr" / f"{case.name}{ending}", numbers, source)
            yield case
        assert first is not None
        assert channels is not None
        described = {
            "name": out.absolute().name,
            "channel_names": {str(i): name for i, name in enumerate(channels[1])},
            "labels": {
                "background": 0,
                **{name: i for i, name in enumerate(cases.scheme.names, start=1)},
            },
            "numTraining": len(cases.labelled),
            "file_ending": ENDINGS[first[1]],
            "sources": {c.name: str(c.image) for c in (*cases.labelled, *cases.others)},
        }
        files.write_text(folder / "dataset.json", json.dumps(described, indent=1) + "\n")


def _check_names(out: Path, scheme: LabelScheme) -> None:
    name = out.absolute().name
    if not re.fullmatch(r"Dataset\d{3}_[\w.-]+", name, re.ASCII):
        raise files.FileError(
            f"--out: {name!r}, nnU-Net expects DatasetNNN_NAME, such as {out / 'Dataset501_Heart'}"
        )
    for found in scheme.names:
        if found.casefold() in RESERVED:
            raise files.FileError(
                f"--class: {found!r} means something else to nnU-Net; give it another name"
            )


def _kind(image: files.ImageFile) -> str:
    """One of ENDINGS.

    Raises:
        FileError: it cannot be written as nnU-Net reads it.
    """
    if image.axis is not None:
        if image.pixels.ndim != 3:
            raise files.FileError(f"{image.path}: a volume of colours, nnU-Net takes grey ones")
        return "volume"
    if image.pixels.dtype not in (np.uint8, np.uint16):
        raise files.FileError(
            f"{image.path}: values of type {image.pixels.dtype}, nnU-Net takes pictures of 8 or 16 "
            "bits"
        )
    return "grey picture" if image.pixels.ndim == 2 else "colour picture"


def _channels(image: files.ImageFile, kind: str, channel: str | None) -> tuple[str, ...]:
    """Names of the channels.

    Raises:
        FileError: nothing says what a volume shows.
    """
    if kind == "colour picture":
        return (channel,) * 3 if channel else ("R", "G", "B")
    if kind == "grey picture":
        return (channel or "grey",)
    found = channel or files.modality(image.path)
    if found is None:
        raise files.FileError(
            f"--channel: missing, and {image.path} does not say what it shows; CT for Hounsfield "
            "units, else MRI, ultrasound, ...: nnU-Net normalises by it"
        )
    return (found,)
