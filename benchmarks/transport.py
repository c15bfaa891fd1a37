"""What our transports cost: a runtime that does nothing, beside bare servers in the same run.

Every server is a process of its own; an image of 512 x 512 bytes goes in, a label map of that
size comes out. ``asked again`` is an image that the server has answered before: the queue and the
kept answer, and nothing of a model; ``by reference`` is the same, sent as its digest. ``new
images`` adds what every new image costs without a model: digest, plan, the rules on its maps.
Peers only send bytes back. With ``VESSA_TRITONSERVER``, as for the tests, a tritonserver is one
of them.

    python benchmarks/transport.py
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import tritonclient.grpc.aio as kserve
from rich.table import Table

from acdc import RESULTS, circumstances
from bare_servers import (
    MESSAGE,
    METHOD,
    TRITON_MODEL,
    serve_fastapi,
    serve_grpc_aio,
    serve_grpc_sync,
    serve_triton,
    triton_command,
)
from vessa.v1 import pseudo_label_pb2_grpc as pb_grpc
from vessa_client import (
    AsyncVessaClient,
    ClassDefinition,
    SegmentationRequest,
    UInt8Array,
    VessaError,
    convert,
    files,
)
from vessa_client.console import console
from vessa_common.spinning import spin_briefly

SIDE = 512
CLIENTS = (1, 8, 64)
SECONDS, WARMING = 4.0, 1.0
# One call with the n-th image.
Call = Callable[[int], Awaitable[object]]


def image(index: int) -> UInt8Array:
    """The ``index``-th image; all are different."""
    picture = _disc().copy()
    picture[0, :8] = np.frombuffer(np.uint64(index).tobytes(), np.uint8)
    return picture


@cache
def _disc() -> UInt8Array:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    inside = (rows - 200) ** 2 + (columns - 300) ** 2 < 90**2
    disc: UInt8Array = np.where(inside, 160, 40).astype(np.uint8)
    return disc


# Servers, each in a process of its own; they say on which port they listen.


def serve_ours(ready: Connection) -> None:
    """Our server over a runtime that returns empty masks."""
    from no_runtime import NoRuntime
    from vessa_server.api.run import Ports, serve
    from vessa_server.api.settings import ServerSettings
    from vessa_server.bank import Banks
    from vessa_server.cache import NoCache
    from vessa_server.engine import VessaEngine

    with tempfile.TemporaryDirectory() as scratch:
        engine = VessaEngine(NoRuntime(), Banks(Path(scratch)), NoCache())
        labels = (image(0) > 100).astype(np.uint8)
        engine.add_template(image(0), labels, [ClassDefinition(name="disc")])
        settings = ServerSettings(grpc_port=0, http_port=0, max_queue=512, encode_bank=False)

        def started(ports: Ports) -> None:
            ready.send((ports.grpc, ports.http))

        asyncio.run(serve([engine], settings, on_ready=started))


@dataclass
class Peer:
    """A server and a way to ask it."""

    name: str
    serve: Callable[[Connection], None]
    connect: Callable[[int, int], Awaitable[tuple[Call, Callable[[], Awaitable[object]]]]]
    found: dict[str, Any] = field(default_factory=dict)


async def bare_grpc(port: int, _: int) -> tuple[Call, Callable[[], Awaitable[object]]]:
    """An image's bytes, and the same back."""
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", MESSAGE)
    call = channel.unary_unary(METHOD, bytes, bytes)
    return lambda index: call(image(index).tobytes()), lambda: channel.close(None)


async def bare_http(_: int, port: int) -> tuple[Call, Callable[[], Awaitable[object]]]:
    """An image's bytes, and the same back."""
    client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", limits=httpx.Limits())
    return lambda i: client.post("/echo", content=image(i).tobytes()), client.aclose


async def bare_triton(port: int, _: int) -> tuple[Call, Callable[[], Awaitable[object]]]:
    """An image, and the same back."""
    client = kserve.InferenceServerClient(f"127.0.0.1:{port}")

    async def infer(index: int) -> object:
        given = kserve.InferInput("image", [SIDE, SIDE], "UINT8")
        given.set_data_from_numpy(image(index))
        return await client.infer(TRITON_MODEL, [given])

    return infer, client.close


def ours(kind: str, *, again: bool) -> Any:
    """Our server: ``unary``, ``reference``, ``stream``, ``rest`` or ``kserve``."""

    async def connect(port: int, http: int) -> tuple[Call, Callable[[], Awaitable[object]]]:
        if kind == "rest":
            return _rest(http, again=again)
        if kind == "kserve":
            return _kserve(port, again=again)
        if kind == "stream":
            return _stream(port, again=again)
        client = AsyncVessaClient(f"127.0.0.1:{port}")
        if kind == "unary":  # the client would send a reference for an image that the server has
            client._references.confirm = lambda *_: None  # type: ignore[method-assign]

        async def unary(index: int) -> object:
            return await client.segment(SegmentationRequest(image=_pick(index, again=again)))

        return unary, client.close

    return connect


def _pick(index: int, *, again: bool) -> UInt8Array:
    return image(index % 8 if again else index)


