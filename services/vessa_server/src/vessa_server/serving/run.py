"""Start, serve, and stop gracefully: both transports in one process over one service."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import structlog
import torch
import uvicorn

from vessa_server.bank import TemplateBank
from vessa_server.cache import open_cache
from vessa_server.engine import VessaEngine
from vessa_server.model import checkpoint
from vessa_server.model.presets import preset
from vessa_server.serving.grpc_server import GrpcServer, PortInUseError
from vessa_server.serving.http_app import create_app
from vessa_server.serving.service import Service
from vessa_server.serving.settings import ServerSettings

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
    """Load weights, open bank and cache.

    Raises:
        CheckpointError: no weights, or of another configuration.
        BankError: the bank is damaged.
        ValueError: the cache address is not understood.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    folder = settings.weights_folder()
    model = checkpoint.load(preset(settings.preset), folder)
    digest = checkpoint.digest(folder)
    if settings.adaptation is not None:
        digest = checkpoint.apply_delta(model, settings.adaptation, digest)
    return VessaEngine(
        model,
        digest,
        TemplateBank(settings.bank),
        open_cache(settings.cache, settings.cache_max_bytes),
        settings.engine_settings(),
    )


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
        service.batcher.start()
        await grpc_server.start(settings.host, settings.grpc_port)
    except PortInUseError:
        listener.close()
        await service.batcher.drain(0)
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
    service.ready = True
    ports = Ports(grpc=grpc_server.port, http=listener.getsockname()[1])
    log.info(
        "server.ready",
        grpc=f"{settings.host}:{ports.grpc}",
        page=f"http://{settings.host}:{ports.http}/",
        model=engine.model.config.name,
        digest=engine.model_digest[:12],
        templates=len(engine.bank.snapshot().templates),
        cache=engine.cache.backend,
    )
    if on_ready is not None:
        on_ready(ports)
    await stop.wait()
    log.info("server.stopping", grace_seconds=settings.grace_seconds)
    service.ready = False
    await grpc_server.set_serving(False)
    await service.batcher.drain(settings.grace_seconds)
    await grpc_server.stop(settings.grace_seconds)
    http.should_exit = True
    await http_task
    engine.cache.close()
    log.info("server.stopped")


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
