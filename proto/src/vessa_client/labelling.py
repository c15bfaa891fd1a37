"""Bulk labelling of a folder: resumable, each image written when it is whole.

A volume is one request. Pictures, and slices that are labelled each by itself, share one stream.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from vessa_client import files, pictures
from vessa_client._errors import AuthenticationError, UnavailableError, VessaError
from vessa_client._sync import VessaClient
from vessa_client._types import SegmentationRequest, SegmentationResult, VolumeRequest
from vessa_client.annotated import LabelScheme


@dataclass(frozen=True)
class LabelJob:
    """What to label and where to write it.

    Results are named by the stem of the image, or by its whole name where others have the stem.
    """

    folder: Path
    out: Path
    scheme: LabelScheme | None = None
    window: int = 8
    axis: int | None = None
    frame: int | None = None
    alone: bool = False

    @property
    def class_names(self) -> tuple[str, ...]:
        """That are asked for; all of the bank without any."""
        return self.scheme.names if self.scheme else ()

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
        return self.out / files.place_below(image, self.folder)


@dataclass(frozen=True)
class LabelOutcome:
    """What became of one image; a message of one that is done is a warning."""

    image: Path
    state: Literal["done", "skipped", "failed"]
    message: str = ""


# Called with an image, and how many of its slices are done.
Advance = Callable[[files.ImageFile, int], object]


def _nobody(image: files.ImageFile, done: int) -> None:
    pass


def label_folder(
    client: VessaClient, job: LabelJob, images: Sequence[Path], advance: Advance = _nobody
) -> Iterator[LabelOutcome]:
    """Label images; one that has its pseudo-label already is skipped, one that fails is named.

    Raises:
        VessaError: the server stayed away, or lets nobody in: no image can be labelled.
    """
    waiting = []
    for path in images:
        if files.output_path(job.target(path), path, "_pseudo").is_file():
            yield LabelOutcome(path, "skipped")
        else:
            waiting.append(path)
    streamed = [path for path in waiting if job.alone or not files.is_volume(path)]
    yield from _label_streamed(client, job, streamed, advance)
    if not job.alone:
        volumes = filter(files.is_volume, waiting)
        yield from (_label_volume(client, job, path, advance) for path in volumes)


def segment_slices(
    client: VessaClient,
    request: VolumeRequest,
    *,
    alone: bool,
    advance: Callable[[int], object] = lambda done: None,
) -> list[SegmentationResult]:
    """Results of all slices in order; ``alone``: each slice by itself, not as one volume.

    ``advance`` is called with the number of those that have come.

    Raises:
        VessaError: the first of any slice.
    """
    if not alone:
        answers = _counted(client.segment_volume(request), advance)
        return _in_order(answers, lambda result: result.slice_index)
    requests = (
        SegmentationRequest(
            image=image,
            class_names=request.class_names,
            text=request.text,
            student_mask=request.student_masks.get(index),
            top_k=request.top_k,
            template_ids=request.template_ids,
            return_probabilities=request.return_probabilities,
            explain=request.explain,
            bank=request.bank,
            policy_off=request.policy_off,
            priority=request.priority,
            request_id=str(index),
        )
        for index, image in enumerate(request.slices)
    )
    answers = _counted(client.segment_stream(requests), advance)
    return _in_order(answers, lambda result: int(result.request_id))


def _counted(
    items: Iterable[SegmentationResult | VessaError], advance: Callable[[int], object]
) -> Iterator[SegmentationResult | VessaError]:
    for done, item in enumerate(items, start=1):
        advance(done)
        yield item


def _in_order(
    items: Iterable[SegmentationResult | VessaError], index: Callable[[SegmentationResult], int]
) -> list[SegmentationResult]:
    results: dict[int, SegmentationResult] = {}
    for item in items:
        if isinstance(item, VessaError):
            raise item
        results[index(item)] = item
    return [results[position] for position in sorted(results)]


def _label_volume(client: VessaClient, job: LabelJob, path: Path, advance: Advance) -> LabelOutcome:
    try:
        image = files.read(path, axis=job.axis, channel=job.frame)
        request = VolumeRequest(
            slices=tuple(image.slices()), class_names=job.class_names, priority="bulk"
        )
        results = segment_slices(client, request, alone=False, advance=partial(advance, image))
    except (UnavailableError, AuthenticationError):
        raise
    except (VessaError, files.FileError) as error:
        return LabelOutcome(path, "failed", str(error))
    return _written(job, image, results)


@dataclass
class _Image:
    """An image whose slices are in flight: its answers so far, by slice."""

    file: files.ImageFile
    answers: dict[int, SegmentationResult | VessaError] = field(default_factory=dict)


def _label_streamed(
    client: VessaClient, job: LabelJob, paths: Sequence[Path], advance: Advance
) -> Iterator[LabelOutcome]:
    """Label the slices of all images over one stream."""
    open_images: dict[int, _Image] = {}
    unreadable: list[LabelOutcome] = []

    def requests() -> Iterator[SegmentationRequest]:
        for number, path in enumerate(paths):
            try:
                image = files.read(path, axis=job.axis, channel=job.frame)
            except files.FileError as error:
                unreadable.append(LabelOutcome(path, "failed", str(error)))
                continue
            open_images[number] = _Image(image)
            for index, pixels in enumerate(image.slices()):
                yield SegmentationRequest(
                    image=pixels,
                    class_names=job.class_names,
                    priority="bulk",
                    request_id=f"{number}/{index}",
                )

    for item in client.segment_stream(requests(), window=job.window):
        number, index = map(int, item.request_id.split("/"))
        image = open_images[number]
        image.answers[index] = item
        advance(image.file, len(image.answers))
        if len(image.answers) == image.file.depth:
            del open_images[number]
            yield _finish(job, image)
        while unreadable:
            yield unreadable.pop()
    yield from unreadable


def _finish(job: LabelJob, image: _Image) -> LabelOutcome:
    try:
        results = _in_order(image.answers.values(), lambda r: int(r.request_id.split("/")[1]))
    except VessaError as error:
        return LabelOutcome(image.file.path, "failed", str(error))
    return _written(job, image.file, results)


def _written(
    job: LabelJob, image: files.ImageFile, results: list[SegmentationResult]
) -> LabelOutcome:
    try:
        _write(job, image, results)
    except files.FileError as error:
        return LabelOutcome(image.path, "done", str(error))
    return LabelOutcome(image.path, "done")


def _write(job: LabelJob, image: files.ImageFile, results: list[SegmentationResult]) -> None:
    folder = job.target(image.path)
    middle = max(range(len(results)), key=lambda i: int((results[i].labels > 0).sum()))
    picture = pictures.panels(
        [
            (f"image, slice {middle}", pictures.grey(image.slice(middle))),
            ("pseudo-label", pictures.overlay(image.slice(middle), results[middle].labels)),
            ("confidence", pictures.grey(results[middle].confidence)),
        ]
    )
    names = [found.class_name for found in results[0].classes]
    picture = pictures.rows([pictures.legend(names), picture])
    previews = job.previews / files.place_below(image.path, job.folder)
    files.write_picture(previews / f"{files.own_stem(image.path)}.png", picture)
    confidence = files.output_path(folder, image.path, "_confidence")
    files.write_labels(confidence, [r.confidence for r in results], image)
    _update_summary(job, image, results)
    write_results(folder, image, results, job.scheme)


def write_results(
    folder: Path,
    image: files.ImageFile,
    results: Sequence[SegmentationResult],
    scheme: LabelScheme | None,
) -> list[Path]:
    """Write the labels of an image, ``NAME_pseudo``, of DICOM as a segmentation object, too.

    Args:
        folder: where they go.
        image: that was segmented.
        results: of each of its slices.
        scheme: values of the label map, where they are others than 1, 2, ...

    Returns:
        what was written; the label map last, since its presence says that the image is done.

    Raises:
        FileError: no segmentation object can refer to the series; the label map is written.
    """
    labels = [result.labels for result in results]
    written = [files.output_path(folder, image.path, "_pseudo")]
    try:
        if files.is_dicom(image.path):
            seg = folder / f"{files.own_stem(image.path)}_pseudo.dcm"
            names = [found.class_name for found in results[0].classes]
            model = f"VESSA {results[0].model_digest[:12]}"
            files.write_segmentation(seg, labels, image, names, model=model)
            written.insert(0, seg)
    finally:
        values = [scheme.to_values(found) for found in labels] if scheme else labels
        files.write_labels(written[-1], values, image)
    return written


def _update_summary(
    job: LabelJob, image: files.ImageFile, results: list[SegmentationResult]
) -> None:
    """Replace the image's rows, so that one that is labelled again is not in it twice."""
    name = image.path.name
    if image.path != job.folder:
        name = str(image.path.relative_to(job.folder))
    rows: list[dict[str, object]] = []
    if job.summary.exists():
        with job.summary.open(newline="") as stream:
            rows = [{**row} for row in csv.DictReader(stream) if row["image"] != name]
    values = job.scheme.values if job.scheme else range(1, 256)
    for label, found in enumerate(results[0].classes, start=1):
        iou = float(np.mean([r.classes[label - 1].predicted_iou for r in results]))
        rows.append(
            {
                "image": name,
                "class": found.class_name,
                "label": values[label - 1],
                "voxels": sum(int((r.labels == label).sum()) for r in results),
                "mean_predicted_iou": f"{iou:.3f}",
            }
        )
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    files.write_text(job.summary, text.getvalue())
