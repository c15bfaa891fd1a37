"""Servers that only send bytes back, to compare ours with; each says on which port it listens."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
from concurrent import futures
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc

METHOD = "/bare.Echo/Call"
MESSAGE = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
TRITON_MODEL = "echo"
TRITON_CONFIG = """
backend: "python"
input [ { name: "image" data_type: TYPE_UINT8 dims: [ -1, -1 ] } ]
output [ { name: "image" data_type: TYPE_UINT8 dims: [ -1, -1 ] } ]
instance_group [ { kind: KIND_CPU count: 1 } ]
"""
TRITON_CODE = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            image = pb_utils.get_input_tensor_by_name(request, "image").as_numpy()
            tensor = pb_utils.Tensor("image", image)
            answers.append(pb_utils.InferenceResponse(output_tensors=[tensor]))
        return answers
"""


def serve_grpc_sync(ready: Connection) -> None:
    """Bare grpcio with a pool of threads."""
    server = grpc.server(futures.ThreadPoolExecutor(8), options=MESSAGE)
    server.add_generic_rpc_handlers((_handler(lambda request, _: request),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    ready.send((port, 0))
    server.wait_for_termination()


def serve_grpc_aio(ready: Connection) -> None:
    """Bare grpcio with asyncio."""

    async def echo(request: bytes, _: object) -> bytes:
        return request

    async def run() -> None:
        server = grpc.aio.server(options=MESSAGE)
        server.add_generic_rpc_handlers((_handler(echo),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        ready.send((port, 0))
        await server.wait_for_termination()

    asyncio.run(run())


def _handler(function: Any) -> Any:
    methods = {"Call": grpc.unary_unary_rpc_method_handler(function)}
    return grpc.method_handlers_generic_handler("bare.Echo", methods)


def serve_fastapi(ready: Connection) -> None:
    """Bare FastAPI on uvicorn."""
    import uvicorn
    from fastapi import FastAPI, Request, Response

    app = FastAPI()

    @app.post("/echo")
    async def echo(request: Request) -> Response:
        return Response(await request.body(), media_type="application/octet-stream")

    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    ready.send((0, listener.getsockname()[1]))
    config = uvicorn.Config(app, log_level="error", access_log=False)
    asyncio.run(uvicorn.Server(config).serve(sockets=[listener]))


def triton_command() -> list[str] | None:
    """What starts a tritonserver, but for the folder of models: as for the tests; None without."""
    given = os.environ.get("VESSA_TRITONSERVER")
    if given:
        return shlex.split(given)
    binary = shutil.which("tritonserver")
    return None if binary is None else ["sh", "-c", f'exec {binary} --model-repository="$0" "$@"']


def serve_triton(ready: Connection) -> None:
    """A tritonserver with a model of the Python backend."""
    command = triton_command()
    assert command is not None
    with socket.socket() as free, tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / TRITON_MODEL
        (model / "1").mkdir(parents=True)
        (model / "config.pbtxt").write_text(TRITON_CONFIG)
        (model / "1" / "model.py").write_text(TRITON_CODE)
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        flags = [f"--grpc-port={port}", "--allow-http=false", "--allow-metrics=false"]
        process = subprocess.Popen([*command, scratch, *flags], stderr=subprocess.PIPE, text=True)
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())  # its output ends then
        assert process.stderr is not None
        for line in process.stderr:
            if "Started GRPCInferenceService" in line:
                ready.send((port, 0))
        process.wait()
