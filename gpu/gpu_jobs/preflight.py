"""What must be right before anything is computed: packages, and a GPU. Takes seconds."""

from __future__ import annotations

import os
import platform
from typing import Any

from gpu_jobs import gpu
from gpu_jobs.errors import NO_GPU, JobError
from gpu_jobs.install import satisfied, version
from gpu_jobs.jobs import rehearsal
from gpu_jobs.manifest import Manifest


def check(manifest: Manifest) -> dict[str, Any]:
    """Look at all of it; returns the device, and the versions that numbers depend on.

    Raises:
        JobError: packages are missing or of other versions, all of which are named at once; or
            there is no GPU, and this is no rehearsal.
    """
    from packaging.requirements import Requirement

    wrong = [r for r in manifest.requirements if not satisfied(r)]
    if wrong:
        named = ", ".join(f"{r} (here {version(Requirement(r).name) or 'none'})" for r in wrong)
        raise JobError(
            f"packages: {named}; correct gpu/machine.toml, so that `prepare` carries them"
        )
    import torch

    names = ("torch", "torchvision", "transformers", "numpy")
    found: dict[str, Any] = {
        "rehearsal": rehearsal(),
        "device": "cpu",
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} processors",
        "versions": {name: version(name) for name in names},
    }
    driver = next(iter(gpu.ask("driver_version")), "none")
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return found | {
            "device": properties.name,
            "memory_mib": properties.total_memory // 2**20,
            "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
            "cuda": torch.version.cuda,
            "driver": driver,
        }
    if not rehearsal():
        raise JobError(
            f"no GPU: torch {torch.__version__} finds none here (driver: {driver}); "
            "VESSA_REHEARSAL=1 for a small run on the CPU",
            NO_GPU,
        )
    return found
