"""From an image to its answer: VESSA's own, and with a student's mask.

Axes: C classes, H W space.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from vessa_client import (
    ClassResult,
    SegmentationResult,
    TemplateUse,
    UInt8Array,
    UnavailableError,
)
from vessa_server.cases.case import Case, Own, Shared, Steps, to_bytes
from vessa_server.cases.frame import restore
from vessa_server.cases.points import Maps
from vessa_server.cases.volume import find_place
from vessa_server.inference.look import Prediction
from vessa_server.model import preprocess
from vessa_server.model.preprocess import Canvas
from vessa_server.policy import answers
from vessa_server.policy import students as rules
from vessa_server.policy.answers import Answer, Bools, Floats


@dataclass(frozen=True)
class Draft:
    """An answer before it is brought to the image's size.

    Attributes:
        logits_CHW: of the classes, on the canvas.
        canvas: on which they are.
        reported_iou: of each class.
        templates: used.
        kept_CHW: logits of the prompt, on the frame, of the classes that stay as it has them.
        kept_C: which ones do.
    """

    logits_CHW: Floats
    canvas: Canvas
    reported_iou: tuple[float, ...]
    templates: tuple[TemplateUse, ...]
    kept_CHW: Floats | None = None
    kept_C: Bools | None = None


def segment(case: Case) -> Steps:
    """Segment one image; returns a :class:`Draft` and explanations."""
    own = yield from _own(case)
    explanations: tuple[str, ...] = ()
    if case.explain:
        asked = replace(case.look(own.canvas), explain=True)
        explanations = case.seen((yield [asked])[0]).explanations
    if case.student is None:
        draft = Draft(own.logits_CHW, own.canvas, own.iou_C, own.templates)
    else:
        draft = yield from _refine(case, own)
    return draft, explanations


def known(case: Case) -> tuple[Draft, tuple[str, ...]] | None:
    """The answer to a case of which all is known, without a look; else None."""
    if case.student is not None or case.explain:
        return None
    steps = segment(case)
    try:
        next(steps)
    except StopIteration as end:
        found: tuple[Draft, tuple[str, ...]] = end.value
        return found
    steps.close()
    return None


def finish(
    case: Case, draft: Draft, explanations: Sequence[str], *, request_id: str, probabilities: bool
) -> SegmentationResult:
    """Bring an answer to the image's size; the only step whose cost grows with it."""
    with case.clock.stage("restore"):
        masks = _masks(case, draft, probabilities=probabilities)
    words = explanations or [""] * len(case.plan.classes)
    return SegmentationResult(
        request_id=request_id,
        labels=masks.labels_HW,
        confidence=masks.confidence_HW,
        classes=tuple(
            ClassResult(class_name=name, predicted_iou=iou, explanation=text)
            for name, iou, text in zip(
                case.plan.names, masks.iou or draft.reported_iou, words, strict=True
            )
        ),
        templates=draft.templates,
        stage_ms=case.clock.milliseconds(),
        model_digest="",
        bank_version=case.plan.bank_version,
        image_features_cached=case.cached,
        template_features_cached=case.templates_cached,
        image_sha256=case.scan.sha256,
        probabilities=masks.probabilities_CHW,
        region=draft.canvas.region,
    )


@dataclass(frozen=True)
class Masks:
    """An answer at the image's size.

    Attributes:
        labels_HW: 0 background.
        confidence_HW: probability of the label.
        probabilities_CHW: of each class, where asked.
        iou: of each class, where points and boxes have changed it.
    """

    labels_HW: UInt8Array
    confidence_HW: UInt8Array
    probabilities_CHW: UInt8Array | None = None
    iou: tuple[float, ...] | None = None


def _masks(case: Case, draft: Draft, *, probabilities: bool) -> Masks:
    """VESSA's own answers are kept at the image's size, too: asked again, they cost nothing."""
    key = ("masks", case.key)
    keep = case.student is None and case.marks is None and not probabilities
    held = case.memory.get(key) if keep else None
    if isinstance(held, Masks):
        return held
    maps: Maps = partial(_at_image_size, case, draft)
    iou = None
    if case.marks is not None:
        maps = case.marks.follow(maps, case.scan.unit.numpy())
        logits_CHW = np.concatenate([case.frame.reduce(map_HW[None]) for map_HW in maps()])
        iou = tuple(Answer.of(logits_CHW).reported_iou())
    decided = answers.decide(maps)
    shares = [to_bytes(decided.probability(map_HW)) for map_HW in maps()] if probabilities else None
    masks = Masks(
        decided.labels_HW,
        to_bytes(decided.confidence),
        None if shares is None else np.stack(shares),
        iou,
    )
    if keep:
        case.memory.put(key, masks, masks.labels_HW.nbytes + masks.confidence_HW.nbytes)
    return masks


