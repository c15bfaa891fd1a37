"""Clients of the Open Inference Protocol for the tests: tritonclient's, gRPC and HTTP."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from PIL import Image
from tritonclient.utils import np_to_triton_dtype

from support import RunningServer, picture
from vessa_client import AnyArray, SegmentationResult

ONE_IMAGE: dict[str, AnyArray] = {"image": picture(0)[0]}


@dataclass(frozen=True)
class Protocol:
    """One of tritonclient's transports, and its connection to a server."""

    module: ModuleType
    client: Any
    over_grpc: bool

    def tensor(self, name: str, array: AnyArray, **options: bool) -> Any:
        tensor = self.module.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array, **options)
        return tensor

    def infer(
        self, arrays: Mapping[str, AnyArray], outputs: Sequence[str] = (), **options: Any
    ) -> Any:
        inputs = [self.tensor(name, array) for name, array in arrays.items()]
        wanted = [self.module.InferRequestedOutput(name) for name in outputs] or None
        return self.client.infer("vessa", inputs, outputs=wanted, **options)

    def code(self, grpc_code: str, http_status: int) -> str:
        return f"StatusCode.{grpc_code}" if self.over_grpc else str(http_status)


def connected(kind: str, server: RunningServer) -> Protocol:
    over_grpc = kind == "grpc"
    module = tritonclient.grpc if over_grpc else tritonclient.http
    return Protocol(module, module.InferenceServerClient(_address(kind, server)), over_grpc)


def connected_async(kind: str, server: RunningServer) -> Any:
    over_grpc = kind == "grpc"
    module = tritonclient.grpc.aio if over_grpc else tritonclient.http.aio
    return module.InferenceServerClient(_address(kind, server))


def _address(kind: str, server: RunningServer) -> str:
    return server.grpc if kind == "grpc" else server.http.removeprefix("http://")


def one_file(data: bytes) -> AnyArray:
    return np.array([data], dtype=np.object_)


def png(array: AnyArray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, format="PNG")
    return stream.getvalue()


def assert_same(answer: Any, expected: SegmentationResult) -> None:
    assert np.array_equal(answer.as_numpy("labels"), expected.labels)
    assert np.array_equal(answer.as_numpy("confidence"), expected.confidence)
    names = [c.class_name.encode() for c in expected.classes]
    assert answer.as_numpy("class_names").tolist() == names
    scores = np.array([c.predicted_iou for c in expected.classes], np.float32)
    assert np.array_equal(answer.as_numpy("predicted_iou"), scores)
    if expected.probabilities is not None:
        assert np.array_equal(answer.as_numpy("probabilities"), expected.probabilities)
