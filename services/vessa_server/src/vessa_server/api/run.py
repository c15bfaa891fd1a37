"""Start, serve, and stop gracefully: both transports in one process over one service."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import structlog
import uvicorn

from vessa_client import ServerInfo
from vessa_server.api.grpc.server import GrpcServer, PortInUseError, join_address
from vessa_server.api.rest.app import create_app
from vessa_server.api.service import POOL_NAME, Service
from vessa_server.api.settings import ServerSettings
from vessa_server.bank import Banks
from vessa_server.cache import open_cache
from vessa_server.engine import VessaEngine
from vessa_server.failures import described
from vessa_server.model.presets import preset
from vessa_server.runtime.loading import load_runtime
from vessa_server.runtime.protocol import Runtime, RuntimeUnavailableError
from vessa_server.runtime.threads import compute_apart
from vessa_server.runtime.warm_up import warm_up

log = structlog.get_logger(__name__)
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
SCHEDULER_NAME = "scheduler"
# How soon it is noticed that a part of the server died.
WATCH_SECONDS = 0.5


@dataclass(frozen=True)
class Ports:
    """The ports that the server listens on."""

    grpc: int
    http: int


class ServerDiedError(RuntimeError):
    """A part of the server died, and the server stopped."""


class _Uvicorn(uvicorn.Server):
    """Uvicorn without signal handlers of its own: the process has one way to stop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def build_engines(settings: ServerSettings) -> list[VessaEngine]:
    """Load weights onto each device or connect to a tritonserver, open bank and cache.

    Raises:
        CheckpointError: no weights, or of another configuration.
        BankError: the bank is damaged.
        ValueError: the device or the tritonserver is not there, or an address is not understood.
    """

    def opened(device: str) -> Runtime:
        runtime = open_runtime(settings, device)
        milliseconds = round(sum(warm_up(runtime).values()))
        log.info("runtime.warm", device=runtime.info.device, milliseconds=milliseconds)
        return runtime

    try:
        runtimes = [
            compute_apart(settings.threads, partial(opened, device)) for device in settings.devices
        ]
    except RuntimeUnavailableError as error:
        raise ValueError(error.message) from None
    banks, limits = Banks(settings.bank), settings.engine_settings()
    cache = open_cache(settings.cache, settings.cache_max_bytes)
    return [VessaEngine(runtime, banks, cache, limits) for runtime in runtimes]


def open_runtime(settings: ServerSettings, device: str) -> Runtime:
    """The model in this process on ``device``, or on a tritonserver.

    Raises:
        CheckpointError: no weights, or of another configuration.
        RuntimeUnavailableError: no tritonserver with this project's model answers.
        ValueError: the device is not there, or the address is not understood.
    """
    if settings.runtime == "torch":
        return load_runtime(
            preset(settings.preset),
            settings.weights_folder(),
            adaptation=settings.adaptation,
            device=device,
            dtype=settings.dtype,
            max_batch=settings.max_batch,
        )
    from vessa_server.runtime.triton.client import TritonRuntime

    runtime = TritonRuntime(settings.runtime, exact=settings.batch_mode == "exact")
    wanted = settings.feature_bytes + settings.template_bytes
    if runtime.feature_bytes < wanted:
        log.warning(
            "triton.little_memory",
            feature_bytes=runtime.feature_bytes,
            wanted=wanted,
            effect="features are computed anew; raise VESSA_FEATURE_BYTES of the tritonserver",
        )
    return runtime


def run(engines: Sequence[VessaEngine], settings: ServerSettings) -> None:
    """Serve until a signal comes, and end the process.

    Raises:
        PortInUseError: a port is taken.
        SystemExit: with 1 where the server could not go on.
    """
    code = 0
    try:
        asyncio.run(serve(engines, settings))
    except ServerDiedError:
        code = 1
    if _computes():  # the interpreter would wait for it, though nobody wants it any more
        sys.stderr.flush()
        os._exit(code)
    if code:
        sys.exit(code)


