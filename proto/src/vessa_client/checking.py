"""Leave-one-out over a bank: how well the others segment each annotated scan.

What a user knows before labelling hundreds of scans: Dice of each class, the worst slices, and
whether another annotated scan would help.

Axes: Z slices, H W space.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from vessa_client._errors import InvalidRequestError
from vessa_client._types import (
    AnyArray,
    SegmentationResult,
    TemplateContent,
    TemplateInfo,
    UInt8Array,
    VolumeRequest,
)
from vessa_client.labelling import Segmenter, segment_slices

# What `vessa templates add` puts after the name of a volume.
SLICE = re.compile(r" slice \d+$")
# Further scans are said to help where the last ones gained that much mean Dice.
GAIN = 0.02
# Of fewer scans nothing is said.
FEWEST = 5
_NO_PIXELS = np.zeros((0, 0), np.uint8)


class AnnotatedBank(Segmenter, Protocol):
    """A bank that is checked: by a client of it, or by the server itself."""

    def get_template(self, template_id: str) -> TemplateContent:
        """See :meth:`VessaClient.get_template`."""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """The templates of one annotated scan."""

    name: str
    templates: tuple[TemplateInfo, ...]

    @property
    def class_names(self) -> frozenset[str]:
        """Classes that it shows."""
        return frozenset(name for template in self.templates for name in template.class_names)


@dataclass(frozen=True, kw_only=True)
class Slice:
    """A template beside what the other scans make of it.

    Attributes:
        truth_HW: 0 background, i the i-th asked class.
        labels_HW: the same, of VESSA.
        dice: mean over the classes that either of them shows.
    """

    name: str
    image: AnyArray = field(repr=False)
    truth_HW: UInt8Array = field(repr=False)
    labels_HW: UInt8Array = field(repr=False)
    dice: float


@dataclass(frozen=True, kw_only=True)
class ScanCheck:
    """How well other scans segment one that is held out.

    Attributes:
        scan: its name.
        dice: of each class that it shows, over all its slices; None where no other scan shows
            the class.
        by_others: mean Dice by the number of other scans that served as templates.
        class_names: that were asked for; the numbers of ``slices``.
        slices: the worst first.
    """

    scan: str
    dice: Mapping[str, float | None]
    by_others: Mapping[int, float]
    class_names: tuple[str, ...]
    slices: tuple[Slice, ...]

    @property
    def mean(self) -> float:
        """Of the classes, by all others; what no other scan shows counts as 0."""
        return self.by_others[max(self.by_others)]

    @property
    def figures(self) -> dict[str, Any]:
        """For machines."""
        return {
            "scan": self.scan,
            "mean": self.mean,
            "dice": dict(self.dice),
            "slices": {item.name: item.dice for item in self.slices},
        }

    def without_pixels(self) -> ScanCheck:
        """The figures alone, of which many can be kept."""
        slices = (
            replace(item, image=_NO_PIXELS, truth_HW=_NO_PIXELS, labels_HW=_NO_PIXELS)
            for item in self.slices
        )
        return replace(self, slices=tuple(slices))


def scans(templates: Sequence[TemplateInfo], patient: re.Pattern[str] | None = None) -> list[Scan]:
    """Templates by the scan that they are slices of, which their names tell.

    Args:
        templates: of a bank.
        patient: its first group, or all that it finds, is what scans of one patient share: these
            count as one. Names without it are left as they are.
    """
    found: dict[str, list[TemplateInfo]] = {}
    for template in templates:
        name = SLICE.sub("", template.name) or template.template_id
        match = patient.search(name) if patient else None
        if match:
            name = match.group(min(1, match.re.groups))
        found.setdefault(name, []).append(template)
    return [Scan(name=name, templates=tuple(found[name])) for name in sorted(found)]


def check(
    client: AnnotatedBank, annotated: Sequence[Scan], class_names: Sequence[str]
) -> Iterator[ScanCheck]:
    """Hold each annotated scan out in turn, and segment it with the others as templates.

    Args:
        client: of the bank.
        annotated: its scans.
        class_names: of the bank, in its order.

    Raises:
        InvalidRequestError: the bank has fewer than two scans.
        VessaError: the server cannot answer.
    """
    if len(annotated) < 2:
        raise InvalidRequestError(
            f"bank: {len(annotated)} annotated scans, expected two or more, so that each can be "
            "held out; `vessa templates add` adds others",
            field="bank",
        )
    return (
        # Those that come next: with few of them each scan serves equally often.
        _hold_out(client, scan, (*annotated[index + 1 :], *annotated[:index]), class_names)
        for index, scan in enumerate(annotated)
    )


def counts(others: int) -> list[int]:
    """Numbers of other scans that are tried: one, half of them, all."""
    return sorted({1, max(1, others // 2), others})


def by_others(found: Sequence[ScanCheck]) -> dict[int, float]:
    """Mean Dice of all scans by the number of others that served as templates."""
    return {
        count: float(np.mean([one.by_others[count] for one in found]))
        for count in sorted(found[0].by_others)
    }


def by_class(found: Sequence[ScanCheck]) -> dict[str, float | None]:
    """Mean Dice of each class over the scans that show it; None where only one scan does."""
    values: dict[str, list[float | None]] = {}
    for one in found:
        for name, value in one.dice.items():
            values.setdefault(name, []).append(value)
    known = {name: [v for v in own if v is not None] for name, own in sorted(values.items())}
    return {name: float(np.mean(own)) if own else None for name, own in known.items()}


def summary(found: Sequence[ScanCheck]) -> dict[str, Any]:
    """All figures, for machines."""
    return {
        "mean": float(np.mean([one.mean for one in found])),
        "classes": by_class(found),
        "by_others": by_others(found),
        "scans": [one.figures for one in found],
    }


def verdict(found: Sequence[ScanCheck]) -> str:
    """Whether more annotated scans would help, and of what, in words.

    Args:
        found: the worst first.
    """
    curve = by_others(found)
    steps = ", ".join(f"{value:.2f} with {count}" for count, value in curve.items())
    words = f"Mean Dice by the number of other scans: {steps}."
    if len(curve) == 1:
        words += " Two scans tell little: add a third, and check again."
    elif len(found) < FEWEST:
        words += " So few scans do not tell whether more would help."
    else:
        before, last = list(curve.values())[-2:]
        helped = last - before >= GAIN
        words += (
            " The last ones helped: another scan is likely to help, too."
            if helped
            else " The last ones helped little: another of the same kind may not help."
        )
    alone = [name for name, value in by_class(found).items() if value is None]
    if alone:
        words += f" Only one scan shows {', '.join(alone)}: annotate another that does."
    return f"{words} Worst: {found[0].scan} ({found[0].mean:.2f}); scans like it need a template."


def _hold_out(
    client: AnnotatedBank, scan: Scan, others: Sequence[Scan], order: Sequence[str]
) -> ScanCheck:
    contents = [client.get_template(template.template_id) for template in scan.templates]
    by_others: dict[int, float] = {}
    for count in counts(len(others)):
        used = others[:count]
        shown = {name for other in used for name in other.class_names}
        asked = tuple(name for name in order if name in shown)
        answers = _segment(client, contents, used, asked)
        truths = [content.numbered(asked) for content in contents]
        labels = [answer.labels for answer in answers]
        dice = {
            name: _dice(truths, labels, asked.index(name) + 1) if name in shown else None
            for name in order
            if name in scan.class_names
        }
        by_others[count] = float(np.mean([value or 0.0 for value in dice.values()]))
    slices = [
        Slice(
            name=content.info.name,
            image=content.seen,
            truth_HW=truth,
            labels_HW=found,
            dice=_mean_dice(truth, found),
        )
        for content, truth, found in zip(contents, truths, labels, strict=True)
    ]
    return ScanCheck(
        scan=scan.name,
        dice=dice,
        by_others=by_others,
        class_names=asked,
        slices=tuple(sorted(slices, key=lambda one: one.dice)),
    )


def _segment(
    client: AnnotatedBank,
    contents: Sequence[TemplateContent],
    used: Sequence[Scan],
    asked: tuple[str, ...],
) -> list[SegmentationResult]:
    """Answers to the slices of a scan; slices of other sizes are no volume."""
    request = VolumeRequest(
        slices=tuple(content.image for content in contents),
        class_names=asked,
        window=contents[0].info.window,
        template_ids=tuple(t.template_id for other in used for t in other.templates),
        priority="bulk",
    )
    alone = len({content.labels.shape for content in contents}) > 1
    return segment_slices(client, request, alone=alone)


def _dice(truths: Sequence[UInt8Array], labels: Sequence[UInt8Array], value: int) -> float:
    """Of one class over all slices, one of which shows it."""
    pairs = [(truth == value, found == value) for truth, found in zip(truths, labels, strict=True)]
    shared = sum(int((truth & found).sum()) for truth, found in pairs)
    return 2 * shared / sum(int(truth.sum()) + int(found.sum()) for truth, found in pairs)


def _mean_dice(truth: UInt8Array, found: UInt8Array) -> float:
    values = set(np.unique(truth)) | set(np.unique(found))
    return float(np.mean([_dice([truth], [found], int(v)) for v in values - {0}] or [1.0]))
