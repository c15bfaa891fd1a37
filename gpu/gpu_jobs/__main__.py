"""``python -m gpu_jobs JOB FOLDER``: one job, from looking at the machine to a short table."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, NoReturn

from gpu_jobs import manifest as manifests
from gpu_jobs import preflight
from gpu_jobs.clock import Clock
from gpu_jobs.errors import NOT_FINITE, WRONG_INPUT, JobError


def main() -> None:
    """Run the job, or end with one line and a code that says why."""
    job, run = sys.argv[1], Path(sys.argv[2])
    try:
        folder = manifests.WORK / job
        manifest = manifests.read(folder)
        clock = Clock.of(manifest)
        machine = preflight.check(manifest)
        versions = ", ".join(f"{n} {v}" for n, v in machine["versions"].items())
        print(f"{job} on {machine['device']}: Python {machine['python']}, {versions}", flush=True)
        run.mkdir(parents=True)
        print(_run(job, manifest, folder, run, clock, machine), flush=True)
    except JobError as error:
        _end(str(error), error.code)
    except FloatingPointError as error:
        # Batches depend on seed and number only, so that nobody has to bring this one back.
        _end(f"{error}. EpisodeGenerator makes the batch again from its number", NOT_FINITE)
    except (ValueError, OSError) as error:
        # What the project says of wrong configurations, weights and packs.
        _end(str(error), WRONG_INPUT)


def _run(
    job: str,
    manifest: manifests.Manifest,
    folder: Path,
    run: Path,
    clock: Clock,
    machine: dict[str, Any],
) -> str:
    import torch

    from gpu_jobs import leg, smoke
    from gpu_jobs.context import Context

    jobs = {"stage1-smoke": smoke, "stage1-leg": leg, "stage1-decay": leg}
    if job not in jobs:
        raise JobError(f"job {job!r}: expected one of {', '.join(jobs)}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    out = Path(os.environ["OUT"])
    context = Context(manifest, folder, out, run, clock, machine, device)
    table: str = jobs[job].table(jobs[job].run(context))
    return table


def _end(message: str, code: int) -> NoReturn:
    print(f"Error: {message}", flush=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
