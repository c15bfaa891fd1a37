"""Typed configuration of a training run; read from YAML by :func:`load`.

An unknown key or a value of the wrong type is an error that names the key.
"""

from __future__ import annotations

import math
import re
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import (
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Tag,
    TypeAdapter,
    ValidationError,
)
from pydantic.dataclasses import dataclass

from vessa_client.wire import MAX_VOLUME_SLICES
from vessa_common.precision import Precision

STRICT = ConfigDict(extra="forbid")
Optimizer = Literal["adamw", "sgd"]
# See ssl_trainer.methods; its own keys are in the section of its name.
Method = Literal["unimatch", "mean-teacher", "cps", "bcp"]
# How the images of a data set lie; see ssl_trainer.data.cases.
Layout = Literal["plain", "nnunet", "msd", "ssl4mis"]
# Of strong views: cross-entropy, soft Dice, or their mean.
UnlabelledLoss = Literal["cross_entropy", "dice", "both"]

# Keys that are files or folders.
PATHS = (("data", "root"), ("student", "pretrained"), ("assistant", "root_certificates"))
# Slicing axes of volumes in right, anterior, superior.
AXES = ("sagittal", "coronal", "axial")


class ConfigError(ValueError):
    """The configuration is wrong; the message names the key and what was expected."""


def _axis(value: object) -> int:
    names = (*AXES, 0, 1, 2)
    if value not in names:
        raise ValueError(f"{value!r}, expected {', '.join(AXES)}, or 0, 1, 2")
    return names.index(value) % 3


Axis = Annotated[int, BeforeValidator(_axis)]


def _check_counts(config: object, *names: str) -> None:
    """Numbers of things, or tuples of such, are positive."""
    for name in names:
        value = getattr(config, name)
        if min(value if isinstance(value, tuple) else (value,)) < 1:
            raise ValueError(f"{name}: {value}, expected at least 1")


def _check_fractions(config: object, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"{name}: {getattr(config, name)}, expected a fraction, 0..1")


def check_window(window: tuple[float, float]) -> None:
    """The lower end comes first.

    Raises:
        ValueError: it does not, or an end is not finite.
    """
    if not -math.inf < window[0] < window[1] < math.inf:
        raise ValueError(f"window: {window}, expected two numbers, the lower one first")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DataConfig:
    """Where the images are and which of them count as labelled.

    Attributes:
        root: folder of the data set, in one of the layouts of :mod:`ssl_trainer.data.cases`.
        layout: which one; without it the folder is looked at.
        classes: names of labels 1, 2, ...; the same as in the template bank. Where
            ``dataset.json`` names label values, those count in rising order.
        labelled: patients whose labels are used; empty means all that have a label file.
        patient_pattern: regular expression whose first group is the patient in a file's path below
            the folder of its split. Without it names and folders tell, see
            :mod:`vessa_common.patients`.
        channel: which image or modality of a case with several; null for the first where a data set
            says that it has several, and else for files with one only.
        size: side of the square that the student sees, in pixels; a multiple of 16 for a U-Net,
            of the patches' side for DINOv2.
        window: intensities that become black and white, in Hounsfield units for CT; null for
            percentiles of each slice, where intensities have no unit (MRI, pictures).
        axis: along which volumes are sliced: ``sagittal``, ``coronal``, ``axial`` or 0, 1, 2; null
            for the one along which most labelled volumes were acquired, which a run keeps.
        watch_quality: read the labels of unlabelled patients, where there are any, to log how
            good the pseudo-labels are. Nothing is trained on them.
    """

    root: Path
    classes: tuple[str, ...]
    layout: Layout | None = None
    labelled: tuple[str, ...] = ()
    patient_pattern: str | None = None
    channel: int | None = None
    size: int = 128
    window: tuple[float, float] | None = None
    axis: Axis | None = None
    watch_quality: bool = False

    def __post_init__(self) -> None:
        if self.window is not None:
            check_window(self.window)
        if not self.classes:
            raise ValueError("classes: empty, expected the names of labels 1, 2, ...")
        if self.channel is not None and self.channel < 0:
            raise ValueError(f"channel: {self.channel}, expected 0 or more")
        try:
            groups = re.compile(self.patient_pattern or "()").groups
        except re.error as error:
            raise ValueError(f"patient_pattern: {self.patient_pattern!r}: {error}") from error
        if not groups:
            raise ValueError(f"patient_pattern: {self.patient_pattern!r}, expected a group")


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
        _check_fractions(self, "quarter_turns")
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


