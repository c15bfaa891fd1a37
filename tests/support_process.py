"""A server of the tiny model in a process of its own, with its log."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from support import engine_of
from vessa_client import VessaClient
from vessa_server.api.logs import configure_logs
from vessa_server.api.run import run
from vessa_server.api.settings import ServerSettings
from vessa_server.engine import VessaEngine
from vessa_server.inference.look import AnyLook, Prediction

Pause = Callable[[], object]
Run = Callable[..., list[Prediction]]


# In the bank's folder: it lets a server go on that waits.
GO_FILE = "go"


class DeadError(BaseException):
    """What no handler of exceptions catches."""


def _fails(engine: VessaEngine, looks: Sequence[AnyLook], pause: Pause) -> list[Prediction]:
    secret = "SECRET of a patient"
    raise ValueError(secret)


def _dies(engine: VessaEngine, looks: Sequence[AnyLook], pause: Pause) -> list[Prediction]:
    raise DeadError("SECRET of a patient")


def _stays(engine: VessaEngine, looks: Sequence[AnyLook], pause: Pause) -> list[Prediction]:
    threading.Event().wait()
    raise AssertionError("nothing sets it")


def _waits(engine: VessaEngine, looks: Sequence[AnyLook], pause: Pause) -> list[Prediction]:
    while not (engine.bank.folder / GO_FILE).exists():
        pass
    return VessaEngine.run(engine, looks, pause)


# How looks are run.
RUNS: dict[str, Run] = {
    "": VessaEngine.run,
    "fails": _fails,
    "dies": _dies,
    "stays": _stays,
    "waits": _waits,
}


class ServerProcess:
    """The process, its addresses, and the lines of its log."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self.ready = threading.Event()
        self.grpc = self.http = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                self.lines.append(line)
                if "server.ready" in line:
                    event = json.loads(line)
                    self.grpc, self.http = event["grpc"], event["page"].rstrip("/")
                    self.ready.set()
        self.ready.set()

    @property
    def log(self) -> str:
        """All lines so far."""
        return "".join(self.lines)

    @property
    def resident(self) -> int:
        """Bytes of memory that it holds."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float) -> int:
        """Exit code, when also the log has ended."""
        code = self.process.wait(seconds)
        self._reader.join(10)
        return code


@contextmanager
def server_process(folder: Path, runs: str = "", **settings: Any) -> Iterator[ServerProcess]:
    """Start a server; it is killed at the end."""
    values = {"grpc_port": 0, "http_port": 0, "encode_bank": False, "log_format": "json"}
    command = [sys.executable, __file__, str(folder), runs, json.dumps({**values, **settings})]
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    server = ServerProcess(process)
    try:
        assert server.ready.wait(60)
        assert server.grpc, server.log
        with VessaClient(server.grpc) as client:
            client.wait_until_healthy(30)
        yield server
    finally:
        process.kill()
        server.wait(10)


def main() -> None:
    """Serve as the command does."""
    folder, runs, settings = sys.argv[1:]
    torch.set_num_threads(1)
    configure_logs("json")
    engine = engine_of(Path(folder))
    engine.run = partial(RUNS[runs], engine)  # type: ignore[method-assign]
    run([engine], ServerSettings.model_validate(json.loads(settings)))


if __name__ == "__main__":
    main()