def _own(case: Case) -> Steps:
    """VESSA's own answer, on the canvas that the slices of a volume share."""
    canvas = case.canvas
    if canvas is None and case.volume and case.plan.policy.uses("votes"):
        canvas = case.memory.get(("place", case.volume_key))
        if canvas is None:
            canvas = yield Shared(("place", case.volume_key), lambda: find_place(case))
    own = case.own
    if own is not None and canvas in (None, own.canvas):
        return own
    if canvas is None:
        return (yield from _alone(case))
    prediction = case.seen((yield [case.look(canvas)])[0])
    return case.keep(prediction, canvas)


def _alone(case: Case) -> Steps:
    """The whole image, turned where it fits badly, and closer where its structures are small."""
    policy = case.plan.policy
    canvas = case.whole
    prediction = case.seen((yield [case.look(canvas)])[0])
    answer = case.own_answer(prediction, canvas)
    if policy.uses("turns") and answer.quality < policy.turns.below:
        turned = [replace(canvas, turns=turns) for turns in (1, 2, 3)]
        predictions = yield [case.look(other) for other in turned]
        tried = [
            case.own_answer(case.seen(other), view)
            for other, view in zip(predictions, turned, strict=True)
        ]
        qualities = [other.quality for other in tried]
        best = qualities.index(max(qualities))
        if qualities[best] > answer.quality + policy.turns.margin:
            canvas, prediction, answer = turned[best], predictions[best], tried[best]
    if policy.uses("focus"):
        window = preprocess.focus(answer.foreground())
        if window is not None:
            canvas = replace(canvas, crop=case.frame.in_image(window))
            prediction = case.seen((yield [case.look(canvas)])[0])
    return case.keep(prediction, canvas)


def _refine(case: Case, own: Own) -> Steps:
    """VESSA's answer with a student's mask as prompt."""
    assert case.student is not None
    policy, student_CHW = case.plan.policy, case.student_on_frame
    is_label_map = case.student.ndim == 2
    own_CHW = own.probability_CHW.astype(np.float32) / np.float32(255)
    prompt_CHW = rules.prompt(student_CHW, own_CHW, policy, is_label_map=is_label_map)
    canvases = [own.canvas]
    if policy.uses("focus") and policy.uses("student_window"):
        canvases += _at_students_window(case, own, student_CHW)
    predictions = yield [case.look(canvas, prompt_CHW) for canvas in canvases]
    expected = [_predicted(case.seen(prediction)) for prediction in predictions]
    best = expected.index(max(expected))
    return _refined(case, predictions[best], canvases[best], prompt_CHW)


def _at_students_window(case: Case, own: Own, student_CHW: Floats) -> list[Canvas]:
    """Where the student's structures are, if that is another place."""
    window = preprocess.focus(student_CHW.sum(axis=0) >= 0.5)
    there = replace(own.canvas, crop=case.frame.in_image(window))
    same = there.window.overlap(own.canvas.window) >= case.plan.policy.student.same_window
    return [] if same else [there]


def _refined(case: Case, prediction: Prediction, canvas: Canvas, prompt_CHW: Floats) -> Draft:
    """The answer. Where VESSA is unsure of a student's structure, the prompt stays."""
    policy = case.plan.policy
    reported = tuple(Answer.of(case.logits(prediction, canvas)).reported_iou())
    draft = Draft(prediction.logits_CHW, canvas, reported, prediction.templates)
    unsure_C: Bools = prediction.iou_C < policy.student.keep_below
    if not policy.uses("keep_unsure") or not unsure_C.any():
        return draft
    return replace(draft, kept_CHW=rules.prompt_logits(prompt_CHW, policy), kept_C=unsure_C)


def _at_image_size(case: Case, draft: Draft) -> Iterator[Floats]:
    """Logits of each class, (H, W): one in memory at a time.

    Raises:
        UnavailableError: nobody waits for the answer any more.
    """
    outside = case.plan.policy.outside_logit
    for c in range(len(draft.logits_CHW)):
        if case.ended.is_set():
            raise UnavailableError("nobody waits for the answer")
        if draft.kept_CHW is not None and draft.kept_C is not None and draft.kept_C[c]:
            yield case.frame.enlarge(draft.kept_CHW[c : c + 1])[0]
        else:
            yield restore(draft.logits_CHW[c : c + 1], draft.canvas, outside=outside)[0]


def _predicted(prediction: Prediction) -> float:
    """Mean IoU that the decoder predicts: it learned on students' masks how good it is."""
    return float(prediction.iou_C.mean())
