"""What must be right before anything is computed: packages, code, a GPU. Takes seconds."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from gpu_jobs.errors import NO_GPU, JobError
from gpu_jobs.install import satisfied
from gpu_jobs.manifest import Manifest

REHEARSAL = "VESSA_REHEARSAL"


def rehearsal() -> bool:
    """Whether this is a rehearsal on a machine without a GPU, made small."""
    return bool(os.environ.get(REHEARSAL))


def check(manifest: Manifest) -> dict[str, Any]:
    """Look at all of it; returns what is worth writing down of the machine.

    Raises:
        JobError: something is missing or of another version; all of it is named at once.
    """
    wrong = [r for r in manifest.requirements if not satisfied(r)]
    if wrong:
        found = ", ".join(f"{r} (here {_version(r)})" for r in wrong)
        raise JobError(
            f"packages: {found}; correct gpu/machine.toml, so that `prepare` carries them"
        )
    _check_code()
    return describe()


def describe() -> dict[str, Any]:
    """The device, and the versions that numbers depend on.

    Raises:
        JobError: there is no GPU, and this is no rehearsal.
    """
    import torch

    found: dict[str, Any] = {
        "rehearsal": rehearsal(),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} processors",
        "versions": {
            name: _version(name) for name in ("torch", "torchvision", "transformers", "numpy")
        },
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return found | {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_mib": properties.total_memory // 2**20,
            "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
            "cuda": torch.version.cuda,
            "driver": _driver(),
        }
    if not rehearsal():
        raise JobError(
            f"no GPU: torch {torch.__version__} finds none here (driver: {_driver()}); "
            f"{REHEARSAL}=1 for a small run on the CPU",
            NO_GPU,
        )
    return found | {"device": "cpu"}


def _check_code() -> None:
    import vessa_client
    import vessa_server

    for module in (vessa_client, vessa_server):
        file = Path(str(module.__file__)).resolve()
        if not file.is_relative_to(Path.cwd()):
            raise JobError(f"code: {module.__name__} is that in {file.parent}, not what was sent")


def _version(requirement: str) -> str:
    from packaging.requirements import Requirement

    try:
        return importlib.metadata.version(Requirement(requirement).name)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _driver() -> str:
    try:
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "none"
    return answer.stdout.strip()
