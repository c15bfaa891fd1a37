"""``VESSA_FEATURE_BYTES`` bounds the memory of the process."""

from __future__ import annotations

import os
import subprocess
import sys

BOUND_MIB = 96
# In a process of its own: what it holds is compared before features are kept and after.
PROGRAM = f"""
import os, sys, tempfile
from pathlib import Path
import numpy as np, torch
import golden_answers
from support import SAMPLE
from vessa_client import SegmentationRequest, files
from vessa_server.engine import VessaEngine
from vessa_server.engine_settings import EngineSettings

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20

torch.set_num_threads(1)
with tempfile.TemporaryDirectory() as scratch:
    engine = golden_answers.engine(Path(scratch))
    settings = EngineSettings(feature_bytes=0, image_store_bytes=0)
    engine = VessaEngine(engine.runtime, engine.banks, engine.cache, settings)
    engine.five_steps._heap.every = 8
    image = files.read(SAMPLE / "val" / "patient028_frame01.nii.gz").slice(4).astype(np.float32)

    def segment(start, count):
        for index in range(start, start + count):
            engine.segment(SegmentationRequest(image=image + index))

    segment(0, 16)
    before = resident()
    engine.memory.max_bytes = {BOUND_MIB} << 20
    segment(16, 80)
    print(resident() - before, engine.memory.bytes >> 20)
"""


def test_resident_memory_grows_by_the_bound_and_no_more() -> None:
    paths = os.pathsep.join(sys.path)
    answer = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    grown, held = map(int, answer.stdout.split())
    assert BOUND_MIB - 2 <= held <= BOUND_MIB
    assert 0.9 * BOUND_MIB <= grown <= 1.1 * BOUND_MIB
