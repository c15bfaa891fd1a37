"""Bulk labelling of a folder: one stream, resumable, each image written when it is whole."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from vessa_client import files, pictures
from vessa_client._errors import VessaError
from vessa_client._sync import VessaClient
from vessa_client._types import SegmentationRequest, SegmentationResult


@dataclass(frozen=True)
class LabelJob:
    """What to label and where to write it."""

    folder: Path
    out: Path
    class_names: tuple[str, ...] = ()
    window: int = 8
    axis: int | None = None
    alone: bool = False

    @property
    def previews(self) -> Path:
        """Folder of the pictures."""
        return self.out / "previews"

    @property
    def summary(self) -> Path:
        """Table of images and classes."""
        return self.out / "summary.csv"

    def target(self, image: Path) -> Path:
        """Folder of an image's results: the same place below ``out`` as below ``folder``."""
        return self.out / image.parent.relative_to(self.folder)


@dataclass(frozen=True)
class LabelOutcome:
    """What became of one image."""

    image: Path
    state: Literal["done", "skipped", "failed"]
    message: str = ""


def label_folder(
    client: VessaClient, job: LabelJob, images: Sequence[Path]
) -> Iterator[LabelOutcome]:
    """Label images; one that has its pseudo-label already is skipped, one that fails is told."""
    for path in images:
        name = files.stem(path) + "_pseudo"
        if any(files.stem(f) == name for f in job.target(path).glob(name + ".*")):
            yield LabelOutcome(path, "skipped")
            continue
        try:
            image = files.read(path, axis=job.axis)
            results = _segment_slices(client, job, image)
            _write(job, image, results)
        except (VessaError, files.FileError) as error:
            yield LabelOutcome(path, "failed", str(error))
        else:
            yield LabelOutcome(path, "done")


def _segment_slices(
    client: VessaClient, job: LabelJob, image: files.ImageFile
) -> list[SegmentationResult]:
    volume = () if job.alone else image.sample()
    requests = (
        SegmentationRequest(
            image=pixels, volume=volume, class_names=job.class_names, request_id=str(index)
        )
        for index, pixels in enumerate(image.slices())
    )
    results: dict[int, SegmentationResult] = {}
    for item in client.segment_stream(requests, window=job.window):
        if isinstance(item, VessaError):
            raise item
        results[int(item.request_id)] = item
    return [results[index] for index in range(image.depth)]


def _write(job: LabelJob, image: files.ImageFile, results: list[SegmentationResult]) -> None:
    folder = job.target(image.path)
    middle = max(range(len(results)), key=lambda i: int((results[i].labels > 0).sum()))
    picture = pictures.panels(
        [
            ("image", pictures.grey(image.slice(middle))),
            ("pseudo-label", pictures.overlay(image.slice(middle), results[middle].labels)),
            ("confidence", pictures.grey(results[middle].confidence)),
        ]
    )
    files.write_picture(
        job.previews / image.path.parent.relative_to(job.folder) / f"{image.stem}.png", picture
    )
    files.write_labels(
        files.output_path(folder, image, "_confidence"), [r.confidence for r in results], image
    )
    _update_summary(job, image, results)
    # Last, since its presence says that the image is done.
    files.write_labels(
        files.output_path(folder, image, "_pseudo"), [r.labels for r in results], image
    )


def _update_summary(
    job: LabelJob, image: files.ImageFile, results: list[SegmentationResult]
) -> None:
    """Replace the image's rows, so that one that is labelled again is not in it twice."""
    name = str(image.path.relative_to(job.folder))
    rows: list[dict[str, object]] = []
    if job.summary.exists():
        with job.summary.open(newline="") as stream:
            rows = [{**row} for row in csv.DictReader(stream) if row["image"] != name]
    for label, found in enumerate(results[0].classes, start=1):
        iou = float(np.mean([r.classes[label - 1].predicted_iou for r in results]))
        rows.append(
            {
                "image": name,
                "class": found.class_name,
                "label": label,
                "voxels": sum(int((r.labels == label).sum()) for r in results),
                "mean_predicted_iou": f"{iou:.3f}",
            }
        )
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    files.write_text(job.summary, text.getvalue())