@dataclass(frozen=True, kw_only=True, config=STRICT)
class UNetConfig:
    """U-Net: channels of the five levels and of the last one."""

    default_rate: ClassVar[float] = 1e-3

    kind: Literal["unet"] = "unet"
    channels: tuple[int, int, int, int, int, int] = (16, 16, 32, 64, 128, 16)

    def __post_init__(self) -> None:
        _check_counts(self, "channels")

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
        _check_counts(self, "hidden_size", "num_layers", "num_heads", "patch_size", "image_size")
        _check_counts(self, "neck_channels", "fusion_channels")
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
        _check_fractions(self, "cutmix_probability")
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


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CpsConfig:
    """Cross pseudo supervision (Chen et al., 2021).

    Attributes:
        weight: of each other's labels at the end of the run; it rises to that. SSL4MIS has 0.1.
    """

    weight: float = 0.1


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
        _check_fractions(self, "pretraining")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AssistantConfig:
    """VESSA as third source of supervision.

    Attributes:
        server: host:port, or None for UniMatch V2 alone. A token is read from ``VESSA_TOKEN``.
        bank: name of the server's bank; empty for its default one.
        root_certificates: PEM file of those that the server's certificate is checked with; TLS is
            used where it is given.
        wait_seconds: how long a run that starts waits for a server that does not answer yet.
        required: stop when the server goes away, instead of training on alone.
        weight: λ_v at first. It falls to 0 as a cosine: a teacher becomes better than who taught
            it. With 0 VESSA is asked for regions only.
        decay_end: fraction of the run at which λ_v has reached 0; from then on VESSA is not asked.
        loss: for VESSA's labels. With Dice a small structure counts as much as the background, so
            that it appears earlier.
        teacher_share: share of the teacher's prediction in VESSA's labels, which rises to that from
            0 in the first half of the run. Two that err in different places are better together,
            once the teacher is any good.
        feedback_start: fraction of the run from which the teacher's probabilities are sent as
            prompts.
        volume_slices: most slices of a volume that VESSA looks at together to find where in it the
            structures are. 0 asks about every slice alone: where they are not found in the same
            place all over a volume.
        ahead: updates by which VESSA is asked ahead. The first look at a volume takes as long as
            several updates: the more are under way, the less training waits. Prompts are as old.
        timeout_seconds: longest wait for the answers of a batch.
        retry_seconds: how long a server that failed is left alone.
    """

    server: str | None = None
    bank: str = ""
    root_certificates: Path | None = None
    wait_seconds: float = 20.0
    required: bool = False
    weight: float = 1.0
    decay_end: float = 0.4
    loss: UnlabelledLoss = "both"
    teacher_share: float = 0.5
    feedback_start: float = 0.1
    volume_slices: int = 6
    ahead: int = 16
    timeout_seconds: float = 60.0
    retry_seconds: float = 10.0

    def __post_init__(self) -> None:
        _check_counts(self, "ahead")
        if not self.timeout_seconds > 0:
            raise ValueError(f"timeout_seconds: {self.timeout_seconds}, expected above 0")
        for name in ("wait_seconds", "retry_seconds"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: {getattr(self, name)}, expected at least 0")
        if self.weight < 0:
            raise ValueError(f"weight: {self.weight}, expected at least 0")
        if not 0 <= self.volume_slices <= MAX_VOLUME_SLICES:
            raise ValueError(
                f"volume_slices: {self.volume_slices}, expected 0..{MAX_VOLUME_SLICES}"
            )
        _check_fractions(self, "decay_end", "feedback_start", "teacher_share")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainConfig:
    """One run.

    ``method`` is how the student learns from unlabelled slices; VESSA helps ``unimatch``.
    ``augmentation`` is the weak one, of unlabelled slices and, where ``labelled_augmentation`` is
    null, of labelled ones too. ``sgd`` has a momentum of 0.9. An update sees ``accumulate``
    batches in each process. ``learning_rate`` is that of the U-Net, or of DINOv2, whose decoder has
    ``student.head_multiplier`` times as much; null is 1e-3 for the U-Net and, as in UniMatch V2,
    5e-6 for DINOv2. It falls as a polynomial.
    ``regions``: the student sees the part of each volume that shows the structures, upright. A
    small network finds it, which learns from the labelled volumes, and from what VESSA, where there
    is a server, says of the others. Without, it sees whole slices as they lie.
    ``precision`` of the networks while they train: ``fp32``, ``bf16``, or ``auto`` for bf16 where
    it is fast: on GPUs that have it, and on CPUs with AVX-512 BF16 or AMX.
    """

    data: DataConfig
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    labelled_augmentation: RichAugmentationConfig | None = field(
        default_factory=RichAugmentationConfig
    )
    student: StudentConfig = field(default_factory=UNetConfig)
    method: Method = "unimatch"
    unimatch: UniMatchConfig = field(default_factory=UniMatchConfig)
    mean_teacher: MeanTeacherConfig = field(default_factory=MeanTeacherConfig)
    cps: CpsConfig = field(default_factory=CpsConfig)
    bcp: BcpConfig = field(default_factory=BcpConfig)
    assistant: AssistantConfig = field(default_factory=AssistantConfig)
    regions: bool = True
    steps: int = 2500
    labelled_batch: int = 4
    unlabelled_batch: int = 4
    accumulate: int = 1
    precision: Precision = "auto"
    optimizer: Optimizer = "adamw"
    learning_rate: float | None = None
    weight_decay: float = 1e-2
    poly_power: float = 0.9
    validate_every: int = 250
    checkpoint_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        _check_counts(self, "labelled_batch", "unlabelled_batch", "accumulate")
        _check_counts(self, "steps", "validate_every", "checkpoint_every")
        _check_size(self.data.size, self.student.side_unit, self.student.kind)
        if self.method != "unimatch" and self.assistant.server is not None:
            raise ValueError(
                f"assistant.server: {self.assistant.server}, but VESSA does not help with "
                f"{self.method}; expected null, or method: unimatch"
            )
        if self.method == "bcp" and self.labelled_batch != self.unlabelled_batch:
            raise ValueError(
                f"unlabelled_batch: {self.unlabelled_batch}, expected labelled_batch, "
                f"{self.labelled_batch}: bcp pastes either into the other"
            )

    @property
    def method_section(self) -> str:
        """Name of the section with the method's own keys."""
        return self.method.replace("-", "_")

    @property
    def learns_unlabelled(self) -> bool:
        """Whether unlabelled slices are used."""
        return bool(getattr(self, self.method_section).weight or self.assistant.server)

    @property
    def rate(self) -> float:
        """The learning rate of the U-Net, or of DINOv2, at first."""
        return self.student.default_rate if self.learning_rate is None else self.learning_rate


def _check_size(size: int, unit: int, kind: str) -> None:
    """Another size would be scaled or padded, out of sight."""
    if size % unit or size <= 0:
        below, above = max(unit, size // unit * unit), max(unit, -(-size // unit) * unit)
        nearest = f"{below} or {above}" if below < above else f"{above}"
        raise ValueError(
            f"data.size: {size}, expected a multiple of {unit} for {kind}; nearest: {nearest}"
        )


def load(file: Path, overrides: list[str] | None = None) -> TrainConfig:
    """Read a YAML file; ``overrides`` are ``key.path=value`` with YAML values.

    Relative paths are relative to the file.

    Raises:
        ConfigError: the file is missing, not YAML, or a key or value is wrong.
    """
    try:
        content = yaml.safe_load(file.read_text())
    except OSError as error:
        raise ConfigError(f"config: {file}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"config: {file} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"config: {file}: expected keys and values at the top")
    for override in overrides or []:
        _set(content, override)
    for section, key in PATHS:
        part = content.get(section)
        if isinstance(part, dict) and isinstance(part.get(key), str):
            part[key] = str((file.parent / part[key]).resolve())
    return parse(content)


def parse(content: dict[str, Any]) -> TrainConfig:
    """Dictionary to configuration.

    Raises:
        ConfigError: names the key and what was expected.
    """
    try:
        return TypeAdapter(TrainConfig).validate_python(content)
    except ValidationError as error:
        lines = [
            f"config: {'.'.join(str(p) for p in e['loc'])}: {e['msg']}" for e in error.errors()
        ]
        raise ConfigError("\n".join(lines)) from error


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Configuration to a dictionary of plain values, ready for YAML."""
    plain: dict[str, Any] = TypeAdapter(TrainConfig).dump_python(config, mode="json")
    return plain


def _set(content: dict[str, Any], override: str) -> None:
    path, separator, value = override.partition("=")
    if not separator:
        raise ConfigError(f"--set {override!r}: expected key.path=value")
    *parents, last = path.split(".")
    node = content
    for name in parents:
        if node.get(name) is None:  # also a section without keys
            node[name] = {}
        node = node[name]
        if not isinstance(node, dict):
            raise ConfigError(f"--set {override!r}: {name} has no keys below it")
    try:
        node[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: {value!r} is not YAML; quote text in it") from error
