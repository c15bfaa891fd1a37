"""How a student learns from unlabelled slices."""

from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass

from ssl_trainer.config.checks import STRICT, check_at_least, check_fractions

# See ssl_trainer.methods; its own keys are in the section of its name.
Method = Literal["unimatch", "mean-teacher", "cps", "bcp"]
# Of strong views: cross-entropy, soft Dice, or their mean.
UnlabelledLoss = Literal["cross_entropy", "dice", "both"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class UniMatchConfig:
    """UniMatch V2 (Yang et al., 2024, section 3).

    Attributes:
        weight: λ_u; with 0 and without a server, unlabelled images are left out.
        loss: for the teacher's labels. UniMatch V2 has cross-entropy for photographs, its authors
            Dice for medical images.
        confidence_threshold: probability from which a pixel of the teacher counts.
        ema_decay: of the teacher, at most.
        dropout_probability: share of the images whose features lose channels.
        cutmix_probability: share of the views with a box of another image.
    """

    weight: float = 1.0
    loss: UnlabelledLoss = "cross_entropy"
    confidence_threshold: float = 0.95
    ema_decay: float = 0.996
    dropout_probability: float = 0.5
    cutmix_probability: float = 0.5

    def __post_init__(self) -> None:
        check_at_least(self, 0, "weight")
        check_fractions(self, "cutmix_probability")
        for name in ("confidence_threshold", "ema_decay", "dropout_probability"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)}, expected in [0, 1)")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MeanTeacherConfig:
    """Mean Teacher (Tarvainen and Valpola, 2017).

    Attributes:
        weight: of the consistency at the end of the run; it rises to that. SSL4MIS has 0.1.
    """

    weight: float = 0.1

    def __post_init__(self) -> None:
        check_at_least(self, 0, "weight")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CpsConfig:
    """Cross pseudo supervision (Chen et al., 2021).

    Attributes:
        weight: of each other's labels at the end of the run; it rises to that. SSL4MIS has 0.1.
    """

    weight: float = 0.1

    def __post_init__(self) -> None:
        check_at_least(self, 0, "weight")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BcpConfig:
    """Bidirectional copy-paste (Bai et al., 2023).

    Attributes:
        weight: of the unlabelled part of a mixed image, where the labelled one has 1.
        pretraining: fraction of the run in which labelled images are mixed with one another only;
            its authors have 10,000 updates, and 30,000 after them.
    """

    weight: float = 0.5
    pretraining: float = 0.25

    def __post_init__(self) -> None:
        check_at_least(self, 0, "weight")
        check_fractions(self, "pretraining")
