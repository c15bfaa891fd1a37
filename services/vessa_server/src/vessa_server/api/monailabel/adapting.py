"""``/train/``: weights fitted to a bank, by `vessa-server adapt` in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import uuid
from collections import deque
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException

from vessa_client import InvalidRequestError, NotFoundError, OverloadedError
from vessa_server.api.monailabel.context import MODEL, LabelApp, json_body
from vessa_server.api.settings import ServerSettings
from vessa_server.model.checkpoint import DELTA_FILE

# As `vessa-server adapt` has it.
CONFIG = {"steps": 200, "seed": 0}
MOST = {"steps": 100_000, "seed": 2**31 - 1}
KEPT_LINES, MAX_LINE = 50, 500
RETRY_SECONDS = 60.0
STOP_SECONDS = 10.0


class Adaptation:
    """One run: its process, and what it said."""

    def __init__(self, request: dict[str, Any], command: list[str], made: Path) -> None:
        """Start it; ``made`` is the file that it writes."""
        self.id = str(uuid.uuid4())
        self.request = request
        self.made = made
        self.start, self.end = time.time(), 0.0
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self.stopped = False
        environment = {k: v for k, v in os.environ.items() if k != "VESSA_TOKEN"}
        self._process = subprocess.Popen(  # noqa: S603 - a list of our own, no shell
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
        )
        self._reader = threading.Thread(target=self._follow, name="adaptation", daemon=True)
        self._reader.start()

    @property
    def running(self) -> bool:
        """Whether it has not ended, or not been read to its end."""
        return self._reader.is_alive()

    def end_soon(self) -> None:
        """Ask it to end."""
        if self.running:
            self.stopped = True
            self._process.terminate()

    def stop(self) -> None:
        """Ask it to end, and see to it that it does."""
        if self.running:
            self.end_soon()
            self._reader.join(STOP_SECONDS)
            if self.running:
                self._process.kill()
                self._reader.join(STOP_SECONDS)

    def described(self) -> dict[str, Any]:
        """State, as the protocol names it, and the last lines."""
        failed = self._process.returncode != 0
        ended = "STOPPED" if self.stopped and failed else "ERROR" if failed else "DONE"
        return {
            "id": self.id,
            "status": "RUNNING" if self.running else ended,
            "request": self.request,
            "start_ts": int(self.start),
            "end_ts": int(self.end),
            "details": [*self.lines, *self._advice()],
        }

    def _advice(self) -> list[str]:
        """How what was made is served."""
        if self.running or self._process.returncode != 0:
            return []
        return [f"Serve it: start the server with --adaptation {self.made}"]

    def _follow(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stream:
            for line in stream:
                if line.strip():
                    self.lines.append(line.strip()[:MAX_LINE])
        self._process.wait()
        self.end = time.time()


class Adapting:
    """Runs one adaptation at a time; used from the event loop's pool."""

    def __init__(self, app: LabelApp) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._last: Adaptation | None = None

    @property
    def offered(self) -> bool:
        """Adapted weights are served by this process's own model only."""
        return self._app.service.settings.runtime == "torch"

    def start(self, model: str, params: dict[str, Any]) -> dict[str, Any]:
        """Start one to the bank of a model.

        Raises:
            NotFoundError: there is no such model.
            InvalidRequestError: the bank is empty, or a number is out of range.
            OverloadedError: another one runs.
        """
        name, bank = self._app.bank(model)
        listing = bank.snapshot()
        if not listing.templates:
            raise InvalidRequestError("model: its bank has no templates to fit to", field="model")
        numbers = {key: _number(key, params.get(key, CONFIG[key])) for key in CONFIG}
        root = self._app.service.engine.banks.folder.absolute()
        # One folder for each state of a bank: what is there is gone on with.
        run = f"{name or 'default'}-{listing.version[:12]}-{numbers['steps']}-{numbers['seed']}"
        out = root.with_name(f"{root.name}-adapted") / run
        command = _command(self._app.service.settings, bank.folder, out, numbers)
        with self._lock:
            if self._last is not None and self._last.running:
                raise OverloadedError(
                    "train: another adaptation runs, try again when it has ended",
                    retry_after=RETRY_SECONDS,
                )
            self._last = Adaptation({"model": model, **numbers}, command, out / DELTA_FILE)
            return self._last.described()

    def status(self, *, running: bool) -> dict[str, Any]:
        """Of the last one; ``running``: only of one that runs.

        Raises:
            NotFoundError: there is none.
        """
        if self._last is None or (running and not self._last.running):
            raise NotFoundError("train: nothing runs", field="train")
        return self._last.described()

    def close(self) -> None:
        """The server stops, and the adaptation with it."""
        if self._last is not None:
            self._last.end_soon()

    def stop(self) -> dict[str, Any]:
        """Stop the one that runs; what it has done so far is gone on with when it is asked again.

        Returns:
            Its state; empty where there never was one.
        """
        with self._lock:
            if self._last is None:
                return {}
            self._last.stop()
            return self._last.described()


def _command(settings: ServerSettings, bank: Path, out: Path, numbers: dict[str, int]) -> list[str]:
    threads = settings.threads or max(1, (os.cpu_count() or 2) // 2)
    options = {
        "bank": bank.absolute(),
        "out": out,
        "preset": settings.preset,
        "weights": settings.weights_folder().absolute(),
        "threads": threads,
        **numbers,
    }
    flags = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    return [sys.executable, "-m", "vessa_server", "adapt", *flags]


def _number(key: str, value: object) -> int:
    least = 1 if key == "steps" else 0
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MOST[key]:
        raise InvalidRequestError(
            f"{key}: {str(value)[:20]}, expected {least}..{MOST[key]}", field=key
        )
    return value


def train_router(app: LabelApp) -> APIRouter:
    """The routes, around what they share."""
    router = APIRouter(prefix="/train")
    adapting = Adapting(app)
    app.service.when_closing.append(adapting.close)

    def check_offered() -> None:
        if not adapting.offered:
            raise HTTPException(501, "train: weights on a tritonserver are not fitted to banks")

    @router.post("/")
    async def train_default(request: Request) -> dict[str, Any]:
        """Fit weights to the default bank."""
        check_offered()
        params = (await json_body(request)).get(MODEL)
        params = params if isinstance(params, dict) else {}
        task = await app.service.work(lambda: adapting.start(MODEL, params))
        return {MODEL: {"result": task, "detail": ""}}

    @router.post("/{model}")
    async def train(request: Request, model: str) -> dict[str, Any]:
        """Fit weights to the bank of a model."""
        check_offered()
        params = await json_body(request)
        return await app.service.work(lambda: adapting.start(model, params))

    @router.get("/")
    async def status(check_if_running: bool = False) -> dict[str, Any]:
        """State of the last run."""
        return adapting.status(running=check_if_running)

    @router.delete("/")
    async def stop() -> dict[str, Any]:
        """Stop the one that runs."""
        return await app.service.work(adapting.stop)

    return router
