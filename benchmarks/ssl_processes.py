"""Processes of the comparison: on one thread each, with what they cost in CPU seconds."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from vessa_client import VessaClient

# Seconds that a server may take to stop.
PATIENCE = 30.0
TAIL = 2000


class RunError(RuntimeError):
    """A run did not come to its end; the message says why, and names its log."""


class Process:
    """A Python program; what it prints is added to a log.

    Attributes:
        started: all that may still run.
        cpu_seconds: its own and its children's; 0 before it has ended.
    """

    started: ClassVar[weakref.WeakSet[Process]] = weakref.WeakSet()

    def __init__(self, log: Path, *command: str, pass_fds: tuple[int, ...] = ()) -> None:
        """Start it."""
        self.log = log
        self.cpu_seconds = 0.0
        with log.open("a") as stream:
            self._process = subprocess.Popen(
                [sys.executable, *command],
                stdout=stream,
                stderr=stream,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                pass_fds=pass_fds,
            )
        Process.started.add(self)

    @property
    def ended(self) -> bool:
        """Whether it has; what it cost is still to be asked for."""
        how = os.WEXITED | os.WNOHANG | os.WNOWAIT
        waited = self._process.returncode is not None
        return waited or os.waitid(os.P_PID, self._process.pid, how) is not None

    def wait(self) -> int:
        """Its exit status."""
        if self._process.returncode is None:
            _, status, usage = os.wait4(self._process.pid, 0)
            self._process.returncode = os.waitstatus_to_exitcode(status)
            self.cpu_seconds = usage.ru_utime + usage.ru_stime
        return int(self._process.returncode)

    def check(self) -> None:
        """Wait for it.

        Raises:
            RunError: it ended with an error.
        """
        if self.wait():
            raise RunError(f"{self.log}: {self.log.read_text()[-TAIL:].strip()}")

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Ask it to end, or kill it."""
        if self._process.returncode is None:  # not Popen's, which would lose what it cost
            os.kill(self._process.pid, how)

    def stop(self) -> None:
        """Ask it to end, and wait."""
        self.end()
        timer = threading.Timer(PATIENCE, self.end, [signal.SIGKILL])
        timer.start()
        self.wait()
        timer.cancel()


@dataclass(frozen=True)
class Server:
    """A server of VESSA: host and port, weights, and its process."""

    address: str
    digest: str
    process: Process


@contextlib.contextmanager
def served(folder: Path, fill: Callable[[VessaClient], None]) -> Iterator[Server]:
    """A server whose bank is filled, with bank, cache and log in ``folder``.

    Raises:
        RunError: it does not start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    grpc_port, http_port = _free_ports(2)
    process = Process(
        folder / "server.log",
        *("-m", "vessa_server", "serve", "--threads", "1"),
        *("--bank", str(folder / "bank"), "--cache", str(folder / "cache")),
        *("--grpc-port", str(grpc_port), "--http-port", str(http_port)),
    )
    address = f"127.0.0.1:{grpc_port}"
    try:
        with VessaClient(address) as client:
            while not client.healthy():
                if process.ended:
                    process.check()
                    raise RunError(f"{process.log}: the server stopped")
                time.sleep(0.2)
            fill(client)
            digest = client.info().model_digest
        yield Server(address, digest, process)
    finally:
        process.stop()


@contextlib.contextmanager
def locked(file: Path, *, wait: bool = False) -> Iterator[int]:
    """Hold a lock; a process that is given its descriptor holds it, too, as long as it lives.

    Raises:
        RunError: another process has it.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise RunError(f"{file}: another process is at it") from error
        yield stream.fileno()


def processor() -> str:
    """Its name, where the system tells."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [int(item.getsockname()[1]) for item in sockets]
