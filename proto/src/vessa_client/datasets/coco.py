"""COCO: pictures, and ``annotations.json`` with run-length encoded masks.

Axes: H W space.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vessa_client import annotated, files, pictures
from vessa_client._types import AnyArray, UInt8Array
from vessa_client.datasets.cases import Case, Cases, read

IMAGES, ANNOTATIONS = "images", "annotations.json"


def write(
    cases: Cases, out: Path, *, axis: int | None = None, frame: int | None = None
) -> Iterator[Case]:
    """Write the labelled cases, one after the other; the folder is there when all are.

    Pictures become PNG, and so does each slice of a volume that shows a label. Those of 8 bits
    keep their values, others are scaled by their 0.5 and 99.5 percentiles.

    Args:
        cases: those without labels are left out: an image without annotations shows nothing.
        out: new folder.
        axis: along which volumes are cut.
        frame: which volume of files that hold several.

    Raises:
        FileError: a case cannot be read, or nothing is labelled; names it.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    with files.new_folder(out) as folder:
        for case in cases.labelled:
            source, annotation = read(case, axis=axis, frame=frame)
            assert annotation is not None
            for index, labels in enumerate(annotated.numbers(annotation, cases.scheme)):
                if source.axis is not None and not labels.any():
                    continue
                number = "" if source.axis is None else f"_{index:04d}"
                file = f"{case.name}{number}.png"
                files.write_picture(folder / IMAGES / file, _eight_bits(source.slice(index)))
                height, width = labels.shape
                image = {"id": len(images) + 1, "file_name": file, "height": height, "width": width}
                images.append(image | {"source": str(case.image), "slice": index})
                for found in structures(labels):
                    own = {"id": len(annotations) + 1, "image_id": len(images)}
                    annotations.append(own | found)
            yield case
        if not annotations:
            names = " or ".join(cases.scheme.names)
            raise files.FileError(f"{cases.labelled[0].labels}: no pixel is labelled {names}")
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [
                {"id": number, "name": name, "supercategory": ""}
                for number, name in enumerate(cases.scheme.names, start=1)
            ],
        }
        files.write_text(folder / ANNOTATIONS, json.dumps(content) + "\n")


def structures(labels_HW: UInt8Array) -> Iterator[dict[str, Any]]:
    """An annotation of each class that labels 1, 2, ... show, all of its pieces in one."""
    for number in np.unique(labels_HW[labels_HW > 0]):
        mask_HW = labels_HW == number
        rows, columns = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
        top, left = int(rows[0]), int(columns[0])
        yield {
            "category_id": int(number),
            "segmentation": run_lengths(mask_HW),
            "area": int(mask_HW.sum()),
            "bbox": [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1],
            "iscrowd": 0,  # else evaluation and trainers pass over it
        }


def run_lengths(mask_HW: AnyArray) -> dict[str, Any]:
    """COCO's compressed run lengths: down the columns, background first.

    From the fourth on each is the difference to the last but one; in digits of five bits, least
    first, the sixth says that more follow, as characters from ``0`` on.
    """
    flat = mask_HW.ravel(order="F").astype(bool)
    ends = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lengths = np.diff([0, *ends, flat.size]).tolist()
    if flat[0]:
        lengths.insert(0, 0)
    text = []
    for position, length in enumerate(lengths):
        value, more = length - (lengths[position - 2] if position > 2 else 0), True
        while more:
            digit, value = value & 31, value >> 5
            more = value != (-1 if digit & 16 else 0)
            text.append(chr(48 + digit + 32 * more))
    height, width = mask_HW.shape
    return {"size": [height, width], "counts": "".join(text)}


def _eight_bits(pixels: AnyArray) -> UInt8Array:
    if pixels.dtype == np.uint8:
        return np.asarray(pixels, np.uint8)
    scaled = pictures.grey(pixels)
    return scaled if pixels.ndim == 3 else scaled[..., 0]
