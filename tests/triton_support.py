"""A real tritonserver for the tests, with the project's model in the tests' size.

``VESSA_TRITONSERVER`` is the command that starts one, to which the folder of models and flags are
added; without it ``tritonserver`` on PATH is used, whose python3 must have this project. Where
neither is there, the tests that need one are skipped, with these words.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support import CLASSES, ROOT, free_port, picture, tiny_model
from vessa_client import SegmentationRequest, SegmentationResult
from vessa_server.bank import Banks
from vessa_server.cache import NoCache
from vessa_server.engine import VessaEngine
from vessa_server.engine_settings import EngineSettings
from vessa_server.model import checkpoint
from vessa_server.runtime.loading import load_runtime, stored_config
from vessa_server.runtime.protocol import Floats, Runtime
from vessa_server.runtime.torch_runtime import TorchRuntime

MODELS = ROOT / "docker" / "triton" / "models"
SIDE = 64
MIB = 1024 * 1024
# Some 170 images of the tiny model.
FEATURE_BYTES = 4 * MIB
READY = b"Started GRPCInferenceService"
FLAGS = (
    "--grpc-address=127.0.0.1",
    "--allow-http=false",
    "--allow-metrics=false",
    "--model-control-mode=explicit",
    "--disable-auto-complete-config",
)


def command(models: Path) -> list[str]:
    """What starts a tritonserver with a folder of models, or skips the test."""
    given = os.environ.get("VESSA_TRITONSERVER")
    if given:
        return [*shlex.split(given), str(models)]
    binary = shutil.which("tritonserver")
    if binary is None:
        pytest.skip(
            "no tritonserver: set VESSA_TRITONSERVER to a command that starts one with the folder "
            "of models as its next argument, or have tritonserver on PATH"
        )
    return [binary, f"--model-repository={models}"]


def tiny_weights(folder: Path) -> Path:
    """A folder of weights of the tiny model."""
    checkpoint.save(tiny_model(), folder)
    return folder


def torch_runtime(weights: Path, device: str = "cpu", dtype: str = "float32") -> TorchRuntime:
    """Weights in this process."""
    config = stored_config(weights)
    return load_runtime(config, weights, adaptation=None, device=device, dtype=dtype, max_batch=32)


def engine_over(folder: Path, runtime: Runtime, seeds: tuple[int, ...] = (100, 101)) -> VessaEngine:
    """An engine of a runtime, with templates of these pictures."""
    engine = VessaEngine(runtime, Banks(folder / "bank"), NoCache(), EngineSettings(fuse=True))
    for seed in seeds:
        image, labels = picture(seed)
        engine.add_template(image, labels, CLASSES, name=f"picture {seed}")
    return engine


def request_of(seed: int, **more: Any) -> SegmentationRequest:
    """A picture to segment."""
    return SegmentationRequest(image=picture(seed)[0], return_probabilities=True, **more)


def assert_same(found: SegmentationResult, expected: SegmentationResult) -> None:
    """Labels nearly everywhere, probabilities within one of 255, and the same templates."""
    assert (found.labels == expected.labels).mean() >= 0.999
    assert found.probabilities is not None
    assert expected.probabilities is not None
    difference = found.probabilities.astype(int) - expected.probabilities.astype(int)
    assert np.abs(difference).max() <= 1
    assert [t.template_id for t in found.templates] == [t.template_id for t in expected.templates]
    assert found.model_digest == expected.model_digest


def canvas_of(seed: int) -> Floats:
    """Noise for the runtime itself."""
    return np.random.default_rng(seed).random((1, SIDE, SIDE), np.float32)


class TritonServer:
    """A tritonserver on a port of its own, which can die and come back."""

    def __init__(self, folder: Path, models: tuple[str, ...] = ("vessa",)) -> None:
        """Prepare weights of a tiny model in ``folder``, and a folder of models."""
        self.folder = folder
        self.models = models
        self.port = free_port()
        self.weights = tiny_weights(folder / "weights")
        for name in models:
            shutil.copytree(
                MODELS / "vessa", self.repository / name, ignore=lambda *_: ["__pycache__"]
            )
        for name in models[1:]:  # as for many clients
            folder = self.repository / name
            shutil.copy(folder / "configs" / "shared.pbtxt", folder / "config.pbtxt")
        self._process: subprocess.Popen[bytes] | None = None
        self.log: list[bytes] = []

    @property
    def repository(self) -> Path:
        return self.folder / "models"

    def address(self, model: str = "vessa") -> str:
        return f"triton://127.0.0.1:{self.port}/{model}"

    def start(self) -> None:
        """Start it, and wait until it serves."""
        environment = {
            **os.environ,
            "VESSA_WEIGHTS": str(self.weights),
            "VESSA_FEATURE_BYTES": str(FEATURE_BYTES),
            "VESSA_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        loaded = [f"--load-model={name}" for name in self.models]
        self._process = subprocess.Popen(
            [*command(self.repository), *FLAGS, *loaded, f"--grpc-port={self.port}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        serving = threading.Event()
        threading.Thread(target=self._read, args=(self._process, serving), daemon=True).start()
        assert serving.wait(120)
        assert any(READY in line for line in self.log), b"".join(self.log[-40:]).decode()

    def kill(self) -> None:
        """End it and its processes at once; it has no time to remove its shared memory."""
        assert self._process is not None
        maps = Path(f"/proc/{self._process.pid}/maps").read_text()
        self._end(signal.SIGKILL)
        for file in set(re.findall(r"/dev/shm/triton_python_backend\S+", maps)):
            Path(file).unlink(missing_ok=True)

    def stop(self) -> None:
        """End it as its owner would."""
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            os.killpg(process.pid, number)
            process.wait(60)

    def kill_model(self, model: str = "vessa") -> None:
        """End the process of a model, as the system does when memory runs out."""
        assert self._process is not None
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        name = f"/{model}/".encode()
        (found,) = [c for c in children if name in Path(f"/proc/{c}/cmdline").read_bytes()]
        os.kill(int(found), signal.SIGKILL)

    def torch_runtime(self) -> TorchRuntime:
        """The same weights in this process."""
        return torch_runtime(self.weights)

    def _read(self, process: subprocess.Popen[bytes], serving: threading.Event) -> None:
        """Keep what it says, so that it never waits for a reader."""
        assert process.stdout is not None
        self.log = []
        with process.stdout as lines:
            for line in lines:
                self.log.append(line)
                if READY in line:
                    serving.set()
        serving.set()


@contextmanager
def tritonserver(folder: Path, models: tuple[str, ...] = ("vessa",)) -> Iterator[TritonServer]:
    """A tritonserver that serves; it is stopped at the end."""
    server = TritonServer(folder, models)
    server.start()
    try:
        yield server
    finally:
        server.stop()
