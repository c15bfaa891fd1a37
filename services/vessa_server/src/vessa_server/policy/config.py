"""All that is not in the paper and was tuned: every rule's numbers, in one typed place.

Each rule can be switched off by name, for a server (``VESSA_POLICY_OFF``) or a request
(``policy_off``). What each is worth is measured by ``benchmarks/policy_ablation.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field

from vessa_client import InvalidRequestError

# Bump when a number or a rule changes.
POLICY_VERSION = "5"


@dataclass(frozen=True, kw_only=True)
class TurnConfig:
    """``turns``: try quarter turns where the image fits the templates badly.

    Attributes:
        below: estimated IoU below which they are tried, of an image or a volume.
        margin: by how much a turned image must be better.
        volume_margin: by how much a turned volume must be better.
        volume_slices: slices of a volume on which turns are tried.
        whole_weight: weight of the estimated IoU of whole slices beside that of close views.
    """

    below: float = 0.4
    margin: float = 0.08
    volume_margin: float = 0.05
    volume_slices: int = 3
    whole_weight: float = 2.0


@dataclass(frozen=True, kw_only=True)
class VolumeConfig:
    """``votes``: slices of a volume agree on where their structures are.

    Attributes:
        slices: of a whole volume that are asked, evenly spread.
        rounds: close views of a volume, each at what the one before it shows.
        blur: pixels by which votes are blurred.
        enough: share of the most votes above which a pixel counts.
    """

    slices: int = 6
    rounds: int = 2
    blur: float = 3.0
    enough: float = 0.5


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """What a student's mask counts.

    Chosen on ACDC's validation patients: predictions of UniMatch V2's teacher at several times
    of a run, and corrupted label maps.

    Attributes:
        share: ``own_share``, VESSA's least and largest share of a prompt of probabilities;
            between them one half less the student's estimated IoU.
        label_map_share: the same for label maps, which carry no confidence.
        same_window: ``student_window``, overlap from which a student's window is VESSA's own.
        keep_below: ``keep_unsure``, predicted IoU below which a structure stays as the prompt
            has it ...
        keep_logit: ... and the largest logit of what stays.
    """

    share: tuple[float, float] = (0.04, 0.4)
    label_map_share: float = 0.08
    same_window: float = 0.5
    keep_below: float = 0.5
    keep_logit: float = 2.0


# Rules that can be switched off, and what is done then.
RULES = {
    "turns": "images are segmented as they lie",
    "focus": "small structures get no second, closer view",
    "votes": "each slice of a volume is segmented alone",
    "own_share": "the prompt is the student's mask alone",
    "student_window": "the student's mask does not move the view",
    "keep_unsure": "what VESSA is unsure of does not stay as the student has it",
}


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """Every rule that is not one of the paper's five steps.

    Attributes:
        off: names of rules that are switched off.
        frame_side: rules work on maps of at most this many pixels a side, or of the canvas's.
            Larger ones changed no Dice by 0.001 on pictures of 512 and 584 pixels.
        outside_logit: of the classes outside of a close view.
        explanation_tokens: length of an explanation.
    """

    off: frozenset[str] = frozenset()
    frame_side: int = 256
    outside_logit: float = -10.0
    explanation_tokens: int = 24
    turns: TurnConfig = field(default_factory=TurnConfig)
    volume: VolumeConfig = field(default_factory=VolumeConfig)
    student: StudentConfig = field(default_factory=StudentConfig)

    def __post_init__(self) -> None:
        for name in sorted(self.off):
            if name not in RULES:
                raise InvalidRequestError(
                    f"policy_off: no rule {name!r}, expected some of {', '.join(RULES)}",
                    field="policy_off",
                )

    def uses(self, rule: str) -> bool:
        """Whether ``rule`` is on."""
        return rule not in self.off

    def without(self, rules: Iterable[str]) -> PolicyConfig:
        """This policy with more rules switched off.

        Raises:
            InvalidRequestError: there is no rule of that name.
        """
        off = self.off.union(rules)
        return self if off == self.off else dataclasses.replace(self, off=off)
