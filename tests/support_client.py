"""Small servers of the wire contract for the client's tests: real ports, answers by a rule."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np

from vessa.v1 import pseudo_label_pb2 as pb
from vessa.v1 import pseudo_label_pb2_grpc as pb_grpc
from vessa_client import (
    ClassResult,
    ImageReference,
    SegmentationResult,
    UInt8Array,
    convert,
    wire,
)

Context = grpc.aio.ServicerContext[Any, Any]


def expected_labels(image: UInt8Array) -> UInt8Array:
    """What the servers answer: 1 where an image is bright."""
    labels: UInt8Array = (image > 100).astype(np.uint8)
    return labels


def result(
    labels: UInt8Array, confidence: UInt8Array, classes: tuple[ClassResult, ...], **more: Any
) -> SegmentationResult:
    """A result of a slice; ``more`` are its other fields, which have little in them."""
    fields: dict[str, Any] = {
        "request_id": "",
        "templates": (),
        "stage_ms": {},
        "model_digest": "d",
        "bank_version": "b",
        "image_features_cached": False,
        "template_features_cached": False,
        "image_sha256": "",
    }
    return SegmentationResult(
        labels=labels, confidence=confidence, classes=classes, **(fields | more)
    )


def answer(
    image: UInt8Array, request_id: str, *, index: int = 0, volume: str = ""
) -> pb.SegmentResponse:
    """A whole answer for an image."""
    found = result(
        expected_labels(image),
        image,
        (ClassResult(class_name="disc", predicted_iou=0.5),),
        request_id=request_id,
        image_sha256=wire.image_digest(image),
        slice_index=index,
        volume_sha256=volume,
    )
    return convert.result_to_message(found)


def refusal(request_id: str, *, index: int = 0, **error: Any) -> pb.SegmentResponse:
    """An answer that carries an error."""
    return pb.SegmentResponse(request_id=request_id, slice_index=index, error=pb.Error(**error))


def pixels(message: pb.Image) -> UInt8Array:
    """The image of a message that carries one."""
    image = convert.image_from_message(message)
    assert not isinstance(image, bytes | ImageReference)
    return image.astype(np.uint8, copy=False)


class Images:
    """Images that a server holds, by their reference."""

    def __init__(self) -> None:
        self._held: dict[str, UInt8Array] = {}

    def pixels(self, message: pb.Image) -> UInt8Array:
        """The image of a message, which may name one that came before."""
        if message.HasField("ref"):
            return self._held[message.ref.sha256]
        image = pixels(message)
        self._held[wire.image_digest(image)] = image
        return image


async def abort(
    context: Context, code: grpc.StatusCode, *, field: str = "", retry_after: float = 0.0
) -> None:
    """End a call with a status, as the contract says."""
    pairs = [(wire.METADATA_FIELD, field), (wire.METADATA_RETRY_AFTER, f"{retry_after:.3f}")]
    context.set_trailing_metadata(tuple(pairs))
    await context.abort(code, f"{field}: refused")


@contextmanager
def serving(servicer: pb_grpc.PseudoLabelServiceServicer, port: int = 0) -> Iterator[str]:
    """A grpc.aio server in a thread of its own; gives its address."""
    started: Future[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def serve() -> None:
        stopped = asyncio.Event()
        server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", wire.MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", wire.MAX_MESSAGE_BYTES),
            ]
        )
        pb_grpc.add_PseudoLabelServiceServicer_to_server(servicer, server)
        address = f"127.0.0.1:{server.add_insecure_port(f'127.0.0.1:{port}')}"
        await server.start()
        started.set_result((address, asyncio.get_running_loop(), stopped))
        await stopped.wait()
        await server.stop(None)

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    address, loop, stopped = started.result(30)
    try:
        yield address
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join(30)
        assert not thread.is_alive()
