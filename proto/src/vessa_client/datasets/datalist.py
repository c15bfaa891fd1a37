"""A datalist of MONAI: JSON that names images and label files where they are."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vessa_client import files
from vessa_client.annotated import LabelScheme
from vessa_client.datasets.cases import Case, Cases, read


def write(cases: Cases, out: Path) -> Iterator[Case]:
    """Check all cases, one after the other, and write the datalist.

    ``labels`` has the classes by their values in the files.

    Args:
        cases: with labels for ``training``; those without go into ``testing``.
        out: new file; paths are relative to its folder.

    Raises:
        FileError: it is there already, or MONAI would read other labels than are named.
    """
    if out.exists():
        raise files.FileError(f"{out}: is there already, expected a new file")
    for case in (*cases.labelled, *cases.others):
        if case.image.is_file() and case.image.suffix.lower() == ".zip":
            raise files.FileError(f"{case.image}: MONAI reads no zip; unpack it")
        _, annotation = read(case, frame=0)  # MONAI takes a fourth axis for channels
        if annotation is not None:
            _check_values(annotation, cases.scheme)
        yield case
    named = zip(cases.scheme.values, cases.scheme.names, strict=True)
    content = {
        "labels": {"0": "background", **{str(value): name for value, name in sorted(named)}},
        "numTraining": len(cases.labelled),
        "numTest": len(cases.others),
        "training": [
            {"image": _below(case.image, out), "label": _below(case.labels, out)}
            for case in cases.labelled
            if case.labels
        ],
        "testing": [{"image": _below(case.image, out)} for case in cases.others],
    }
    files.write_text(out, json.dumps(content, indent=1) + "\n")


def _check_values(annotation: files.ImageFile, scheme: LabelScheme) -> None:
    """The files' values are those that are named: MONAI reads them as they are."""
    found = {int(value) for value in np.unique(annotation.pixels)} - {0}
    unnamed = sorted(found - set(scheme.values))
    if unnamed:
        values = ", ".join(map(str, unnamed))
        raise files.FileError(
            f"--class: {annotation.path} has labels {values} that are not named; name them by "
            f"value: -c {unnamed[0]}=NAME"
        )


def _below(path: Path, out: Path) -> str:
    # Not resolved: MONAI follows ".." by the name, too.
    return Path(os.path.relpath(path, out.parent)).as_posix()