def _stream(port: int, *, again: bool) -> tuple[Call, Callable[[], Awaitable[object]]]:
    """Streams that wait for each answer, as many as there are clients."""
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", MESSAGE)
    stub = pb_grpc.PseudoLabelServiceStub(channel)
    idle: list[Any] = []

    async def ask(index: int) -> object:
        call = idle.pop() if idle else stub.SegmentStream()
        request = SegmentationRequest(image=_pick(index, again=again))
        await call.write(convert.request_to_message(request))
        answer = convert.result_from_message(await call.read())
        idle.append(call)
        return answer

    async def close() -> None:
        for call in idle:
            call.cancel()
        await channel.close(None)

    return ask, close


def _rest(port: int, *, again: bool) -> tuple[Call, Callable[[], Awaitable[object]]]:
    from vessa_server.api.rest.render import png

    client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", limits=httpx.Limits())
    known = {index: png(image(index)) for index in range(8)}

    async def post(index: int) -> object:
        data = known[index % 8] if again else png(image(index))
        answer = await client.post(
            "/pseudolabel", files={"image": data}, headers={"Accept": "image/png"}
        )
        return answer.raise_for_status()

    return post, client.aclose


def _kserve(port: int, *, again: bool) -> tuple[Call, Callable[[], Awaitable[object]]]:
    client = kserve.InferenceServerClient(f"127.0.0.1:{port}")

    async def infer(index: int) -> object:
        given = kserve.InferInput("image", [SIDE, SIDE], "UINT8")
        given.set_data_from_numpy(_pick(index, again=again))
        return await client.infer("vessa", [given])

    return infer, client.close


def peers() -> list[Peer]:
    """All of them, bare ones first."""
    found = [
        Peer("grpcio, sync", serve_grpc_sync, bare_grpc),
        Peer("grpcio, aio", serve_grpc_aio, bare_grpc),
        Peer("FastAPI", serve_fastapi, bare_http),
    ]
    if triton_command() is not None:
        found.append(Peer("tritonserver, Python backend", serve_triton, bare_triton))
    found.append(Peer("VESSA gRPC, by reference", serve_ours, ours("reference", again=True)))
    for again in (True, False):
        kind = "asked again" if again else "new images"
        found += [
            Peer(f"VESSA gRPC, {kind}", serve_ours, ours("unary", again=again)),
            Peer(f"VESSA gRPC stream, {kind}", serve_ours, ours("stream", again=again)),
            Peer(f"VESSA KServe, {kind}", serve_ours, ours("kserve", again=again)),
            Peer(f"VESSA REST, {kind}", serve_ours, ours("rest", again=again)),
        ]
    return found


def measure(peer: Peer, seconds: float) -> None:
    """Latency and throughput with one, some and many clients."""
    context = multiprocessing.get_context("spawn")
    ours_end, theirs = context.Pipe()
    process = context.Process(target=peer.serve, args=(theirs,), daemon=True)
    process.start()
    if not ours_end.poll(60):
        raise RuntimeError(f"{peer.name}: does not start")
    grpc_port, http_port = ours_end.recv()
    try:
        for clients in CLIENTS:
            spent = asyncio.run(_load(peer, grpc_port, http_port, clients, seconds))
            peer.found[str(clients)] = _figures(spent, seconds)
            console.print(f"{peer.name}, {clients}: {peer.found[str(clients)]}", highlight=False)
    finally:
        process.terminate()
        process.join(10)


async def _load(
    peer: Peer, grpc_port: int, http_port: int, clients: int, seconds: float
) -> list[float]:
    call, close = await peer.connect(grpc_port, http_port)
    numbers = iter(range(clients * 10**6, 10**12))
    spent: list[float] = []
    begun = time.perf_counter()

    async def work() -> None:
        while (now := time.perf_counter() - begun) < WARMING + seconds:
            start = time.perf_counter()
            await call(next(numbers))
            if now > WARMING:
                spent.append(1000 * (time.perf_counter() - start))

    try:
        await asyncio.gather(*[work() for _ in range(clients)])
    except VessaError as error:
        raise RuntimeError(f"{peer.name}: {error}") from error
    finally:
        await close()
    return spent


def _figures(spent: Sequence[float], seconds: float) -> dict[str, float]:
    p50, p99 = (float(np.percentile(spent, p)) for p in (50, 99))
    return {
        "p50_ms": round(p50, 3),
        "p99_ms": round(p99, 3),
        "per_second": round(len(spent) / seconds, 1),
    }


def main() -> None:
    """Measure all peers, show and write."""
    spin_briefly()  # as the command of the server
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each measurement")
    parser.add_argument("--peers", nargs="+", help="those whose name begins like this")
    parser.add_argument("--results", type=Path, default=RESULTS / "transport.json")
    arguments = parser.parse_args()
    chosen = [
        peer
        for peer in peers()
        if not arguments.peers or peer.name.startswith(tuple(arguments.peers))
    ]
    for peer in chosen:
        measure(peer, arguments.seconds)
    table = Table("", *[f"{n} clients: p50, p99 ms, 1/s" for n in CLIENTS])
    for peer in chosen:
        table.add_row(peer.name, *[" ".join(map(str, f.values())) for f in peer.found.values()])
    console.print(table)
    facts = circumstances(side=SIDE, seconds=arguments.seconds)
    rows = {peer.name: peer.found for peer in chosen}
    text = json.dumps({**facts, "rows": rows}, indent=1)
    files.write_text(arguments.results, text + "\n")
    console.print(f"Results {arguments.results}", highlight=False)


if __name__ == "__main__":
    main()
