"""Put everything that a job needs and the machine lacks into one ignored folder."""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpu_jobs import manifest as manifests
from gpu_jobs.errors import JobError
from gpu_jobs.jobs import GRACE_SECONDS, Job
from gpu_jobs.manifest import Manifest, Wheel
from gpu_queue import machine as machines
from gpu_queue import packages, paths, slices, stage2, travel, wheels
from gpu_queue.machine import MIB, Machine
from gpu_queue.packages import Needs
from gpu_queue.settings import plan
from vessa_client.console import console
from vessa_server.model import checkpoint

# Left free beside spare packages, so that the next change of the project fits too.
SPARE_MARGIN = 2 * MIB


def prepare(
    job: Job,
    *,
    data: Path | None = None,
    pack: Path | None = None,
    recipe: str = "nano",
    weights: Path = paths.SHIPPED,
    changes: dict[str, Any] | None = None,
    carry_wheels: bool = True,
) -> Manifest:
    """Fill the job's folder, and say how to run it.

    Args:
        job: which.
        data: folder of the data sets.
        pack: a pack of slices that is ready, in place of them.
        recipe: name of a recipe, or a YAML file.
        weights: folder to begin with.
        changes: of settings.
        carry_wheels: whether missing packages are carried.

    Raises:
        ValueError: something is missing or wrong, or it is too much to travel.
    """
    if job.slices and data is None and pack is None:
        raise JobError("--data or --pack: expected one of them")
    if job.task and (data is None or pack or weights.resolve() != paths.SHIPPED.resolve()):
        raise JobError(f"{job.name}: takes --data, no --pack, and the shipped weights")
    if not job.slices and not job.task and (data or pack or changes):
        raise JobError(f"{job.name}: takes no --data, --pack or --set")
    machine = machines.read(paths.MACHINE)
    if job.seconds + GRACE_SECONDS >= machine.command_seconds:
        raise JobError(f"{job.name}: {job.seconds} s and more, too long for gpu/machine.toml")
    if not weights.resolve().is_relative_to(paths.ROOT):
        raise JobError(f"weights: {weights} is outside of the project, and would not travel")
    folder = paths.WORK / job.name
    shutil.rmtree(folder, ignore_errors=True)
    (folder / manifests.WHEELS).mkdir(parents=True)
    file = Path(recipe) if Path(recipe).is_file() else paths.RECIPES / f"{recipe}.yaml"
    settings: dict[str, Any] = {}
    if job.slices:
        settings = plan(job, file, changes or {})
        shutil.copyfile(file, folder / manifests.RECIPE)
    elif job.task:
        settings = stage2.plan(job, changes or {})
    needed = packages.needs(machine, *packages.probe(job)) if carry_wheels else Needs()
    carried = [_carry(name, needed, machine, folder) for name in sorted(needed.carried)]
    if job.slices:
        _put_slices(_candidates(file, data, pack), folder, machine)
    elif job.task:
        assert data is not None
        stage2.put_volumes(job, data, folder)
        stage2.put_states(job, settings, folder, machine)
    carried += _spares(needed, machine, folder)
    manifest = Manifest(
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        commit=travel.commit(paths.ROOT),
        weights=paths.inside(weights),
        weights_digest=checkpoint.digest(weights),
        settings=settings,
        requirements=tuple(map(needed.requirement, sorted(needed.requirements))),
        wheels=tuple(carried),
        files=manifests.digests(folder),
        tree=manifests.tree_digest(paths.ROOT, job.name, paths.inside(weights)),
    )
    line = travel.load(paths.ROOT, folder).check(machine.travels)
    manifest.write(folder)
    _say(job, manifest, folder, line)
    return manifest


def _carry(
    name: str, needed: Needs, machine: Machine, folder: Path, *, spare: bool = False
) -> Wheel:
    file = wheels.packed(name, machine, paths.WORK / manifests.WHEELS)
    shutil.copyfile(file, folder / manifests.WHEELS / file.name)
    return Wheel(file.name, needed.requirement(name), spare)


def _spares(needed: Needs, machine: Machine, folder: Path) -> list[Wheel]:
    """Spare wheels, the smallest first, as far as they fit."""
    cache = paths.WORK / manifests.WHEELS
    sizes = {n: wheels.packed(n, machine, cache).stat().st_size for n in sorted(needed.spare)}
    found: list[Wheel] = []
    for name in sorted(sizes, key=lambda n: sizes[n]):
        wheel = _carry(name, needed, machine, folder, spare=True)
        if travel.load(paths.ROOT, folder).fits(machine.travels, SPARE_MARGIN):
            found.append(wheel)
        else:
            (folder / manifests.WHEELS / wheel.file).unlink()
    return found


def _candidates(recipe: Path, data: Path | None, pack: Path | None) -> Iterator[Path]:
    """Packs, the best first."""
    if pack is not None:
        yield pack
    if data is not None:
        for quality in slices.QUALITIES:
            yield slices.pack(recipe, data, quality, paths.WORK / "packs")


def _put_slices(candidates: Iterator[Path], folder: Path, machine: Machine) -> None:
    """The first pack with which everything fits."""
    target = folder / manifests.PACK
    for file in candidates:
        shutil.copyfile(file, target)
        shutil.copyfile(slices.beside(file), slices.beside(target))
        load = travel.load(paths.ROOT, folder)
        if load.fits(machine.travels):
            break
    load.check(machine.travels)


def _say(job: Job, manifest: Manifest, folder: Path, load: str) -> None:
    firm = [w.requirement for w in manifest.wheels if not w.spare]
    spare = [w.requirement for w in manifest.wheels if w.spare]
    begins = [f"Begins with {manifest.weights} ({manifest.weights_digest[:12]})"]
    begins += [f"{k} {v}" for k, v in sorted(manifest.settings.items())]
    packs = [folder / name for name in (manifests.PACK, manifests.VOLUMES)]
    slices_ = "".join(f"Slices: {p.stat().st_size / MIB:.1f} MiB\n" for p in packs if p.is_file())
    console.print(
        f"Packages: {len(manifest.requirements)} needed. Carried: {', '.join(firm) or 'none'}. "
        f"Carried in case that those there are too old: {', '.join(spare) or 'none'}.\n"
        f"{slices_}{', '.join(begins)}\n"
        f"{load}\n"
        f"\nRehearse it first: gpu/run {job.name} rehearse\n"
        f"Then in the project's folder on the machine, with {paths.inside(folder)} carried there, "
        f"in at most {job.seconds + GRACE_SECONDS} s:\n\n    bash gpu/device.sh {job.name}\n",
        highlight=False,
        soft_wrap=True,
    )
