"""The project's own tests of the runtime and of serving, on the device."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from gpu_jobs.errors import FAILED_CHECK, JobError
from gpu_jobs.parts import Parts

TESTS = ("tests/integration/test_runtimes.py", "tests/integration/test_devices.py")
# Without what this project's configuration wants of plug-ins, which are not carried.
OPTIONS = (
    "-c", os.devnull, "--rootdir", ".", "--noconftest", "-p", "no:cacheprovider", "--tb", "short",
    "-q",
)  # fmt: skip
NEEDED, MOST_SECONDS = 30.0, 150.0
SHOWN = 400


def run(smoke: Parts) -> None:
    """Those with the device in their names, and those that are for a GPU only."""
    kind = smoke.context.device.type
    chosen = "cpu" if kind == "cpu" else "cuda or Gpu"

    def work() -> dict[str, Any]:
        seconds = min(MOST_SECONDS, smoke.context.clock.left())
        return checked(chosen, smoke.context.run / "tests.xml", seconds)

    smoke.part("device tests", NEEDED, work)


def checked(chosen: str, report: Path, seconds: float) -> dict[str, Any]:
    """Run the tests that ``chosen`` selects by their names, and count how they end.

    Raises:
        JobError: one failed, or none passed; names and reasons are with it.
    """
    command = [sys.executable, "-m", "pytest", *OPTIONS, "-k", chosen, f"--junitxml={report}"]
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "4")}
    try:
        done = subprocess.run([*command, *TESTS], timeout=seconds, check=False, env=environment)
    except subprocess.TimeoutExpired:
        raise JobError(f"the tests were not done after {seconds:.0f} s", FAILED_CHECK) from None
    if not report.is_file():
        raise JobError(f"pytest ended with {done.returncode} and no report", FAILED_CHECK)
    found = read(report)
    if found["failed"]:
        raise JobError(f"{len(found['failed'])} tests failed", FAILED_CHECK, found)
    if not found["passed"]:
        raise JobError("no test was run", FAILED_CHECK, found)
    return found


def read(report: Path) -> dict[str, Any]:
    """How many passed and were skipped, and why others failed, from JUnit's XML."""
    failed, passed, skipped = {}, 0, 0
    for case in ElementTree.parse(report).iter("testcase"):
        wrong = [*case.iter("failure"), *case.iter("error")]
        if wrong:
            failed[str(case.get("name"))] = str(wrong[0].get("message"))[:SHOWN]
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
    return {"passed": passed, "skipped": skipped, "failed": failed}
