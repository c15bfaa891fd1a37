"""How fast a server of the shipped weights answers clients over gRPC, in both of its modes."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import client_load
from gpu_jobs.jobs import rehearsal
from gpu_jobs.parts import WIDTH, Parts
from served import LOG, SAMPLE, Images, Server, serving
from vessa_client import VessaClient

MODES = ("exact", "fused")
# Clients at the same time, requests of each kind by a single one, and seconds of a load.
CLIENTS, COUNT, SECONDS = (1, 8, 64), 24, 3.0
SMALL_CLIENTS, SMALL_COUNT, SMALL_SECONDS = (1, 2), 2, 0.3
THREADS = 4
# Characters of the server's log that are shown where a part failed.
LOG_SHOWN = 4000
START_NEEDED, LATENCY_NEEDED, LOAD_NEEDED = 40.0, 20.0, 20.0


def run(smoke: Parts) -> None:
    """A server of each mode, in a process of its own."""
    images = Images.of(SAMPLE / "val")
    for mode in MODES:
        _of_mode(smoke, mode, images)


def _of_mode(smoke: Parts, mode: str, images: Images) -> None:
    servers: list[Server] = []
    with ExitStack() as stack:
        smoke.part(f"{mode} server", START_NEEDED, lambda: _start(stack, servers, smoke, mode))
        before = smoke.failed
        for server in servers:
            _measure(smoke, mode, server, images)
            if smoke.failed > before:
                print((server.folder / LOG).read_text()[-LOG_SHOWN:], flush=True)


def _start(stack: ExitStack, servers: list[Server], smoke: Parts, mode: str) -> dict[str, Any]:
    threads = 1 if rehearsal() else THREADS
    started = stack.enter_context(
        serving(SAMPLE, threads, batch_mode=mode, device=smoke.context.device.type)
    )
    smoke.processes.append(started.process)
    servers.append(started)
    with VessaClient(started.target) as client:
        info = client.info()
    return {
        "ready_seconds": round(started.seconds, 2),
        "device": info.device,
        "dtype": info.dtype,
        "memory_mib": info.device_memory_bytes >> 20,
    }


def _measure(smoke: Parts, mode: str, server: Server, images: Images) -> None:
    small = rehearsal()
    count = SMALL_COUNT if small else COUNT
    smoke.part(
        f"{mode} latency",
        LATENCY_NEEDED,
        lambda: client_load.latencies(server.target, images, count),
    )
    seconds = SMALL_SECONDS if small else SECONDS
    for clients in SMALL_CLIENTS if small else CLIENTS:
        smoke.part(
            f"{mode} x{clients}", LOAD_NEEDED, _load(smoke, server, images, clients, seconds)
        )


def _load(
    smoke: Parts, server: Server, images: Images, clients: int, seconds: float
) -> Callable[[], dict[str, Any]]:
    def work() -> dict[str, Any]:
        found = {}
        for kind in client_load.KINDS:
            began = time.time()
            figures = client_load.throughput(server.target, images, kind, clients, seconds)
            found[kind] = figures | smoke.sampler.means(began + 0.5)
        return found | {"resident_mib": server.resident >> 20}

    return work


def table(found: dict[str, Any]) -> list[str]:
    """Rows of the last table."""
    lines = ["nano, ms: first, cold, student mask, nothing new; then requests/s (ms)"]
    for mode in MODES:
        latency = found.get(f"{mode} latency", {})
        names = ("first_of_a_bank_ms", "cold_ms", "student_mask_ms", "nothing_new_ms")
        medians = [str(latency[name]["p50"]) for name in names if name in latency]
        lines.append(f"{mode:<{WIDTH}}{' '.join(medians)}")
        loads = [name for name in found if name.startswith(f"{mode} x")]
        for name in loads:
            rates = [
                f"{kind} {found[name][kind]['per_second']} ({found[name][kind]['p50']})"
                for kind in client_load.KINDS
                if kind in found[name]
            ]
            lines.append(f"{name:<{WIDTH}}{', '.join(rates)}")
    return lines
