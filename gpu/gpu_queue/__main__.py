"""Command ``gpu/run``."""

from __future__ import annotations

import argparse
import datetime
import sys
from pathlib import Path

from gpu_jobs.jobs import JOBS
from gpu_queue import paths
from vessa_client.console import console, print_error

DESCRIPTION = """\
Jobs for a GPU that one has for some minutes only, where nothing can be fetched.

  gpu/run stage1-leg prepare --data DATA     pack all that the job needs into gpu/.work/stage1-leg
  gpu/run stage1-leg rehearse                run its command here, small, from a copy of that
  gpu/run stage1-leg running                 note that it has been started
  (on the machine) bash gpu/device.sh stage1-leg
  gpu/run stage1-leg collect FOLDER          check and take in what came back
"""


def main() -> None:
    """Parse, do, and turn what goes wrong into one line."""
    arguments = _parser().parse_args()
    try:
        _do(arguments)
    except (ValueError, OSError) as error:
        print_error(str(error))
        sys.exit(2)


def _parser() -> argparse.ArgumentParser:
    lines = [f"  {job.name:<14} {job.seconds} s: {job.what}" for job in JOBS.values()]
    parser = argparse.ArgumentParser(
        prog="gpu/run",
        description=DESCRIPTION,
        epilog="\n".join(["jobs, in their order:", *lines, "", "gpu/README.md has their states."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("job", metavar="JOB", choices=JOBS, help=", ".join(JOBS))
    actions = parser.add_subparsers(dest="action", required=True)
    add = actions.add_parser("prepare", help="pack all that the job needs").add_argument
    add("--data", type=Path, help="folder with one folder for each data set")
    add("--pack", type=Path, help="pack of slices that is ready, in place of --data")
    add("--recipe", default="nano", help="of the training: a name, or a YAML file [nano]")
    add("--weights", type=Path, default=paths.SHIPPED, help="to begin with [the shipped ones]")
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="over the recipe's, or the job's",
    )
    add("--no-wheels", action="store_true", help="for a machine with all packages")
    add = actions.add_parser("rehearse", help="run the command here, small").add_argument
    add("--python", type=Path, help="one with the packages of the machine")
    add("--keep", type=Path, help="empty folder for what the job brings")
    actions.add_parser("running", help="note that the job has been started")
    actions.add_parser("waiting", help="note that the job is to be run again")
    add = actions.add_parser("collect", help="check and take in what came back").add_argument
    add("folder", type=Path, help="what was in $OUT")
    add("--ship", action="store_true", help="replace the shipped weights")
    return parser


def _do(arguments: argparse.Namespace) -> None:
    # Each imports torch, and --help need not.
    job = JOBS[arguments.job]
    if arguments.action == "prepare":
        from gpu_jobs.settings import parsed
        from gpu_queue.prepare import prepare

        prepare(
            job,
            data=arguments.data,
            pack=arguments.pack,
            recipe=arguments.recipe,
            weights=arguments.weights,
            changes=parsed(arguments.set),
            carry_wheels=not arguments.no_wheels,
        )
    elif arguments.action == "rehearse":
        from gpu_queue.rehearse import rehearse

        rehearse(job, python=arguments.python, keep=arguments.keep)
    elif arguments.action == "collect":
        from gpu_queue.collect import collect

        collect(job, arguments.folder, ship=arguments.ship)
    else:
        from gpu_queue.collect import set_state

        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
        state = "waiting" if arguments.action == "waiting" else f"running since {now}"
        set_state(job.name, state)
        console.print(f"{job.name}: {state}", highlight=False)


if __name__ == "__main__":
    main()
