"""What is prepared for a GPU: settings, packages, and what travels."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet

from gpu_jobs import install, leg, manifest
from gpu_jobs.errors import JobError
from gpu_jobs.jobs import GRACE_SECONDS, JOBS, WEIGHTS
from gpu_jobs.manifest import Manifest, Wheel
from gpu_jobs.settings import RATE_CAP, parsed, scaled_rate
from gpu_queue import collect, packages, paths, rehearse, results, settings, travel, wheels
from gpu_queue import machine as machines
from support import ROOT
from vessa_server.model import checkpoint
from vessa_server.training.config import ConfigError


def _manifest(**changes: Any) -> Manifest:
    plain = Manifest(date="", commit="", weights="weights", weights_digest="0" * 64)
    return dataclasses.replace(plain, **changes)


def test_the_machine_is_described_and_every_job_fits_it() -> None:
    machine = machines.read(ROOT / "gpu" / "machine.toml")
    assert machine.has("torch")
    assert machine.has("grpcio")
    assert not machine.has("pydantic")
    for job in JOBS.values():
        assert len(job.brings) < machine.files_back  # the log of the console comes back too
        assert job.seconds + GRACE_SECONDS < machine.command_seconds
    assert len({*leg.COPIED, "result.json", "console.log"}) <= machine.files_back
    assert checkpoint.FILES == WEIGHTS


def test_the_table_has_the_state_of_every_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(paths.TABLE, tmp_path)
    monkeypatch.setattr(paths, "TABLE", tmp_path / "README.md")
    for job in JOBS:
        collect.set_state(job, f"running since {job}")
        assert f"| running since {job} |" in paths.TABLE.read_text()
    with pytest.raises(JobError, match="no row for job stage2"):
        collect.set_state("stage2", "done")


def test_the_smaller_of_two_batches_of_nearly_the_same_speed_is_taken() -> None:
    def row(groups: int, rate: float, **more: Any) -> dict[str, Any]:
        return {
            "groups": groups,
            "images_per_second": rate,
            "compile": False,
            "steady": True,
        } | more

    speed_ = [row(16, 500), row(64, 900), row(128, 1000), {"groups": 256, "compile": False}]
    assert settings.fastest(speed_, 540) == {"groups": 64, "compile": False}
    compiled = row(128, 1300, compile=True, warm_seconds=80)
    assert settings.fastest([*speed_, compiled], 540) == {"groups": 128, "compile": True}
    slow = compiled | {"warm_seconds": 300}
    assert settings.fastest([*speed_, slow], 540) == {"groups": 64, "compile": False}
    unsteady = compiled | {"steady": False}
    assert settings.fastest([*speed_, unsteady], 540) == {"groups": 64, "compile": False}
    assert settings.fastest([], 540) == {}


def test_settings_come_from_the_last_smoke_job_and_changes_win(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("training: {minutes: 9, learning_rate: 6.0e-4}")
    job = JOBS["stage1-leg"]
    assert settings.plan(job, recipe, {})["groups"] == settings.GROUPS
    for number, groups in ((2, 16), (10, 32)):
        row = {"groups": groups, "images_per_second": 9.0, "compile": False, "steady": True}
        file = results.result_file("stage1-smoke", number)
        file.write_text(json.dumps({"speed": [row]}))
    found = settings.plan(job, recipe, {})
    assert found["groups"] == 32
    assert found["decay_share"] == 0.0
    assert found["learning_rate"] == pytest.approx(6e-4 * 8**0.5, rel=1e-2)
    changed = settings.plan(job, recipe, parsed(["groups=8", "precision=fp32"]))
    assert (changed["groups"], changed["precision"]) == (8, "fp32")
    assert scaled_rate(6e-4, 256) == RATE_CAP
    with pytest.raises(ConfigError, match="groupz"):
        settings.plan(job, recipe, {"groupz": 8})
    with pytest.raises(JobError, match="KEY=VALUE"):
        parsed(["groups"])


def test_missing_and_old_packages_are_carried_with_what_they_require() -> None:
    machine = dataclasses.replace(
        machines.read(ROOT / "gpu" / "machine.toml"),
        versions={"torch": "2.11.0", "torchvision": "0.26.0", "transformers": "5.17.0"},
        unversioned=frozenset({"numpy", "tqdm", "pyyaml", "packaging", "rich", "tensorboard"}),
    )
    loaded = frozenset({"hydra-core", "omegaconf", "antlr4-python3-runtime", "pyyaml", "tqdm"})
    found = packages.needs(machine, loaded, frozenset({"sam2", "torch", "transformers", "rich"}))
    assert {"sam2", "hydra-core", "omegaconf", "antlr4-python3-runtime"} <= found.carried
    assert "transformers" in found.carried  # there, but too old for us
    assert not {"torch", "numpy", "iopath"} & found.carried  # iopath was not loaded
    assert {"rich", "tqdm", "pyyaml"} <= found.spare
    assert found.requirements["antlr4-python3-runtime"] == SpecifierSet("==4.9.*")


def test_the_stand_in_has_what_the_machine_has_and_nothing_else() -> None:
    machine = machines.read(ROOT / "gpu" / "machine.toml")
    carried = (
        Wheel("pydantic-2-py3-none-any.tar.xz", "pydantic>=2"),
        Wheel("pydantic_core-2-cp39-cp39-linux.tar.xz", "pydantic-core==2"),
    )
    installed = {"torch", "typer", "pydantic", "pydantic-core", "monai", "structlog", "rich"}
    found = rehearse.there(_manifest(wheels=carried), machine, frozenset(installed))
    # What is carried is unpacked, but for what this Python cannot import.
    assert found == {"torch", "typer", "rich", "pydantic-core"}


def test_a_wheel_is_packed_and_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pip(command: str, *options: str) -> None:
        assert command == "download"
        folder = Path(options[options.index("--dest") + 1])
        with zipfile.ZipFile(folder / "Made_Up-1.0-py3-none-any.whl", "w") as archive:
            archive.writestr("made_up/__init__.py", "VALUE = 3\n")
            archive.writestr("made_up-1.0.dist-info/METADATA", "Name: made_up\nVersion: 1.0\n")

    monkeypatch.setattr(wheels, "_pip", pip)
    monkeypatch.setattr("importlib.metadata.version", lambda _: "1.0")
    machine = machines.read(ROOT / "gpu" / "machine.toml")
    cache = tmp_path / manifest.WHEELS
    file = wheels.packed("made-up", machine, cache)
    monkeypatch.setattr(wheels, "_pip", None)  # the next time it is there
    assert wheels.packed("made-up", machine, cache) == file
    monkeypatch.undo()
    carried = _manifest(wheels=(Wheel(file.name, "made-up>=1"), Wheel("no-1", "torch>=2", True)))
    line = install.install(carried, tmp_path, tmp_path / "site")
    assert line == "Installed 1 of 2 carried packages: made_up"
    assert (tmp_path / "site" / "made_up" / "__init__.py").read_text() == "VALUE = 3\n"
    other = _manifest(wheels=(Wheel("x-1-cp39-cp39-any.tar.xz", "x"),))
    with pytest.raises(JobError, match="is for another Python than"):
        install.install(other, tmp_path, tmp_path / "site")


def test_wheels_run_where_their_tags_say() -> None:
    here = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    for tags, runs in (
        ("py3-none-any", True), ("py2.py3-none-any", True), (f"{here}-{here}-linux", True),
        ("cp39-abi3-linux", True), ("cp399-abi3-linux", False), ("cp38-cp38-linux", False),
    ):  # fmt: skip
        assert install.runs_here(f"a-1-{tags}{install.PACKED}") is runs, tags


def test_new_files_travel_and_ignored_ones_do_not(tmp_path: Path) -> None:
    for name, size in ((".gitignore", 0), ("kept.txt", 3), ("new.txt", 5), ("gone.txt", 7)):
        (tmp_path / name).write_bytes(bytes(size))
    (tmp_path / ".gitignore").write_text("*.log\n/work/\n")
    git = ["git", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", ".gitignore", "kept.txt", "gone.txt"], check=True)
    (tmp_path / "gone.txt").unlink()
    (tmp_path / "x.log").write_bytes(bytes(99))
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "pack").write_bytes(bytes(11))
    load = travel.load(tmp_path, tmp_path / "work")
    assert load.tree == {".gitignore": 13, "kept.txt": 3, "new.txt": 5}
    assert load.carried == {"work/pack": 11}
    assert load.total == 32
    assert load.fits(42, 10)
    assert not load.fits(41, 10)
    travel.export(tmp_path, tmp_path / "work", tmp_path / "copy")
    copied = {str(f.relative_to(tmp_path / "copy")) for f in (tmp_path / "copy").rglob("*.*")}
    assert copied == {".gitignore", "kept.txt", "new.txt"}
