"""Start, serve, and stop gracefully: both transports in one process over one service."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import structlog
import torch
import uvicorn

from vessa_server.api.grpc.server import GrpcServer, PortInUseError
from vessa_server.api.rest.app import create_app
from vessa_server.api.service import Service
from vessa_server.api.settings import ServerSettings
from vessa_server.bank import Banks
from vessa_server.cache import open_cache
from vessa_server.engine import VessaEngine
from vessa_server.model.presets import preset
from vessa_server.runtime.loading import load_runtime
from vessa_server.runtime.protocol import Runtime, RuntimeUnavailableError
from vessa_server.runtime.warm_up import warm_up

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Ports:
    """The ports that the server listens on."""

    grpc: int
    http: int


class _Uvicorn(uvicorn.Server):
    """Uvicorn without signal handlers of its own: the process has one way to stop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def build_engine(settings: ServerSettings) -> VessaEngine:
    """Load weights or connect to a tritonserver, open bank and cache.

    Raises:
        CheckpointError: no weights, or of another configuration.
        BankError: the bank is damaged.
        ValueError: the device or the tritonserver is not there, or an address is not understood.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    try:
        runtime = open_runtime(settings)
        log.info("runtime.warm", milliseconds=round(sum(warm_up(runtime).values())))
    except RuntimeUnavailableError as error:
        raise ValueError(error.message) from None
    return VessaEngine(
        runtime,
        Banks(settings.bank),
        open_cache(settings.cache, settings.cache_max_bytes),
        settings.engine_settings(),
    )


def open_runtime(settings: ServerSettings) -> Runtime:
    """The model in this process, or on a tritonserver.

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
            device=settings.device,
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


async def serve(
    engine: VessaEngine,
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
    """
    stop = stop or asyncio.Event()
    service = Service(engine, settings)
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
    for name in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(NotImplementedError, RuntimeError):
            asyncio.get_running_loop().add_signal_handler(name, stop.set)
    if settings.encode_bank:
        service.encode_soon(engine.bank.snapshot().templates)
    service.ready = True
    ports = Ports(grpc=grpc_server.port, http=listener.getsockname()[1])
    log.info(
        "server.ready",
        grpc=f"{settings.host}:{ports.grpc}",
        page=f"http://{settings.host}:{ports.http}/",
        model=engine.info.model_name,
        digest=engine.info.model_digest[:12],
        device=engine.info.device,
        dtype=engine.info.dtype,
        memory_mib=engine.info.memory >> 20,
        templates=len(engine.bank.snapshot().templates),
        cache=engine.cache.backend,
    )
    if on_ready is not None:
        on_ready(ports)
    await _stopped(stop, service)
    deadline = time.monotonic() + settings.grace_seconds
    log.info("server.stopping", grace_seconds=settings.grace_seconds)
    for name in (signal.SIGTERM, signal.SIGINT):  # a second signal exits at once
        with contextlib.suppress(NotImplementedError, RuntimeError):
            asyncio.get_running_loop().remove_signal_handler(name)
    service.ready = False
    await grpc_server.set_serving(False)
    await service.close(deadline)
    await grpc_server.stop(max(0.1, deadline - time.monotonic()))
    http.should_exit = True
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(max(0.5, deadline - time.monotonic())):
            await asyncio.shield(http_task)
    http.force_exit = True
    await http_task
    engine.close()
    log.info("server.stopped")


async def _stopped(stop: asyncio.Event, service: Service) -> None:
    """Wait for the end; a scheduler that died ends the server, too."""
    while not stop.is_set():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await stop.wait()
        if not service.scheduler.alive:
            log.error("server.scheduler_died", effect="the server stops, to be started anew")
            return


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise PortInUseError(
            f"http_port: cannot listen on {host}:{port} ({error.strerror}); "
            "stop the other program or set another with --http-port"
        ) from error
    listener.listen(128)
    return listener
