"""From a data set as it is published to one that trains: window, resolution, split by patient.

Axes: X Y Z space.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from ssl_trainer.config import ConfigError, check_window, parse, to_dict
from ssl_trainer.data.cases import common_axis
from vessa_client import AnyArray, UInt8Array, files

STRICT = ConfigDict(extra="forbid")
CONFIG_FILE = "config.yaml"
# How the volumes of a folder were made.
RECIPE_FILE = "prepared.yaml"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PrepareConfig:
    """How volumes are prepared.

    Attributes:
        structures: label values of the data set and the structures' names; other labels become
            background.
        window: intensities that become black and white, in Hounsfield units for CT.
        size: pixels of the longer in-plane side; shorter volumes stay as they are.
        slice_mm: distance of slices; thicker ones stay as they are.
        image_pattern: regular expression of an image's file name; its first group is the
            patient, and the label file's name begins with it.
        labelled, val, test: shares of the patients; ``labelled`` is one of those for training.
        seed: of the split.
    """

    structures: dict[int, str]
    window: tuple[float, float]
    size: int = 256
    slice_mm: float = 5.0
    image_pattern: str = r"^(.+?)(?:_0000)?\.nii(?:\.gz)?$"
    labelled: float = 0.05
    val: float = 0.1
    test: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.structures or not all(0 < value < 256 for value in self.structures):
            raise ValueError(f"structures: {self.structures}, expected label values from 1 to 255")
        check_window(self.window)
        for name in ("labelled", "val", "test"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)}, expected a share, 0..1")
        if self.val + self.test >= 1:
            raise ValueError("val, test: nothing is left for training")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Recipe:
    """A data set's preparation, and the training that fits it (without its ``data.root``)."""

    prepare: PrepareConfig
    train: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Patient:
    """One volume and its labels, where there are any."""

    name: str
    image: Path
    labels: Path | None


