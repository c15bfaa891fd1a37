"""Typed configuration of Stage 1, read from YAML: data, model, training.

An unknown key or a wrong value is an error that names the key.
"""

from __future__ import annotations

from dataclasses import field, fields
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from vessa_server.training.layouts import Layout
from vessa_server.training.tasks import ClassText

STRICT = ConfigDict(extra="forbid")
RECIPES = Path(__file__).parent / "recipes"


class ConfigError(ValueError):
    """The configuration is wrong; the message names the key and what was expected."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SourceConfig:
    """An annotated data set.

    Attributes:
        folder: below the folder of the data; for layout ``plain`` the one with the files.
        layout: ``plain``, ``nnunet`` or ``msd``; see :mod:`.layouts`.
        classes: texts of labels 1, 2, ...; may be left out where ``dataset.json`` names them,
            whose label values are then taken in rising order.
        weight: share of the tasks, relative to the other sources.
        axes: along which volumes are cut into slices.
        spacing: of the voxels along the three axes, where the files do not know it.
        window: intensities that become black and white, such as -160, 240 for soft tissue in
            CT; percentiles of each volume where it is left out.
        channel: which image or modality of a subject with several.
        binary: every label above 0 is the one class.
        mirror: whether mirrored images are of the same kind; not where left and right have
            names.
        memory_gib: of memory for subjects that were read, in each process.
    """

    folder: str
    layout: Layout = "plain"
    classes: tuple[ClassText, ...] = ()
    weight: float = 1.0
    axes: tuple[int, ...] = (2,)
    spacing: tuple[float, float, float] | None = None
    window: tuple[float, float] | None = None
    channel: int = 0
    binary: bool = False
    mirror: bool = True
    memory_gib: float = 4.0

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise ValueError(f"weight: {self.weight}, expected above 0")
        if not self.axes or not set(self.axes) <= {0, 1, 2}:
            raise ValueError(f"axes: {self.axes}, expected some of 0, 1, 2")
        if self.window is not None and self.window[0] >= self.window[1]:
            raise ValueError(f"window: {self.window}, expected the lower value first")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DataConfig:
    """Real sources, and the share of made-up tasks."""

    sources: tuple[SourceConfig, ...] = ()
    synthetic_weight: float = 5.0

    def __post_init__(self) -> None:
        if self.synthetic_weight < 0 or not (self.sources or self.synthetic_weight):
            raise ValueError(
                f"synthetic_weight: {self.synthetic_weight}, expected above 0 without sources"
            )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FineTuningConfig:
    """What of a model with published weights is trained, and how fast.

    Attributes:
        encoder_rate: learning rate of the image encoder relative to the rest; 0 freezes it.
        lora_rank: rank of the low-rank adapters in the language model, whose own weights stay
            frozen then; 0 trains the whole VLM.
        lora_alpha: scale of the adapters' sum.
    """

    encoder_rate: float = 1.0
    lora_rank: int = 0
    lora_alpha: int = 32

    def __post_init__(self) -> None:
        if self.encoder_rate < 0:
            raise ValueError(f"encoder_rate: {self.encoder_rate}, expected 0 or more")
        if self.lora_rank < 0:
            raise ValueError(f"lora_rank: {self.lora_rank}, expected 0 or more")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainingConfig:
    """Episodes, losses and optimiser.

    A batch holds ``groups`` tasks of ``images_per_group`` images; an update sees
    ``accumulate`` batches in each process.

    Attributes:
        steps: updates in all.
        max_classes: classes asked in one task.
        pairs_per_group: image-class pairs of one task, at most.
        max_templates: templates of a pair, at most.
        text_decides: share of the tasks with several structures whose templates show all of
            them, so that only the text says which one is asked.
        renamed: share of the tasks whose structures have names that mean nothing; what is asked
            is then to be read from the overlay, as for an organ that nobody trained on.
        seg_dropout: share of the batches without the VLM's answer.
        seg_distractor_probability: share of the pairs with the VLM's answer to another question,
            where the template tells that it is wrong.
        distractor_probability: share of the pairs with a wrong template beside the right ones.
        retrieval_probability: share of the batches whose templates are retrieved, not random.
        language_weight, prior_weight, seg_map_weight, iou_weight, presence_weight: of the
            losses beside the masks'.
        zoom_range: of all images of a task.
        focus_probability: share of the tasks that show their structures as a second look does,
            large and in the middle.
        variation: strength of each image's own change of place, size and rotation.
        turn_probability: share of the images that are turned by any angle on their own.
        structure_shift: by how much single structures change their intensity (as in SynthSeg).
        precision: ``fp32``, ``bf16``, or ``auto`` for bf16 on GPUs that have it.
        validate_every: updates between two looks at the held-out subjects.
    """

    steps: int
    groups: int = 3
    images_per_group: int = 4
    max_classes: int = 2
    pairs_per_group: int = 8
    max_templates: int = 3
    accumulate: int = 1
    text_decides: float = 0.4
    renamed: float = 0.6
    seg_dropout: float = 0.15
    seg_distractor_probability: float = 0.25
    distractor_probability: float = 0.1
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_steps: int = 100
    gradient_clip: float = 1.0
    ema_decay: float = 0.998
    retrieval_probability: float = 0.5
    language_weight: float = 0.1
    prior_weight: float = 0.5
    seg_map_weight: float = 0.5
    iou_weight: float = 0.5
    presence_weight: float = 0.2
    zoom_range: tuple[float, float] = (0.5, 1.6)
    focus_probability: float = 0.5
    variation: float = 1.0
    turn_probability: float = 0.0
    structure_shift: float = 0.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    seed: int = 0
    checkpoint_minutes: float = 3.0
    log_every: int = 20
    image_every: int = 500
    validate_every: int = 200
    validation_batches: int = 10

    def __post_init__(self) -> None:
        for name in ("steps", "groups", "accumulate", "log_every", "validate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)}, expected at least 1")
        if self.images_per_group <= self.max_templates:
            raise ValueError(
                f"images_per_group: {self.images_per_group}, expected more than max_templates, "
                f"{self.max_templates}, since an image is no template of itself"
            )
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay: {self.ema_decay}, expected in [0, 1)")
        if not 0 < self.zoom_range[0] <= self.zoom_range[1]:
            raise ValueError(f"zoom_range: {self.zoom_range}, expected 0 < lower <= upper")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Stage1Config:
    """A whole run.

    Attributes:
        preset: size of the model.
        canvas: side of the training images, the preset's where it is left out. A smaller one
            is faster and serves to begin with: all weights are the same at every size.
    """

    training: TrainingConfig
    preset: str = "nano"
    canvas: int | None = None
    data: DataConfig = field(default_factory=DataConfig)
    fine_tuning: FineTuningConfig = field(default_factory=FineTuningConfig)


def load(file: Path | str, overrides: dict[str, Any] | None = None) -> Stage1Config:
    """Read a YAML file, or the recipe of that name.

    ``overrides`` replace keys of ``training``; None leaves the file's value.

    Raises:
        ConfigError: the file is missing, not YAML, or a key or value is wrong.
    """
    path = Path(file)
    if not path.is_file() and (RECIPES / f"{file}.yaml").is_file():
        path = RECIPES / f"{file}.yaml"
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        known = ", ".join(sorted(f.stem for f in RECIPES.glob("*.yaml")))
        raise ConfigError(
            f"config: {path}: {error.strerror}; expected a file or one of {known}"
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"config: {path} is not YAML: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("training"), dict):
        raise ConfigError(f"config: {path}: expected a key `training` with keys below it")
    own = {f.name for f in fields(Stage1Config)}
    for key, value in (overrides or {}).items():
        if value is not None:
            (content if key in own else content["training"])[key] = value
    try:
        return TypeAdapter(Stage1Config).validate_python(content)
    except ValidationError as error:
        lines = [
            f"config: {'.'.join(str(p) for p in e['loc'])}: {e['msg']}" for e in error.errors()
        ]
        raise ConfigError("\n".join(lines)) from error


def to_dict(config: Stage1Config) -> dict[str, Any]:
    """Plain values, ready for YAML or JSON."""
    plain: dict[str, Any] = TypeAdapter(Stage1Config).dump_python(config, mode="json")
    return plain
