"""Weights of networks on disk: safetensors, written atomically."""

from __future__ import annotations

import json
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ssl_trainer.config import TrainConfig, to_dict


class WeightsError(ValueError):
    """A weights file cannot be used; the message names it and the fix."""


def save(file: Path, network: nn.Module, config: TrainConfig) -> None:
    """Write a network with the configuration of its run."""
    write(file, network.state_dict(), {"config": json.dumps(to_dict(config))})


def load(file: Path, network: nn.Module) -> None:
    """Fill a network with what :func:`save` wrote.

    Raises:
        WeightsError: missing, damaged, or of another shape.
    """
    tensors, _ = read(file)
    fill(network, tensors, file)


def load_teacher(file: Path, student: nn.Module) -> None:
    """Fill a student with the teacher in a run's state.

    Raises:
        WeightsError: missing, damaged, or of another shape.
    """
    tensors, _ = read(file)
    fill(student, part(tensors, "teacher"), file)


def write(file: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors by name, with what is said of them, in place of what was there.

    Raises:
        OSError: no room, or no rights.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".partial")
    try:
        save_file({n: t.detach().contiguous() for n, t in tensors.items()}, partial, metadata)
    except SafetensorError as error:
        partial.unlink(missing_ok=True)
        raise OSError(f"{file}: cannot be written ({error})") from error
    partial.chmod(0o644)  # safetensors makes files that only their owner can read
    with partial.open("rb+") as stream:
        os.fsync(stream.fileno())
    os.replace(partial, file)


def read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What :func:`write` wrote.

    Raises:
        WeightsError: missing or damaged.
    """
    try:
        with safe_open(file, framework="pt") as stream:
            names = list(stream.keys())
            return {n: stream.get_tensor(n) for n in names}, stream.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"{file}: cannot be read ({error}); train again or give another"
        ) from error


def part(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Those of one network of several."""
    prefix = f"{name}."
    return {n[len(prefix) :]: t for n, t in tensors.items() if n.startswith(prefix)}


def fill(network: nn.Module, tensors: dict[str, Tensor], file: Path) -> None:
    """Fill a network with the tensors of ``file``.

    Raises:
        WeightsError: they are of another shape.
    """
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise WeightsError(f"{file}: is of another student ({error})") from error