def load(file: Path) -> Recipe:
    """Read a recipe.

    Raises:
        ConfigError: missing, not YAML, or a key or value is wrong.
    """
    try:
        content = yaml.safe_load(file.read_text())
        return TypeAdapter(Recipe).validate_python(content)
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"recipe: {file}: {error}") from error
    except ValidationError as error:
        lines = [f"recipe: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise ConfigError("\n".join(lines)) from error


def find(config: PrepareConfig, images: Path, labels: Path) -> list[Patient]:
    """Volumes of ``images`` with their labels in ``labels``, by patient.

    Raises:
        ConfigError: there are none, or a name does not fit ``image_pattern``.
    """
    pattern = re.compile(config.image_pattern)
    patients = []
    for image in files.find_images(images):
        match = pattern.search(image.name)
        if match is None or not match.groups():
            raise ConfigError(f"prepare.image_pattern: finds no patient in {image.name!r}")
        name = match.group(1)
        candidates = [labels / f"{name}{suffix}" for suffix in files.NIFTI_SUFFIXES]
        known = next((c for c in candidates if c.is_file()), None)
        patients.append(Patient(name, image, known))
    if not any(patient.labels for patient in patients):
        raise ConfigError(f"{images}: no volume with a label file NAME.nii.gz in {labels}")
    return patients


def split(config: PrepareConfig, patients: Sequence[Patient]) -> dict[str, list[Patient]]:
    """Patients of ``train``, ``val`` and ``test``, and which of ``train`` are ``labelled``.

    Patients without labels are for training only. At least one is labelled.
    """
    rng = np.random.default_rng(config.seed)
    annotated = [p for p in patients if p.labels is not None]
    order = [annotated[i] for i in rng.permutation(len(annotated))]
    held = {name: round(getattr(config, name) * len(order)) for name in ("test", "val")}
    test, val = order[: held["test"]], order[held["test"] : held["test"] + held["val"]]
    train = order[held["test"] + held["val"] :]
    if not train:
        raise ConfigError(f"prepare: {len(order)} annotated patients are too few for this split")
    train_count = len(train) + len(patients) - len(annotated)
    labelled = train[: max(1, math.ceil(config.labelled * train_count))]
    return {
        "train": train + [p for p in patients if p.labels is None],
        "val": val,
        "test": test,
        "labelled": labelled,
    }


def prepare(
    recipe: Recipe,
    images: Path,
    labels: Path,
    out: Path,
    *,
    advance: Callable[[int], object] = lambda total: None,
) -> Path:
    """Write the prepared data set and its ``config.yaml``; returns that file.

    Volumes that are there already are kept, so a run that was cut off goes on. ``advance`` is
    called after each volume with their number. Stored are 8 bits, which are read back in the
    original unit: prepared and original volumes take the same way through the window.

    Raises:
        ConfigError: the recipe does not fit the data, or is not that of the volumes in ``out``.
        FileError: a volume cannot be read, or labels lie elsewhere than their image.
    """
    config = recipe.prepare
    parts = split(config, find(config, images, labels))
    values = list(config.structures)
    content = dict(recipe.train)
    content["data"] = {
        **content.get("data", {}),
        "root": str(out.resolve()),
        "classes": [config.structures[value] for value in values],
        "labelled": sorted(p.name for p in parts["labelled"]),
        "patient_pattern": r"^(.+)\.nii\.gz$",
        "window": list(config.window),
    }
    data = parse(content).data
    axis = common_axis(p.image for p in parts["labelled"]) if data.axis is None else data.axis
    content["data"]["axis"] = axis
    training = to_dict(parse(content))
    training["data"]["root"] = "."
    _keep_recipe(config, axis, out)
    total = sum(len(parts[name]) for name in ("train", "val", "test"))
    for name in ("train", "val", "test"):
        for patient in parts[name]:
            target = out / name / f"{patient.name}.nii.gz"
            if not target.is_file():  # written last, so its labels are there too
                _prepare_volume(patient, target, config, values, axis)
            advance(total)
    file = out / CONFIG_FILE
    files.write_text(file, yaml.safe_dump(training, sort_keys=False))
    return file


def _keep_recipe(config: PrepareConfig, axis: int | None, out: Path) -> None:
    """Write what the volumes are made by beside them, or compare it with what is there."""
    file = out / RECIPE_FILE
    recipe = TypeAdapter(PrepareConfig).dump_python(config, mode="json")
    text = yaml.safe_dump({"prepare": recipe, "axis": axis}, sort_keys=False)
    if file.is_file() and file.read_text() == text:
        return
    if any((out / name).exists() for name in ("train", "val", "test")):
        raise ConfigError(f"--out: {out} holds volumes of another recipe; give another folder")
    files.write_text(file, text)


def _prepare_volume(
    patient: Patient,
    target: Path,
    config: PrepareConfig,
    values: Sequence[int],
    axis: int | None,
) -> None:
    image = files.read(patient.image, axis=axis)
    assert image.nifti is not None
    assert image.axis is not None
    zooms = [float(z) for z in image.nifti.header.get_zooms()[:3]]
    shape = _shape(image.pixels.shape, zooms, image.axis, config)
    low, high = config.window
    pixels = np.nan_to_num(image.pixels.astype(np.float32), nan=low)
    unit = np.clip((pixels - low) / (high - low), 0, 1)
    affine = image.nifti.affine @ _voxels(image.pixels.shape, shape)
    if patient.labels is not None:
        stored = files.read(patient.labels, axis=image.axis, labels=True)
        image.check_same_space(stored)
        lookup = np.zeros(256, dtype=np.uint8)
        lookup[list(values)] = np.arange(1, len(values) + 1)
        mask = _resample_labels(lookup[stored.pixels], shape, len(values))
        files.write_volume(target.with_name(f"{patient.name}_gt.nii.gz"), mask, affine)
    grey: UInt8Array = (255 * _resample(unit, shape)).round().astype(np.uint8)
    files.write_volume(target, grey, affine, scaling=((high - low) / 255, low))


def _shape(
    shape: tuple[int, ...], zooms: Sequence[float], axis: int, config: PrepareConfig
) -> tuple[int, ...]:
    """Voxels along each axis after resampling; never more than before."""
    longer = max(n for i, n in enumerate(shape) if i != axis)
    scale = min(1.0, config.size / longer)
    thin = min(1.0, zooms[axis] / config.slice_mm)
    return tuple(max(1, round(n * (thin if i == axis else scale))) for i, n in enumerate(shape))


def _voxels(before: Sequence[int], after: Sequence[int]) -> AnyArray:
    """Map from new voxel indices to old ones; the volume's borders stay where they are."""
    factors = np.array(before) / np.array(after)
    matrix = np.diag([*factors, 1.0])
    matrix[:3, 3] = (factors - 1) / 2
    return matrix


def _resample(volume_XYZ: AnyArray, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Mean over what each new voxel covers: no aliasing, no halo, and nothing moves."""
    maps = torch.from_numpy(np.ascontiguousarray(volume_XYZ)).float()[None, None]
    out: npt.NDArray[np.float32] = F.interpolate(maps, size=shape, mode="area")[0, 0].numpy()
    return out


def _resample_labels(labels_XYZ: AnyArray, shape: tuple[int, ...], classes: int) -> UInt8Array:
    """The label that covers most of each new voxel, background among them."""
    most = _resample(labels_XYZ == 0, shape)
    out = np.zeros(shape, dtype=np.uint8)
    for value in range(1, classes + 1):
        share = _resample(labels_XYZ == value, shape)
        out[share > most] = value
        most = np.maximum(most, share)
    return out
