"""VESSA as assistant: asks for the next batches while this one trains.

Everything is asked in the canonical frame: the native slice, un-augmented. So the server's
encoder, matching, language model and memory attention run once for each slice; later
requests send its digest and a new student mask.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import structlog

from ssl_trainer.assistant import connection
from ssl_trainer.assistant.connection import AssistantError
from ssl_trainer.config import AssistantConfig
from ssl_trainer.data.frame import Roi
from ssl_trainer.data.slices import Slice
from vessa_client import Region, SegmentationRequest, SegmentationResult, UInt8Array, VessaError

# The student's probabilities of the classes in each slice, 255 for 1, (C, H, W).
Students = Callable[[], Sequence[UInt8Array]]

# Series about whose regions the server is asked in one call.
SURVEYED_AT_ONCE = 8
# Batches under way at the server, so that it need not wait where one ends; and unanswered requests
# of each, at least. All together they are no more than a batch, or than so many: a server's queue
# is for several trainers, and has 64 places by default.
BATCHES_AT_ONCE, WINDOW = 3, 4
# How much larger a region of interest is than the window in which VESSA sees the structures, which
# has a margin of its own, but leaves out what VESSA does not find.
WINDOW_MARGIN = 1.25

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class PseudoLabel:
    """VESSA's answer for one slice, in its native frame.

    Attributes:
        labels: (H, W).
        confidence: (H, W), 255 for 1.
        predicted_iou: mean over the classes found, or over all where none was.
        stage_ms: the server's time for each stage.
    """

    labels: UInt8Array
    confidence: UInt8Array
    predicted_iou: float
    stage_ms: dict[str, float] = field(default_factory=dict)


class Assistant:
    """Pipelined requests with a fall-back: where the server is away every answer is None.

    A mistake that waiting cannot mend is an error, and so is a server that is away where it is
    ``required``.

    Attributes:
        counts: answers that were asked for, and came, of those that were collected.
    """

    def __init__(self, config: AssistantConfig, classes: Sequence[str]) -> None:
        if config.server is None:
            raise ValueError("assistant.server: missing, expected host:port")
        self.config = config
        self.classes = tuple(classes)
        self._client = connection.connect(config, config.timeout_seconds)
        self._workers = ThreadPoolExecutor(BATCHES_AT_ONCE, thread_name_prefix="assistant")
        self._asked: dict[int, Future[list[PseudoLabel | None]]] = {}
        # Of what follows, which all workers change.
        self._lock = threading.Lock()
        self._failed_at = -math.inf
        self._away = False
        self._error: AssistantError | None = None
        self._refused: set[str] = set()
        self.counts = 0, 0

    @property
    def away(self) -> bool:
        """Whether the server did not answer when it was asked last."""
        return self._away

    def ask(
        self,
        step: int,
        slices: Sequence[Slice],
        students: Students | None = None,
        rois: Sequence[Roi | None] = (),
    ) -> None:
        """Begin to fetch the answers for ``step``; returns at once.

        Args:
            step: training step that will collect them.
            slices: native slices.
            students: sent as prompts, and waited for beside the training; None for one-shot.
            rois: where VESSA is to look; it searches where there is none.
        """
        self._asked[step] = self._workers.submit(self._fetch, slices, students, rois)

    def regions(
        self, slices: Sequence[Slice], advance: Callable[[], object] = lambda: None
    ) -> dict[str, Region]:
        """Where VESSA sees the structures, by series; nothing of a series that it refuses.

        Args:
            slices: one of each series.
            advance: called after each answer.

        Raises:
            AssistantError: the server does not answer.
        """
        found: dict[str, Region] = {}
        for start in range(0, len(slices), SURVEYED_AT_ONCE):
            some = slices[start : start + SURVEYED_AT_ONCE]
            call = partial(self._survey, some)
            for item, region in connection.reached(self.config, self.classes, call):
                if region is not None:
                    found[item.series] = region
                advance()
        # Answers come in any order.
        return {item.series: found[item.series] for item in slices if item.series in found}

    def _survey(self, slices: Sequence[Slice]) -> list[tuple[Slice, Region | None]]:
        answers: list[tuple[Slice, Region | None]] = []
        seconds = self.config.timeout_seconds * len(slices)
        for answer in self._client.segment_stream(self._requests(slices), timeout=seconds):
            if isinstance(answer, VessaError):
                if not connection.of_one_slice(answer):
                    raise answer
                self._refuse(slices[int(answer.request_id)], answer)
                answers.append((slices[int(answer.request_id)], None))
            else:
                answers.append((slices[int(answer.request_id)], answer.region))
        return answers

    def collect(self, step: int) -> list[PseudoLabel | None]:
        """Answers for ``step``, in the order of its slices; None where there is none.

        Raises:
            AssistantError: the run needs what it does not get, in this step or a later one.
        """
        answers = self._asked.pop(step).result()
        if self._error is not None:
            raise self._error
        requested, received = self.counts
        came = sum(answer is not None for answer in answers)
        self.counts = requested + len(answers), received + came
        return answers

    def close(self) -> None:
        """Finish the batches under way, drop the others, and close the connection."""
        self._workers.shutdown(wait=True, cancel_futures=True)
        self._client.close()

    def _requests(
        self,
        slices: Sequence[Slice],
        students: Students | None = None,
        rois: Sequence[Roi | None] = (),
    ) -> list[SegmentationRequest]:
        masks = None if students is None else students()
        regions = [
            None if roi is None else roi.region(item.image.shape)
            for item, roi in zip(slices, rois or [None] * len(slices), strict=True)
        ]
        return [
            SegmentationRequest(
                image=item.image,
                window=item.window,
                volume=item.volume if region is None else (),
                region=region,
                class_names=self.classes,
                student_mask=None if masks is None else masks[index],
                request_id=str(index),
            )
            for index, (item, region) in enumerate(zip(slices, regions, strict=True))
        ]

    def _fetch(
        self, slices: Sequence[Slice], students: Students | None, rois: Sequence[Roi | None]
    ) -> list[PseudoLabel | None]:
        answers: list[PseudoLabel | None] = [None] * len(slices)
        began = time.monotonic()
        if not slices or self._left_alone(began):
            return answers
        requests = self._requests(slices, students, rois)
        try:
            window = max(WINDOW, math.ceil(len(requests) / BATCHES_AT_ONCE))
            stream = self._client.segment_stream(
                requests, window=window, timeout=self.config.timeout_seconds
            )
            for item in stream:
                if not isinstance(item, VessaError):
                    answers[int(item.request_id)] = pseudo_label(item)
                elif connection.of_one_slice(item) and not self.config.required:
                    self._refuse(slices[int(item.request_id)], item)
                else:
                    raise item
        except VessaError as error:
            with self._lock:
                self._failed(error)
        else:
            self._answered(began)
        return answers

    def _left_alone(self, now: float) -> bool:
        """Whether the server is not to be asked: the run stops, or it failed a moment ago."""
        with self._lock:
            failed_lately = now < self._failed_at + self.config.retry_seconds
            return failed_lately or self._error is not None

    def _answered(self, began: float) -> None:
        """Say that the server is back, unless it was asked before it failed."""
        with self._lock:
            if self._away and began >= self._failed_at:
                self._away = False
                log.info("assistant.back", server=self.config.server)

    def _refuse(self, item: Slice, error: VessaError) -> None:
        """Go without an answer for one slice; say so once."""
        with self._lock:
            if item.key not in self._refused:
                self._refused.add(item.key)
                log.warning("assistant.refused", slice=item.key, error=str(error))

    def _failed(self, error: VessaError) -> None:
        """Leave the server alone for a while, and say so once; or stop the run."""
        if self.config.required or connection.lasts(error):
            reason = connection.explain(error, self.config, self.classes)
            self._error = self._error or AssistantError(
                f"{reason}; then start the run again with the same --out, and it goes on"
            )
            return
        self._failed_at = time.monotonic()
        if not self._away:
            self._away = True
            log.warning(
                "assistant.away",
                server=self.config.server,
                error=str(error),
                effect="training goes on with UniMatch V2 alone until the server answers",
            )


def pseudo_label(result: SegmentationResult) -> PseudoLabel:
    """What of an answer is trained on."""
    ious = np.array([c.predicted_iou for c in result.classes])
    found = np.array([bool((result.labels == i + 1).any()) for i in range(len(ious))])
    return PseudoLabel(
        labels=result.labels,
        confidence=result.confidence,
        predicted_iou=float(ious[found].mean() if found.any() else ious.mean()),
        stage_ms=result.stage_ms,
    )
