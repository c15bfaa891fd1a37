"""How many cores a training takes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SHOWN = """
import sys
import torch
from ssl_trainer.cli import _compute_with

torch.set_num_threads(6)
_compute_with(int(sys.argv[1]), sys.argv[2] or None)
print(torch.get_num_threads())
"""


@pytest.mark.parametrize(
    ("threads", "server", "variable", "expected"),
    [
        (0, "localhost:50051", None, 3),
        (0, "far.example.org:50051", None, 6),
        (0, "", None, 6),
        (5, "localhost:50051", None, 5),
        (0, "localhost:50051", "6", 6),
    ],
)
def test_beside_a_server_half_of_the_cores_compute(
    threads: int, server: str, variable: str | None, expected: int
) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    if variable:
        environment["OMP_NUM_THREADS"] = variable
    result = subprocess.run(
        [sys.executable, "-c", SHOWN, str(threads), server],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(result.stdout) == expected
