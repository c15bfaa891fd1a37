"""How slices are varied."""

from __future__ import annotations

from dataclasses import field

from pydantic.dataclasses import dataclass

from ssl_trainer.config.checks import STRICT, check_at_least, check_fractions


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AugmentationConfig:
    """Weak geometric augmentation of labelled and unlabelled slices.

    Attributes:
        rotation_degrees: largest rotation to either side; half of the slices are turned.
        zoom_min, zoom_max: range of the zoom.
        shift: largest shift, as a fraction of the side.
        mirror: mirror along both axes at random; not where left and right are different.
        quarter_turns: share of the slices that are turned by a random quarter and flipped, instead
            of a little; 0.5 is what UniMatch has for ACDC.
    """

    rotation_degrees: float = 20.0
    zoom_min: float = 0.8
    zoom_max: float = 1.5
    shift: float = 0.1
    mirror: bool = False
    quarter_turns: float = 0.0

    def __post_init__(self) -> None:
        check_fractions(self, "quarter_turns")
        check_at_least(self, 0, "rotation_degrees", "shift", "zoom_max")
        if not 0 < self.zoom_min <= self.zoom_max:
            raise ValueError(
                f"zoom_min: {self.zoom_min}, expected above 0 and at most zoom_max, {self.zoom_max}"
            )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RichAugmentationConfig:
    """Strong variation of labelled slices, for trainings with a handful of them.

    What generalises from one patient is mostly how its slices are varied. The method is that of
    SynthSeg: shape through a random deformation, contrast structure by structure.

    Attributes:
        geometry: rotation, zoom, shift and mirroring, in place of the weak ones. Any angle suits
            images that come in any orientation, and takes longer to learn.
        elastic: strength of a smooth random displacement, as a fraction of the side.
        structure_shift: deviation by which each structure becomes brighter or darker on its own,
            for an image in [0, 1].
        gamma: deviation of the logarithm of the exponent of the contrast curve.
        bias: strength of a smooth field that brightens and darkens.
        noise: largest deviation of white noise.
    """

    geometry: AugmentationConfig = field(
        default_factory=lambda: AugmentationConfig(
            rotation_degrees=30.0, zoom_min=0.7, zoom_max=1.5
        )
    )
    elastic: float = 0.04
    structure_shift: float = 0.12
    gamma: float = 0.35
    bias: float = 0.25
    noise: float = 0.06

    def __post_init__(self) -> None:
        check_at_least(self, 0, "elastic", "structure_shift", "gamma", "bias", "noise")
