"""``python -m gpu_jobs JOB FOLDER``: one job, from looking at the machine to a short table."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

from gpu_jobs import manifest as manifests
from gpu_jobs import preflight
from gpu_jobs.clock import Clock
from gpu_jobs.errors import NOT_FINITE, WRONG_INPUT, JobError
from gpu_jobs.jobs import JOBS


def main() -> None:
    """Run the job, or end with one line and a code that says why."""
    try:
        print(_run(sys.argv[1], Path(sys.argv[2])), flush=True)
    except JobError as error:
        _end(str(error), error.code)
    except FloatingPointError as error:
        # Batches depend on seed and number only, so that nobody has to bring this one back.
        _end(f"{error}. EpisodeGenerator makes the batch again from its number", NOT_FINITE)
    except (ValueError, OSError) as error:
        # What the project says of wrong configurations, weights and packs.
        _end(str(error), WRONG_INPUT)


def _run(name: str, run: Path) -> str:
    """Table of a job, whose large files go to the folder ``run``."""
    job, folder = JOBS[name], manifests.WORK / name
    manifest = manifests.read(folder)
    machine = preflight.check(manifest)
    versions = ", ".join(f"{n} {v}" for n, v in machine["versions"].items())
    print(f"{name} on {machine['device']}: Python {machine['python']}, {versions}", flush=True)
    run.mkdir(parents=True)

    out, clock = Path(os.environ["OUT"]), Clock.of(job.seconds)
    if job.task:
        from gpu_jobs import stage2

        stretch = stage2.Stage2Context(job, manifest, folder, out, run, clock, machine)
        return stage2.table(stage2.run(stretch))
    if not job.slices:
        from gpu_jobs import serve_smoke
        from gpu_jobs.context import Context

        context = Context(job, manifest, folder, out, run, clock, machine)
        return serve_smoke.table(serve_smoke.run(context))
    from gpu_jobs import leg, smoke
    from gpu_jobs.training import TrainingContext

    training = TrainingContext(job, manifest, folder, out, run, clock, machine)
    if job.trains:
        return leg.table(leg.run(training))
    return smoke.table(smoke.run(training))


def _end(message: str, code: int) -> NoReturn:
    print(f"Error: {message}", flush=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
