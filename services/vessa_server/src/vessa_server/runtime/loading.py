"""A runtime from files: weights, and what was fitted to a bank."""

from __future__ import annotations

import json
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from vessa_server.model import checkpoint
from vessa_server.model.config import VessaConfig
from vessa_server.model.presets import PRESETS, preset
from vessa_server.runtime.devices import resolve_device, resolve_dtype
from vessa_server.runtime.torch_runtime import TorchRuntime

T = TypeVar("T")


def load_runtime(
    config: VessaConfig,
    folder: Path,
    *,
    adaptation: Path | None,
    device: str,
    dtype: str,
    max_batch: int,
) -> TorchRuntime:
    """Read weights onto a device.

    Args:
        config: of the model.
        folder: of its weights.
        adaptation: file that ``vessa-server adapt`` wrote.
        device: as :func:`resolve_device` reads it.
        dtype: as :func:`resolve_dtype` reads it.
        max_batch: most images, or image-class pairs, in one forward.

    Raises:
        CheckpointError: no weights, or of another configuration.
        ValueError: the device is not there.
    """
    place = resolve_device(device)
    model, digest = checkpoint.load_with_digest(
        config, folder, device=place, dtype=resolve_dtype(dtype, place)
    )
    if adaptation is not None:
        digest = checkpoint.apply_delta(model, adaptation, digest)
    return TorchRuntime(model, digest, max_batch=max_batch)


def stored_config(folder: Path) -> VessaConfig:
    """The configuration that weights were saved with: the preset that they name, or their own.

    Raises:
        CheckpointError: there are no weights, or they do not say.
    """
    try:
        stored = json.loads(checkpoint.notes(folder)["config"])
        return preset(stored["name"]) if stored["name"] in PRESETS else _read(VessaConfig, stored)
    except Exception as error:  # safetensors raises its own untyped errors
        raise checkpoint.CheckpointError(
            f"weights: {folder / checkpoint.WEIGHTS_FILE} has no configuration of a model: {error}"
        ) from error


def _read(kind: type[T], values: dict[str, Any]) -> T:
    """A dataclass of dataclasses, from JSON, whose lists are tuples."""
    kinds = get_type_hints(kind)
    return kind(
        **{
            name: _read(kinds[name], value)
            if is_dataclass(kinds[name])
            else tuple(value)
            if isinstance(value, list)
            else value
            for name, value in values.items()
        }
    )
