"""Put everything that a job needs and the machine lacks into one ignored folder."""

from __future__ import annotations

import datetime
import hashlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from gpu_jobs import manifest as manifests
from gpu_jobs.manifest import Manifest, Wheel
from gpu_queue import machine as machines
from gpu_queue import needs as requirements
from gpu_queue import paths, slices, travel, wheels
from gpu_queue.errors import QueueError
from gpu_queue.jobs import Job
from gpu_queue.machine import MIB, Machine
from gpu_queue.needs import Needs
from gpu_queue.settings import plan
from vessa_client.console import console
from vessa_server.model import checkpoint

# Left free beside spare packages, so that the next change of the project fits too.
SPARE_MARGIN = 2 * MIB


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be prepared.

    Attributes:
        data: folder of the data sets; None where ``pack`` is given.
        pack: a pack of slices that is ready.
        recipe: name of a recipe, or a YAML file.
        weights: folder to begin with.
        changes: of settings.
        without: data sets to leave out.
        carry_wheels: whether missing packages are carried.
    """

    data: Path | None = None
    pack: Path | None = None
    recipe: str = "nano"
    weights: Path = paths.SHIPPED
    changes: dict[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    carry_wheels: bool = True


def prepare(job: Job, request: Request) -> Manifest:
    """Fill the job's folder, and say how to run it.

    Raises:
        QueueError: something is missing or wrong, or it is too much to travel.
    """
    machine = machines.read(paths.MACHINE)
    folder = paths.WORK / job.name
    shutil.rmtree(folder, ignore_errors=True)
    (folder / manifests.WHEELS).mkdir(parents=True)
    recipe = _recipe(request.recipe)
    settings = plan(job, recipe, paths.RESULTS, request.changes)
    shutil.copyfile(recipe, folder / manifests.RECIPE)
    needed = _needs(machine) if request.carry_wheels else None
    carried = [_carry(n, needed, machine, folder) for n in sorted(needed.carried)] if needed else []
    _put_pack(request, recipe, folder, machine)
    if needed:
        carried += _spares(needed, machine, folder)
        _say_needs(needed, carried)
    manifest = Manifest(
        job=job.name,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        commit=travel.commit(paths.ROOT),
        seconds=job.seconds,
        hard_seconds=min(job.hard_seconds, machine.command_seconds - 10),
        python=machine.python,
        weights=_in_tree(request.weights),
        weights_digest=_digest(request.weights),
        least_rate=job.least_rate,
        settings=settings,
        without=request.without,
        requirements=tuple(needed.requirement(n) for n in sorted(needed.requirements))
        if needed
        else (),
        wheels=tuple(carried),
        files=manifests.digests(folder),
        code=manifests.code_digest(paths.ROOT),
    )
    load = travel.load(paths.ROOT, folder)
    load.check(machine.travels)
    manifest.write(folder)
    _say(manifest, folder, load.describe(machine.travels))
    return manifest


def _recipe(name: str) -> Path:
    for file in (Path(name), paths.RECIPES / f"{name}.yaml"):
        if file.is_file():
            return file
    raise QueueError(f"recipe {name!r}: no such file, and no recipe of that name")


def _digest(weights: Path) -> str:
    try:
        return checkpoint.digest(weights)
    except OSError as error:
        raise QueueError(f"weights: {weights}: {error.strerror}: {error.filename}") from error


def _in_tree(weights: Path) -> str:
    if not weights.resolve().is_relative_to(paths.ROOT):
        raise QueueError(f"weights: {weights} is outside of the project, and would not travel")
    return paths.inside(weights)


def _needs(machine: Machine) -> Needs:
    """What is needed there; asked again only where code or packages have changed."""
    print_ = hashlib.sha256(requirements.fingerprint(paths.CODE).encode()).hexdigest()
    known = paths.WORK / "probe.json"
    if known.is_file() and (content := json.loads(known.read_text()))["of"] == print_:
        loaded, named = frozenset(content["loaded"]), frozenset(content["named"])
    else:
        console.print("Looking which packages a job imports: half a minute")
        loaded, named = requirements.probe()
        content = {"of": print_, "loaded": sorted(loaded), "named": sorted(named)}
        known.write_text(json.dumps(content))
    return requirements.needs(machine, loaded, named)


def _carry(
    name: str, needed: Needs, machine: Machine, folder: Path, *, spare: bool = False
) -> Wheel:
    cache = paths.WORK / manifests.WHEELS
    file = wheels.packed(name, requirements.installed(name), machine, cache)
    shutil.copyfile(file, folder / manifests.WHEELS / file.name)
    return Wheel(file.name, needed.requirement(name), spare)


def _spares(needed: Needs, machine: Machine, folder: Path) -> list[Wheel]:
    """Spare wheels, the smallest first, as far as they fit."""
    found: list[Wheel] = []
    cache = paths.WORK / manifests.WHEELS
    files = {
        n: wheels.packed(n, requirements.installed(n), machine, cache) for n in sorted(needed.spare)
    }
    for name in sorted(files, key=lambda n: files[n].stat().st_size):
        found.append(_carry(name, needed, machine, folder, spare=True))
        if travel.load(paths.ROOT, folder).total > machine.travels - SPARE_MARGIN:
            (folder / manifests.WHEELS / found.pop().file).unlink()
    return found


def _put_pack(request: Request, recipe: Path, folder: Path, machine: Machine) -> None:
    """A pack of the best quality at which everything fits."""
    target = folder / manifests.PACK
    qualities = slices.QUALITIES if request.pack is None else (0,)
    for quality in qualities:
        if request.pack is not None:
            file = request.pack
            if not slices.is_whole(file):
                raise QueueError(f"pack: {file} is missing, or not of the digest beside it")
        elif request.data is not None:
            file = slices.pack(recipe, request.data, quality, paths.WORK / "packs")
        else:
            raise QueueError("--data or --pack: expected one of them")
        shutil.copyfile(file, target)
        beside = target.with_name(target.name + slices.DIGEST_SUFFIX)
        shutil.copyfile(file.with_name(file.name + slices.DIGEST_SUFFIX), beside)
        load = travel.load(paths.ROOT, folder)
        if load.total <= machine.travels - travel.MARGIN:
            break
    size = target.stat().st_size / MIB
    console.print(
        f"Slices: {size:.1f} MiB" + (f", pictures of quality {quality}" if quality else ""),
        highlight=False,
    )
    load.check(machine.travels)


def _say_needs(needed: Needs, carried: list[Wheel]) -> None:
    firm = [_name(w) for w in carried if not w.spare]
    spare = [_name(w) for w in carried if w.spare]
    left = ", ".join(needed.requirement(n) for n in sorted(needed.spare - set(spare)))
    console.print(
        f"Packages: {len(needed.requirements)} needed. Carried: {', '.join(firm)}. Carried in "
        f"case that those there are too old: {', '.join(spare) or 'none'}. Relied upon, in "
        f"versions that nobody has written down: {left or 'none'}.",
        highlight=False,
        soft_wrap=True,
    )


def _name(wheel: Wheel) -> str:
    return canonicalize_name(Requirement(wheel.requirement).name)


def _say(manifest: Manifest, folder: Path, load: str) -> None:
    carried = paths.inside(folder)
    settings = ", ".join(f"{k} {v}" for k, v in sorted(manifest.settings.items()))
    console.print(
        f"Begins with {manifest.weights} ({manifest.weights_digest[:12]}); {settings}\n"
        f"{load}\n"
        f"\nRehearse it first: gpu/run {manifest.job} rehearse\n"
        f"Then in the project's folder on the machine, with {carried} carried there, "
        f"in at most {manifest.hard_seconds} s:\n\n    bash gpu/device.sh {manifest.job}\n",
        highlight=False,
        soft_wrap=True,
    )
