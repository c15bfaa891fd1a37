"""A small data set in the layout of ACDC, for the trainer's tests."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from hypothesis import strategies as st
from safetensors.torch import load_file

from ssl_trainer.config import (
    AssistantConfig,
    DataConfig,
    DptStudentConfig,
    TrainConfig,
    UNetConfig,
)
from ssl_trainer.data.frame import Regions, Roi, WeakTransform
from ssl_trainer.data.slices import Slice
from ssl_trainer.data.store import SliceStore
from ssl_trainer.training import state
from support import picture

Draw = Callable[[st.SearchStrategy[Any]], Any]
# The smallest students of both kinds.
UNET = UNetConfig(channels=(4, 4, 8, 8, 8, 4))
DPT = DptStudentConfig(
    kind="dinov2-dpt",
    hidden_size=24,
    num_layers=4,
    num_heads=2,
    image_size=56,
    neck_channels=(8, 8, 16, 16),
    fusion_channels=8,
)
AFFINE = np.array([[-1.4, 0, 0, 90], [0, 1.6, 0, -70], [0, 0, 8.0, 5], [0, 0, 0, 1.0]])


def write_case(folder: Path, name: str, seed: int, *, labelled: bool, depth: int = 3) -> None:
    """A volume of pictures, with spacing and orientation, and its labels."""
    folder.mkdir(parents=True, exist_ok=True)
    slices = [picture(seed * 10 + z, (44, 48)) for z in range(depth)]
    for suffix, index in (("", 0), ("_gt", 1)):
        if index and not labelled:
            continue
        volume = np.stack([s[index] for s in slices], axis=2)
        nib.save(nib.Nifti1Image(volume, AFFINE), folder / f"{name}{suffix}.nii.gz")


def write_dataset(root: Path) -> Path:
    """Labelled p0, unlabelled p1 and p2, validation p3."""
    write_case(root / "train", "p0_frame01", 0, labelled=True)
    for patient in (1, 2):
        write_case(root / "train", f"p{patient}_frame01", patient, labelled=False)
    write_case(root / "val", "p3_frame01", 3, labelled=True)
    return root


def single_slices(count: int) -> list[Slice]:
    """Slices of as many volumes."""
    return [Slice(f"{i}/0", picture(i)[0], None, str(i)) for i in range(count)]


def stored(
    slices: list[Slice], size: int, regions: Regions | None = None, *, labelled: bool = False
) -> SliceStore:
    """Slices as a training on a CPU samples them."""
    return SliceStore(slices, size, regions or {}, torch.device("cpu"), labelled=labelled)


def small_config(
    root: Path, *, steps: int = 6, server: str | None = None, regions: bool = False
) -> TrainConfig:
    """A run of seconds; with ``regions`` only where the locator's training is shortened."""
    return TrainConfig(
        data=DataConfig(root=root, classes=("disc", "bar"), labelled=("p0",), size=32),
        student=UNET,
        assistant=AssistantConfig(
            server=server,
            decay_end=1.0,
            feedback_start=0.5,
            ahead=2,
            timeout_seconds=20,
        ),
        regions=regions,
        steps=steps,
        labelled_batch=2,
        unlabelled_batch=2,
        precision="fp32",
        validate_every=3,
        checkpoint_every=2,
    )


@st.composite
def regions(
    draw: Draw, shape: tuple[int, int], *, inside: bool = False, turns: int | None = None
) -> Roi:
    """Regions of a slice; unless ``inside`` they may reach beyond it, or lie mostly outside."""
    height, width = shape
    side = draw(st.floats(8, min(shape) if inside else 2 * max(shape)))
    rim = side / 2 if inside else 0.0
    row, column = draw(st.floats(rim, height - rim)), draw(st.floats(rim, width - rim))
    return Roi(row, column, side, draw(st.integers(0, 3)) if turns is None else turns)


def transforms() -> st.SearchStrategy[WeakTransform]:
    """All kinds of weak augmentation."""
    return st.builds(
        WeakTransform,
        angle=st.floats(-math.pi, math.pi),
        zoom=st.floats(0.5, 2),
        mirror_x=st.booleans(),
        mirror_y=st.booleans(),
        shift_x=st.floats(-0.3, 0.3),
        shift_y=st.floats(-0.3, 0.3),
    )


def same(one: Path, other: Path) -> bool:
    """Whether two runs have the same state, bit for bit."""
    first, second = (load_file(folder / state.STATE_FILE) for folder in (one, other))
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )
