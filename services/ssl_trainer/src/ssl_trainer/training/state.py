"""Training state on disk: one safetensors file, written atomically.

It holds the networks of the method, optimiser, step, best score, what of configuration, data and
processes must not change, and the prompts of VESSA's requests that were under way, so that a
resumed run asks the same again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ssl_trainer.config import TrainConfig, to_dict
from ssl_trainer.models import weights
from ssl_trainer.models.weights import WeightsError
from ssl_trainer.training import resuming

STATE_FILE, BEST_FILE = "last.safetensors", "best.safetensors"


class StateError(WeightsError):
    """The state of a run cannot be used; the message names it and the fix."""


@dataclass(frozen=True)
class Progress:
    """Where a run is.

    Attributes:
        step: steps done.
        best: the best validation Dice, -1 before the first.
        window: answers that VESSA was asked for, and gave, since the log's last line.
    """

    step: int
    best: float
    window: tuple[int, int] = (0, 0)


class Saved(NamedTuple):
    """What a state says beside its networks.

    Attributes:
        progress: where the run is.
        config: with which it went, as ``config.to_dict`` makes it.
        prompts: of VESSA's requests that were under way, by update.
    """

    progress: Progress
    config: dict[str, Any]
    prompts: dict[int, Tensor]


def save_state(
    folder: Path,
    progress: Progress,
    config: TrainConfig,
    networks: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    prompts: dict[int, Tensor],
    cases: dict[str, str],
    processes: int,
) -> None:
    """Write the state of a run.

    ``prompts`` are those of VESSA's requests under way, by update; ``cases`` are lines of
    :func:`resuming.case_lists`; ``processes`` is how many there are.
    """
    tensors = {
        f"{name}.{n}": t
        for name, network in networks.items()
        for n, t in network.state_dict().items()
    }
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    tensors |= {f"prompts.{step}": maps for step, maps in prompts.items()}
    metadata = {
        "step": str(progress.step),
        "best": repr(progress.best),
        "window": json.dumps(progress.window),
        "config": json.dumps(to_dict(config)),
        "cases": json.dumps(cases),
        "processes": str(processes),
        "batches": str(resuming.BATCHES),
    }
    weights.write(folder / STATE_FILE, tensors, metadata)


def load_state(
    folder: Path,
    config: TrainConfig,
    networks: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    cases: dict[str, str],
    processes: int,
) -> Saved | None:
    """Load the state of a run; None where there is none.

    Raises:
        StateError: damaged, or of another configuration, other data, another number of processes,
            or another version.
    """
    file = folder / STATE_FILE
    if not file.is_file():
        return None
    tensors, metadata = weights.read(file)
    _check_made_alike(file, metadata, processes)
    before = json.loads(metadata["config"])
    _check_same(file, before, to_dict(config))
    _check_same_cases(file, json.loads(metadata.get("cases", "{}")), cases, config.data.root)
    for name, network in networks.items():
        weights.fill(network, weights.part(tensors, name), file)
    state = optimizer.state_dict()
    restored: dict[int, dict[str, Tensor]] = {}
    for name, value in weights.part(tensors, "optimizer").items():
        index, _, key = name.partition(".")
        restored.setdefault(int(index), {})[key] = value
    state["state"] = restored
    optimizer.load_state_dict(state)
    _lay_out(optimizer)
    requested, received = json.loads(metadata["window"])
    progress = Progress(int(metadata["step"]), float(metadata["best"]), (requested, received))
    prompts = {int(step): maps for step, maps in weights.part(tensors, "prompts").items()}
    return Saved(progress, before, prompts)


def _lay_out(optimizer: torch.optim.Optimizer) -> None:
    """Give moments the strides of their parameters: fused updates go through memory as it lies."""
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                moments[name] = torch.empty_like(parameter).copy_(value)


def _check_made_alike(file: Path, metadata: Mapping[str, str], processes: int) -> None:
    """Whether it is a state, whose next batches would be made as those before."""
    if "config" not in metadata:
        raise StateError(f"{file}: is no state of a training; remove it, or give another --out")
    if metadata.get("batches") != str(resuming.BATCHES):
        raise StateError(
            f"{file}: is of another version of ssl-trainer, which made batches another way; begin "
            "anew with another --out"
        )
    before = int(metadata["processes"])
    if before != processes:
        raise StateError(
            f"{file}: is of a run in {before} processes, here {processes}; start as many as before "
            f"(torchrun --nproc-per-node {before}), or give another --out"
        )


def _check_same(file: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    changed = resuming.changes(before, now)
    if changed:
        raise StateError(
            f"{file}: is of a run with another configuration; {'; '.join(changed)}. Set "
            f"{'it' if len(changed) == 1 else 'them'} back, or give another --out"
        )


def _check_same_cases(file: Path, before: dict[str, str], now: dict[str, str], root: Path) -> None:
    for kind, found in now.items():
        if before.get(kind) != found:
            raise StateError(
                f"{file}: is of a run with other {kind} cases; {found} in data.root, {root}, now, "
                f"{before.get(kind, 'not noted')} when it began. Give the same files, or another "
                "--out"
            )


def saved_step(folder: Path) -> int | None:
    """Updates done in the state of a run; None where there is none that can be read."""
    try:
        with safe_open(folder / STATE_FILE, framework="pt") as stream:
            return int(stream.metadata()["step"])
    except (OSError, SafetensorError, TypeError, KeyError, ValueError):
        return None