async def serve(
    engines: Sequence[VessaEngine],
    settings: ServerSettings,
    *,
    stop: asyncio.Event | None = None,
    on_ready: Callable[[Ports], None] | None = None,
) -> None:
    """Serve until ``stop`` is set or SIGTERM or SIGINT comes.

    Shutdown: health turns NOT_SERVING, new requests are refused with UNAVAILABLE, accepted
    ones finish within ``grace_seconds``, then the process may exit.

    Raises:
        PortInUseError: a port is taken.
        ServerDiedError: a part of it died; what was accepted is answered as far as it could be.
    """
    stop = stop or asyncio.Event()
    service = Service(engines, settings)
    listener = _listen(settings.host, settings.http_port)
    grpc_server = GrpcServer(service)
    try:
        await grpc_server.start(settings.host, settings.grpc_port)
    except PortInUseError:
        listener.close()
        await service.close(0)
        raise
    http = _Uvicorn(
        uvicorn.Config(create_app(service), log_config=None, access_log=False, lifespan="off")
    )
    http_task = asyncio.create_task(http.serve(sockets=[listener]), name="http")
    while not http.started and not http_task.done():
        await asyncio.sleep(0.01)
    for name in _SIGNALS:
        with contextlib.suppress(NotImplementedError, RuntimeError):
            asyncio.get_running_loop().add_signal_handler(name, stop.set)
    if settings.encode_bank:
        service.encode_soon(service.engine.bank.snapshot().templates)
    service.ready = True
    ports = Ports(grpc=grpc_server.port, http=listener.getsockname()[1])
    _log_ready(await service.info(), service.lanes.threads, settings, ports)
    if on_ready is not None:
        on_ready(ports)
    died = await _stopped(stop, service, http_task)
    deadline = time.monotonic() + settings.grace_seconds
    log.info("server.stopping", grace_seconds=settings.grace_seconds)
    for name in _SIGNALS:  # a second signal exits at once
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            asyncio.get_running_loop().remove_signal_handler(name)
            signal.signal(name, signal.SIG_DFL)
    service.ready = False
    await grpc_server.set_serving(False)
    await service.close(deadline)
    await grpc_server.stop(max(0.1, deadline - time.monotonic()))
    await _stop_http(http, http_task, deadline)
    for engine in engines:
        engine.close()
    log.info("server.stopped")
    if died:
        raise ServerDiedError(died)


def _log_ready(info: ServerInfo, threads: int, settings: ServerSettings, ports: Ports) -> None:
    log.info(
        "server.ready",
        grpc=join_address(settings.host, ports.grpc),
        page=f"http://{join_address(settings.host, ports.http)}/",
        model=info.model_name,
        digest=info.model_digest[:12],
        device=info.device,
        dtype=info.dtype,
        threads=threads,
        memory_mib=info.device_memory_bytes >> 20,
        templates=info.num_templates,
        cache=info.cache_backend,
    )


async def _stopped(stop: asyncio.Event, service: Service, http: asyncio.Task[None]) -> str:
    """Wait for the end; returns the name of what died, where that ends the server."""
    while not stop.is_set():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WATCH_SECONDS):
                await stop.wait()
        died = "http" if http.done() else "" if service.lanes.alive else "scheduler"
        if died:
            log.error("server.died", part=died, effect="the server stops, to be started anew")
            return died
    return ""


async def _stop_http(http: _Uvicorn, task: asyncio.Task[None], deadline: float) -> None:
    """Let answers be sent until the deadline, then close what is still open."""
    http.should_exit = True
    await asyncio.wait({task}, timeout=max(0.5, deadline - time.monotonic()))
    http.force_exit = True
    await asyncio.wait({task}, timeout=1.0)
    task.cancel()
    await asyncio.wait({task})
    error = None if task.cancelled() else task.exception()
    if error is not None:
        log.error("http.failed", **described(error))


def _computes() -> bool:
    """Whether threads of the service go on with what nobody waits for."""
    working = [t for t in threading.enumerate() if t.name.startswith((POOL_NAME, SCHEDULER_NAME))]
    for thread in working:
        thread.join(0.1)
    return any(thread.is_alive() for thread in working)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio sends small packets at once: else each answer waits 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise PortInUseError(
            f"http_port: cannot listen on {join_address(host, port)} ({error.strerror}); "
            "stop the other program or set another with --http-port"
        ) from error
    listener.listen(128)
    return listener
