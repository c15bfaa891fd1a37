"""Bulk labelling of a folder: resumable, each image written when it is whole.

A volume is one request. Pictures, and slices that are labelled each by itself, share one stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

from vessa_client import files
from vessa_client._errors import AuthenticationError, UnavailableError, VessaError
from vessa_client._sync import VessaClient
from vessa_client._types import (
    SegmentationRequest,
    SegmentationResult,
    TemplateInfo,
    VolumeRequest,
)
from vessa_client.annotated import LabelScheme
from vessa_client.records import Records, Settings
from vessa_client.results import EDITED, Results
from vessa_client.windows import AUTOMATIC, WindowChoice, described


class Segmenter(Protocol):
    """What slices are segmented by: a client, or the server itself."""

    def segment_stream(
        self, requests: Iterable[SegmentationRequest]
    ) -> Iterator[SegmentationResult | VessaError]:
        """See :meth:`VessaClient.segment_stream`."""

    def segment_volume(self, request: VolumeRequest) -> Iterator[SegmentationResult | VessaError]:
        """See :meth:`VessaClient.segment_volume`."""


@dataclass(frozen=True)
class LabelJob:
    """What to label and where to write it.

    Results are named by the stem of the image, or by its whole name where others have the stem.
    """

    folder: Path
    out: Path
    scheme: LabelScheme | None = None
    in_flight: int = 8
    window: WindowChoice = AUTOMATIC
    axis: int | None = None
    frame: int | None = None
    alone: bool = False
    overwrite: bool = False

    @property
    def class_names(self) -> tuple[str, ...]:
        """That are asked for; all of the bank without any."""
        return self.scheme.names if self.scheme else ()

    def read(self, path: Path, templates: Sequence[TemplateInfo]) -> files.ImageFile:
        """An image, with its window among the templates of the bank.

        Raises:
            FileError: it cannot be read.
        """
        return self.window.of(files.read(path, axis=self.axis, channel=self.frame), templates)

    def results(self, client: VessaClient) -> Results:
        """What is there, and what label maps are made with now.

        Raises:
            VessaError: the server does not say.
            FileError: what earlier calls kept is damaged.
        """
        info, scheme = client.info(), self.scheme
        shown: dict[str, object] = {
            "axis": self.axis,
            "frame": self.frame,
            "alone": self.alone or None,
        }
        if not self.window.automatic:
            shown["window"] = described(self.window.given)
        settings = Settings(
            classes=tuple(zip(scheme.names, scheme.values, strict=True)) if scheme else (),
            options=tuple(f"{name}={value}" for name, value in shown.items() if value is not None),
            bank=info.bank,
            bank_version=info.bank_version,
            model=info.model_digest,
            policy=info.policy_version,
        )
        return Results(
            folder=self.folder,
            out=self.out,
            scheme=scheme,
            settings=settings,
            overwrite=self.overwrite,
            records=Records.read(self.out),
            templates=client.list_templates().templates,
        )


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
        FileError: the folder of results has label maps of other classes.
    """
    results = job.results(client)
    states = [(path, *results.state(path)) for path in images]
    for path, state, why in states:
        if why == EDITED:
            try:
                results.show_edits(job.read(path, results.templates))
            except files.FileError as error:
                yield LabelOutcome(path, "failed", str(error))
                continue
        if state == "kept":
            yield LabelOutcome(path, "skipped", why)
    waiting = [path for path, state, _ in states if state == "wanted"]
    streamed = [path for path in waiting if job.alone or not files.is_volume(path)]
    try:
        yield from _label_streamed(client, job, results, streamed, advance)
        if not job.alone:
            volumes = filter(files.is_volume, waiting)
            yield from (_label_volume(client, job, results, path, advance) for path in volumes)
    finally:
        results.finish()


def segment_slices(
    client: Segmenter,
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
            window=request.window,
            student_mask=request.student_masks.get(index),
            points=request.points.get(index, ()),
            boxes=request.boxes.get(index, ()),
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


def _label_volume(
    client: VessaClient, job: LabelJob, written: Results, path: Path, advance: Advance
) -> LabelOutcome:
    try:
        image = job.read(path, written.templates)
        request = VolumeRequest(
            slices=tuple(image.slices()),
            class_names=job.class_names,
            window=image.window,
            priority="bulk",
        )
        results = segment_slices(client, request, alone=False, advance=partial(advance, image))
    except (UnavailableError, AuthenticationError):
        raise
    except (VessaError, files.FileError) as error:
        return LabelOutcome(path, "failed", str(error))
    return LabelOutcome(path, "done", written.write(image, results))


@dataclass
class _Image:
    """An image whose slices are in flight: its answers so far, by slice."""

    file: files.ImageFile
    answers: dict[int, SegmentationResult | VessaError] = field(default_factory=dict)


def _label_streamed(
    client: VessaClient,
    job: LabelJob,
    written: Results,
    paths: Sequence[Path],
    advance: Advance,
) -> Iterator[LabelOutcome]:
    """Label the slices of all images over one stream."""
    open_images: dict[int, _Image] = {}
    unreadable: list[LabelOutcome] = []

    def requests() -> Iterator[SegmentationRequest]:
        for number, path in enumerate(paths):
            try:
                image = job.read(path, written.templates)
            except files.FileError as error:
                unreadable.append(LabelOutcome(path, "failed", str(error)))
                continue
            open_images[number] = _Image(image)
            for index, pixels in enumerate(image.slices()):
                yield SegmentationRequest(
                    image=pixels,
                    class_names=job.class_names,
                    window=image.window,
                    priority="bulk",
                    request_id=f"{number}/{index}",
                )

    for item in client.segment_stream(requests(), window=job.in_flight):
        number, index = map(int, item.request_id.split("/"))
        image = open_images[number]
        image.answers[index] = item
        advance(image.file, len(image.answers))
        if len(image.answers) == image.file.depth:
            del open_images[number]
            yield _finish(written, image)
        while unreadable:
            yield unreadable.pop()
    yield from unreadable


def _finish(written: Results, image: _Image) -> LabelOutcome:
    path = image.file.path
    try:
        results = _in_order(image.answers.values(), lambda r: int(r.request_id.split("/")[1]))
    except VessaError as error:
        return LabelOutcome(path, "failed", str(error))
    return LabelOutcome(path, "done", written.write(image.file, results))
