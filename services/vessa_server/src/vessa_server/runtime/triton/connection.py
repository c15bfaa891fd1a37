"""The connection to a tritonserver: one client for the process, and its errors in words.

The client is the synchronous one. The scheduler's one thread waits for each answer anyway: an
event loop would add two changes of threads to each call, and run nothing beside it.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import structlog
from tritonclient.grpc import (
    InferenceServerClient,
    InferInput,
    InferRequestedOutput,
    InferResult,
)
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from vessa_server.runtime.protocol import RuntimeUnavailableError
from vessa_server.runtime.triton.messages import FLOATS, MESSAGE, NAMES, Arrays
from vessa_server.runtime.triton.shared_memory import MIN_BYTES, Region, Regions

log = structlog.get_logger(__name__)
# Peers that may see this machine's shared memory.
LOCAL: tuple[str, ...] = ("localhost", "127.0.0.1", "::1")
MODEL = "vessa"
INT32_MAX = 2**31 - 1
# Seconds until a caller may try again, and in Triton's queue.
RETRY_AFTER, QUEUE_SECONDS = 1.0, 30.0
# Loading a large model anew.
LOAD_SECONDS = 600.0
CHANNEL = (
    ("grpc.max_send_message_length", INT32_MAX),
    ("grpc.max_receive_message_length", INT32_MAX),
    # A peer that vanished without a word is noticed; more pings than these would be refused.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # One that is back is found at once.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 200),
)


class OperationError(RuntimeError):
    """The tritonserver does not understand a request, or failed at it."""


@dataclass(frozen=True)
class Address:
    """Of a model on a tritonserver."""

    host: str
    port: int
    model: str

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read ``triton://host:port`` or ``triton://host:port/model``.

        Raises:
            ValueError: it is neither.
        """
        with contextlib.suppress(ValueError):
            parts = urlsplit(text)
            model = parts.path.strip("/") or MODEL
            plain = not (parts.username or parts.query or parts.fragment or "/" in model)
            if parts.scheme == "triton" and parts.hostname and parts.port and plain:
                return cls(parts.hostname, parts.port, model)
        raise ValueError(
            f"runtime: {text!r}, expected torch or triton://host:port, the tritonserver's gRPC "
            "port (VESSA_RUNTIME)"
        )

    @property
    def peer(self) -> str:
        """Host and port."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Connection:
    """Sends tensors to a model and gets its own. One thread at a time."""

    def __init__(self, address: Address) -> None:
        """Connect at the first request."""
        self.address = address
        # For which Triton may keep a request waiting, if it has a policy for that.
        self.queue_seconds = QUEUE_SECONDS
        self._client = InferenceServerClient(address.peer, channel_args=CHANNEL)
        self._regions = Regions(self._client, offered=address.host in LOCAL)

    def infer(
        self, arrays: Arrays, *, seconds: float, priority: int = 0, answer_bytes: int = 0
    ) -> Arrays:
        """Run one request.

        Args:
            arrays: tensors by name.
            seconds: to wait for the answer.
            priority: 1 is first, 0 the model's default.
            answer_bytes: most bytes of the answer's floats, where that is known.

        Raises:
            RuntimeUnavailableError: the tritonserver or its model is away or has no time.
            OperationError: it failed at the request.
        """
        for attempt in (1, 2):
            try:
                return self._infer(arrays, seconds, priority, answer_bytes)
            except InferenceServerException as error:
                # It may still write into memory that the next request would use.
                self._regions.close()
                if attempt == 2 or not self._mended(error):
                    raise self._failure(error, seconds) from None
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Release memory and connection."""
        self._regions.close()
        self._client.close()

    def _infer(self, arrays: Arrays, seconds: float, priority: int, answer_bytes: int) -> Arrays:
        outputs, region = None, self._regions.get("answer", answer_bytes)
        if region is not None:
            outputs = [InferRequestedOutput(MESSAGE), InferRequestedOutput(FLOATS)]
            outputs[1].set_shared_memory(region.name, region.nbytes)
        result = self._client.infer(
            self.address.model,
            self._inputs(arrays),
            outputs=outputs,
            priority=priority,
            timeout=int(1e6 * min(seconds, self.queue_seconds)),
            client_timeout=seconds,
        )
        return _arrays(result, region)

    def _inputs(self, arrays: Arrays) -> list[InferInput]:
        large = {
            name: array
            for name, array in arrays.items()
            if name != MESSAGE and array.nbytes >= MIN_BYTES
        }
        region = self._regions.get("request", sum(array.nbytes for array in large.values()))
        inputs, offset = [], 0
        for name, array in arrays.items():
            sent = InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
            if region is not None and name in large:
                region.write(array, offset)
                sent.set_shared_memory(region.name, array.nbytes, offset)
                offset += array.nbytes
            else:
                sent.set_data_from_numpy(array)
            inputs.append(sent)
        return inputs

    def _mended(self, error: InferenceServerException) -> bool:
        """Whether to try again at once: the tritonserver was restarted, or its model's process.

        Triton does not start a model's process again that has died, and says nothing of it; where
        it lets clients load models (``--model-control-mode=explicit``), that mends it.
        """
        text = error.message()
        if "shared memory region" in text:
            return True
        if "Stub process" not in text:
            return False
        log.error("triton.model_died", model=self.address.model, address=self.address.peer)
        try:
            self._client.unload_model(self.address.model)
            self._client.load_model(self.address.model, client_timeout=LOAD_SECONDS)
        except InferenceServerException:
            return False
        log.info("triton.model_loaded", model=self.address.model, address=self.address.peer)
        return True

    def _failure(self, error: InferenceServerException, seconds: float) -> Exception:
        code, text = str(error.status()).removeprefix("StatusCode."), error.message()
        where = f"runtime: the tritonserver at {self.address.peer} (VESSA_RUNTIME)"
        if "unknown model" in text or "not ready" in text:
            problem = f"{where} has no model {self.address.model!r} that is ready; see its log"
        elif "Stub process" in text:
            problem = f"{where}: the process of its model has died; restart it"
        elif "queue size" in text or "timeout expired" in text:
            problem = f"{where} has too much to do: {text}"
        elif code == "DEADLINE_EXCEEDED":
            problem = f"{where} did not answer within {seconds:g} s"
        elif code in ("UNAVAILABLE", "CANCELLED"):
            problem = (
                f"runtime: no tritonserver answers on gRPC at {self.address.peer}; start it, or "
                "correct VESSA_RUNTIME"
            )
        else:
            return OperationError(f"{where} failed: {code}: {text}")
        return RuntimeUnavailableError(problem, retry_after=RETRY_AFTER)


def _arrays(result: InferResult, region: Region | None) -> Arrays:
    """Tensors of an answer, with its floats in ``region`` if there is one."""
    arrays = {}
    for name in NAMES:
        output: Any = result.get_output(name)
        if output is None:
            continue
        if region is not None and name == FLOATS:
            arrays[name] = region.read(tuple(output.shape), np.float32)
        else:  # a copy: what tritonclient gives is read-only
            arrays[name] = np.array(result.as_numpy(name))
    return arrays
