"""Typed configuration of Stage 1, read from YAML: data, model, training.

An unknown key or a wrong value is an error that names the key.
"""

from __future__ import annotations

import re
from dataclasses import field, fields
from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from vessa_common import patients
from vessa_common.layouts import Layout
from vessa_common.precision import Precision
from vessa_server.training.tasks import ClassText

_COUNTS = (
    "groups",
    "asked",
    "max_templates",
    "accumulate",
    "repeats",
    "log_every",
    "image_every",
    "validate_every",
    "validation_batches",
)
_SHARES = (
    "decay_share",
    "synthetic_share",
    "nested",
    "volume_share",
    "text_share",
    "text_decides",
    "renamed",
    "seg_distractor_probability",
    "distractor_probability",
    "retrieval_probability",
    "free_pose",
)
STRICT = ConfigDict(extra="forbid")
RECIPES = Path(__file__).parent / "recipes"


class ConfigError(ValueError):
    """The configuration is wrong; the message names the key and what was expected."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SourceConfig:
    """An annotated data set.

    Attributes:
        folder: below the folder of the data; for layout ``plain`` the one with the files.
        layout: ``plain``, ``nnunet`` or ``msd``; see :mod:`vessa_common.layouts`.
        classes: texts of labels 1, 2, ...; may be left out where ``dataset.json`` names them,
            whose label values are then taken in rising order.
        weight: share of the tasks, relative to the other sources.
        subject_pattern: a regular expression for the start of a file's path in the folder, which
            says whom it is of; its first group, where it has one. Without, names and folders tell,
            see :mod:`vessa_common.patients`. Subjects are held out whole.
        slices_per_volume: along each axis, at most; evenly spread.
        axes: along which volumes are cut into slices.
        spacing: of the voxels along the three axes, where the files do not know it.
        window: intensities that become black and white, such as -160, 240 for soft tissue in
            CT; percentiles of each volume where it is left out.
        channel: which image or modality of a subject with several.
        binary: every label above 0 is the one class.
        mirror: whether mirrored and turned images are of the same kind; not where left and
            right have names.
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
    subject_pattern: str | None = None
    slices_per_volume: int = 24

    def subject_of(self, name: str) -> str | None:
        """Whom a file of this name is of; None where the pattern does not match."""
        if self.subject_pattern is None:
            return patients.names([name])[0]
        found = re.match(self.subject_pattern, name)
        return found and found.group(found.re.groups and 1)

    def __post_init__(self) -> None:
        try:
            re.compile(self.subject_pattern or "")
        except re.error as error:
            raise ValueError(f"subject_pattern: {self.subject_pattern!r}: {error}") from error
        if self.slices_per_volume < 1:
            raise ValueError(f"slices_per_volume: {self.slices_per_volume}, expected at least 1")
        if self.weight <= 0:
            raise ValueError(f"weight: {self.weight}, expected above 0")
        if not self.axes or not set(self.axes) <= {0, 1, 2}:
            raise ValueError(f"axes: {self.axes}, expected some of 0, 1, 2")
        if self.window is not None and self.window[0] >= self.window[1]:
            raise ValueError(f"window: {self.window}, expected the lower value first")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DataConfig:
    """Real sources; what of a batch is made up is in :class:`TrainingConfig`."""

    sources: tuple[SourceConfig, ...] = ()


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

    A batch holds ``groups`` tasks of ``images_per_group`` images, of each of which ``asked``
    structures are asked; an update sees ``accumulate`` batches in each process.

    Attributes:
        steps: updates in all; 0 where only the clock ends the run.
        minutes: of training after which a run ends, 0 for no such limit.
        decay_share: last part of the run, by updates or by the clock, in which the learning rate
            falls to 1 %; before that it is constant. 0 leaves a run that another can go on from.
        synthetic_share: share of the tasks that are made up.
        nested: share of these about a ring, its cavity, and a shape that leans on the ring: a
            prior for hearts in short axis; 0 to learn without it.
        max_templates: templates of a pair, at most.
        repeats: looks at each picture of a task; above 1 they are templates of each other, for
            banks of few pictures.
        volume_share: share of the tasks of volumes, real or made up, that show slices of two
            subjects, with ends where the structure is absent.
        text_share: share of the batches that the VLM reads.
        text_decides: share of their tasks whose templates show all structures, so that only the
            text says which one is asked.
        renamed: share of the tasks whose structures have names that mean nothing; what is asked
            is then to be read from the overlay, as for an organ that nobody trained on.
        seg_distractor_probability: share of the pairs with the VLM's answer to another question,
            where the template tells that it is wrong.
        distractor_probability: share of the pairs with a wrong template beside the right ones.
        retrieval_probability: share of the batches whose templates are retrieved, not random.
        language_weight, prior_weight, seg_map_weight, iou_weight, presence_weight: of the
            losses beside the masks'.
        view_shares: of tasks that show whole images, zoom into them, and show their structures
            as a second look does, large and in the middle.
        zoom_range: of whole and zoomed images.
        variation: strength of each image's own change of place, size and rotation.
        free_pose: share of the tasks whose images are turned and mirrored each on their own.
        structure_shift: by how much single structures change their intensity (as in SynthSeg).
        compile: whether torch.compile fuses the model's kernels, on a GPU.
        precision: ``fp32``, ``bf16``, or ``auto`` for bf16 where the hardware has it.
        validate_every: updates between two looks at the held-out subjects.
    """

    steps: int = 0
    minutes: float = 0.0
    decay_share: float = 0.2
    groups: int = 4
    images_per_group: int = 6
    asked: int = 2
    max_templates: int = 4
    accumulate: int = 1
    synthetic_share: float = 0.5
    nested: float = 0.35
    repeats: int = 1
    volume_share: float = 0.5
    text_share: float = 0.2
    text_decides: float = 0.7
    renamed: float = 0.6
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
    view_shares: tuple[float, float, float] = (0.45, 0.15, 0.4)
    zoom_range: tuple[float, float] = (0.8, 2.6)
    variation: float = 1.0
    free_pose: float = 0.3
    structure_shift: float = 0.03
    compile: bool = False
    precision: Precision = "auto"
    seed: int = 0
    checkpoint_minutes: float = 3.0
    log_every: int = 20
    image_every: int = 500
    validate_every: int = 200
    validation_batches: int = 10

    def __post_init__(self) -> None:
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)}, expected at least 1")
        for name in _SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: {getattr(self, name)}, expected in [0, 1]")
        if self.learning_rate <= 0 or self.warmup_steps < 0:
            raise ValueError(
                f"learning_rate: {self.learning_rate}, warmup_steps: {self.warmup_steps}, expected "
                "above 0, and 0 or more"
            )
        if self.steps < 0 or self.minutes < 0 or not (self.steps or self.minutes):
            raise ValueError(
                f"steps: {self.steps}, minutes: {self.minutes}, expected one of them above 0"
            )
        if self.images_per_group <= self.max_templates:
            raise ValueError(
                f"images_per_group: {self.images_per_group}, expected more than max_templates, "
                f"{self.max_templates}, since an image is no template of itself"
            )
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay: {self.ema_decay}, expected in [0, 1)")
        if not 0 < self.zoom_range[0] <= self.zoom_range[1]:
            raise ValueError(f"zoom_range: {self.zoom_range}, expected 0 < lower <= upper")
        if min(self.view_shares) < 0 or abs(sum(self.view_shares) - 1) > 1e-6:
            raise ValueError(f"view_shares: {self.view_shares}, expected a sum of 1")


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
