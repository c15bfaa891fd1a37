"""Networks that learn."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Tag
from pydantic.dataclasses import dataclass

from ssl_trainer.config.checks import STRICT, check_counts


@dataclass(frozen=True, kw_only=True, config=STRICT)
class UNetConfig:
    """U-Net: channels of the five levels and of the last one."""

    default_rate: ClassVar[float] = 1e-3

    kind: Literal["unet"] = "unet"
    channels: tuple[int, int, int, int, int, int] = (16, 16, 32, 64, 128, 16)

    def __post_init__(self) -> None:
        check_counts(self, "channels")

    @property
    def side_unit(self) -> int:
        """What the side of an image must be a multiple of: it is halved four times."""
        return 16


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DptStudentConfig:
    """DINOv2 with DPT's decoder, as in UniMatch V2.

    Attributes:
        pretrained: folder with a published DINOv2 (``config.json``, ``model.safetensors``), whose
            sizes then count; random weights of the sizes below without, which need a higher
            learning rate.
        backbone: content of its ``config.json``, which a run keeps, so that its students are built
            where that folder is not.
        patch_size: in pixels; the same as in ``pretrained``.
        head_multiplier: learning rate of the decoder, which is new, as a multiple of DINOv2's.
        neck_channels, fusion_channels: of DPT's decoder.
    """

    default_rate: ClassVar[float] = 5e-6

    kind: Literal["dinov2-dpt"]
    pretrained: Path | None = None
    backbone: dict[str, Any] | None = None
    head_multiplier: float = 40.0
    hidden_size: int = 384
    num_layers: int = 12
    num_heads: int = 6
    patch_size: int = 14
    image_size: int = 518
    neck_channels: tuple[int, int, int, int] = (48, 96, 192, 384)
    fusion_channels: int = 64

    def __post_init__(self) -> None:
        if self.num_layers % 4:
            raise ValueError(f"num_layers: {self.num_layers}, expected a multiple of 4")
        check_counts(self, "hidden_size", "num_layers", "num_heads", "patch_size", "image_size")
        check_counts(self, "neck_channels", "fusion_channels")
        if self.head_multiplier <= 0:
            raise ValueError(f"head_multiplier: {self.head_multiplier}, expected above 0")

    @property
    def side_unit(self) -> int:
        """What the side of an image must be a multiple of: it is cut into patches."""
        return self.patch_size


def _kind(student: object) -> object:
    if isinstance(student, dict):
        return student.get("kind", "unet")
    return getattr(student, "kind", None)


StudentConfig = Annotated[
    Annotated[UNetConfig, Tag("unet")] | Annotated[DptStudentConfig, Tag("dinov2-dpt")],
    Discriminator(_kind),
]
