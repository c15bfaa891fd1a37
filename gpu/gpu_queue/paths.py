"""Where things are in the project."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GPU = ROOT / "gpu"
WORK = GPU / ".work"
MACHINE = GPU / "machine.toml"
TABLE = GPU / "README.md"
SHIPPED = ROOT / "services" / "vessa_server" / "weights" / "nano"
RECIPES = ROOT / "services" / "vessa_server" / "src" / "vessa_server" / "training" / "recipes"
RESULTS = ROOT / "benchmarks" / "results"
# Weights of legs that were not shipped.
LEGS = GPU / "results"
CODE = (
    ROOT / "gpu",
    ROOT / "proto" / "src",
    ROOT / "services" / "vessa_common" / "src",
    ROOT / "services" / "vessa_server" / "src",
    ROOT / "services" / "ssl_trainer" / "src",
    ROOT / "benchmarks",
    ROOT / "tests",
)
PROJECTS = (
    ROOT / "proto",
    ROOT / "services" / "vessa_common",
    ROOT / "services" / "vessa_server",
    ROOT / "services" / "ssl_trainer",
)


def inside(path: Path) -> str:
    """A path as seen from the project's folder, where it is below it."""
    resolved = path.resolve()
    return str(resolved.relative_to(ROOT)) if resolved.is_relative_to(ROOT) else str(path)
