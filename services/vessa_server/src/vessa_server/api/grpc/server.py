"""gRPC transport: the wire contract, health and reflection."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import TypeVar

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from vessa.v1 import pseudo_label_pb2 as pb
from vessa.v1 import pseudo_label_pb2_grpc as pb_grpc
from vessa_client import (
    AnyArray,
    ClassDefinition,
    ImageReference,
    InvalidRequestError,
    VessaError,
    convert,
    wire,
)
from vessa_server.api import errors, volumes
from vessa_server.api.grpc import calls
from vessa_server.api.grpc.calls import Context, Outcome
from vessa_server.api.grpc.door import Door
from vessa_server.api.kserve import servicer as kserve
from vessa_server.api.room import Share
from vessa_server.api.service import Caller, Service
from vessa_server.scheduler.scheduler import Priority

log = structlog.get_logger(__name__)
T = TypeVar("T")
SERVICE_NAME = pb.DESCRIPTOR.services_by_name["PseudoLabelService"].full_name
# Label of the metrics.
TRANSPORT = "grpc"


class PortInUseError(RuntimeError):
    """The port that the server should listen on is taken."""


class PseudoLabelServicer(pb_grpc.PseudoLabelServiceServicer):
    """Translates messages; everything else is in :class:`Service`."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def Segment(self, request: pb.SegmentRequest, context: Context) -> pb.SegmentResponse:
        """One image."""

        async def answer() -> pb.SegmentResponse:
            return await self._segment(request, calls.caller_of(context, Priority.INTERACTIVE))

        return await self._answer("Segment", context, answer)

    async def SegmentStream(
        self, request_iterator: AsyncIterator[pb.SegmentRequest], context: Context
    ) -> AsyncIterator[pb.SegmentResponse]:
        """Many images; reading pauses while ``max_stream_in_flight`` are unanswered."""
        answers: asyncio.Queue[pb.SegmentResponse | None] = asyncio.Queue()
        places = asyncio.Semaphore(self.service.settings.max_stream_in_flight)
        tasks: set[asyncio.Task[None]] = set()

        caller = calls.caller_of(context, Priority.BULK)

        async def work(message: pb.SegmentRequest) -> None:
            await answers.put(await self._stream_answer(message, caller))

        async def read() -> None:
            try:
                async for message in request_iterator:
                    await places.acquire()
                    task = asyncio.create_task(work(message))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                if tasks:
                    await asyncio.gather(*tasks)
            finally:
                answers.put_nowait(None)

        reader = asyncio.create_task(read())
        try:
            while (response := await answers.get()) is not None:
                yield response
                places.release()
            await reader
        except VessaError as error:
            await calls.abort(context, error)
        finally:
            for task in (reader, *tasks):
                task.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def SegmentVolume(
        self, request_iterator: AsyncIterator[pb.SegmentVolumeRequest], context: Context
    ) -> AsyncIterator[pb.SegmentResponse]:
        """A volume, slice by slice; answers begin when all slices have come."""
        caller = calls.caller_of(context, Priority.BULK)
        with self._measured("SegmentVolume") as outcome, Share(self.service.volumes) as share:
            try:
                volume, indices = await self._incoming(request_iterator, share)
            except Exception as raised:
                await calls.abort(context, outcome.failed(raised))
            # Slices carry their own errors; who has them all may go before the end.
            outcome.code = "OK"
            render = convert.result_to_message
            request_id = volume.request.request_id
            answers = volumes.answers(self.service, volume, indices, render, caller)
            async with contextlib.aclosing(answers):
                async for index, answer in answers:
                    yield (
                        _error_message(request_id, answer, index)
                        if isinstance(answer, VessaError)
                        else answer
                    )

    async def _incoming(
        self, messages: AsyncIterator[pb.SegmentVolumeRequest], share: Share
    ) -> tuple[volumes.IncomingVolume, list[int]]:
        """All slices of a volume, and which of them are to be answered."""
        volume: volumes.IncomingVolume | None = None
        asked: set[int] = set()
        async for message in messages:
            if message.WhichOneof("part") != ("header" if volume is None else "slice"):
                raise InvalidRequestError(
                    "part: expected one header first, then slices", field="part"
                )
            if volume is None:
                opened = partial(_volume, message.header, self.service, share)
                volume = await self.service.work(opened)
                continue
            asked.add(message.slice.index)
            await self.service.work(partial(_add_slice, volume, message.slice))
        if volume is None:
            raise InvalidRequestError("header: missing, expected it first", field="header")
        by_reference = volume.reference is not None
        return volume, await self.service.work(
            partial(volume.close, asked if by_reference else set())
        )

    async def AddTemplate(
        self, request: pb.AddTemplateRequest, context: Context
    ) -> pb.AddTemplateResponse:
        """Add an annotated image to the bank."""

        async def answer() -> pb.AddTemplateResponse:
            image, labels, classes = await self.service.work(
                lambda: _template(request, self.service)
            )
            info, created = await self.service.add_template(
                image,
                labels,
                classes,
                request.name,
                request.bank,
                convert.window_from_message(request),
            )
            listing = await self.service.listing(request.bank)
            return pb.AddTemplateResponse(
                template=convert.template_to_message(info),
                bank_version=listing.version,
                created=created,
            )

        return await self._answer("AddTemplate", context, answer)

    async def GetTemplate(
        self, request: pb.GetTemplateRequest, context: Context
    ) -> pb.GetTemplateResponse:
        """A template with its pixels."""

        async def answer() -> pb.GetTemplateResponse:
            found = await self.service.template(request.template_id, request.bank)
            return await self.service.work(lambda: convert.template_content_to_message(found))

        return await self._answer("GetTemplate", context, answer)

    async def ListTemplates(
        self, request: pb.ListTemplatesRequest, context: Context
    ) -> pb.ListTemplatesResponse:
        """Templates and classes of the bank."""

        async def answer() -> pb.ListTemplatesResponse:
            listing = await self.service.listing(request.bank)
            return pb.ListTemplatesResponse(
                templates=[convert.template_to_message(t) for t in listing.templates],
                classes=[convert.class_to_message(c) for c in listing.classes],
                bank_version=listing.version,
            )

        return await self._answer("ListTemplates", context, answer)

    async def DeleteTemplate(
        self, request: pb.DeleteTemplateRequest, context: Context
    ) -> pb.DeleteTemplateResponse:
        """Delete a template."""

        async def answer() -> pb.DeleteTemplateResponse:
            version = await self.service.delete_template(request.template_id, request.bank)
            return pb.DeleteTemplateResponse(bank_version=version)

        return await self._answer("DeleteTemplate", context, answer)

    async def GetServerInfo(
        self, request: pb.GetServerInfoRequest, context: Context
    ) -> pb.GetServerInfoResponse:
        """Model, bank and limits."""

        async def answer() -> pb.GetServerInfoResponse:
            return convert.info_to_message(await self.service.info(request.bank))

        return await self._answer("GetServerInfo", context, answer)

    async def _segment(self, message: pb.SegmentRequest, caller: Caller) -> pb.SegmentResponse:
        return await self.service.segment(
            lambda: convert.request_from_message(message, self.service.size_of),
            convert.result_to_message,
            caller,
        )

    async def _stream_answer(
        self, message: pb.SegmentRequest, caller: Caller
    ) -> pb.SegmentResponse:
        with self._measured("SegmentStream") as outcome:
            try:
                return await self._segment(message, caller)
            except Exception as raised:
                return _error_message(message.request_id, outcome.failed(raised))

    async def _answer(self, method: str, context: Context, answer: Callable[[], Awaitable[T]]) -> T:
        return await calls.answered(self.service.metrics, TRANSPORT, method, context, answer)

    def _measured(self, method: str) -> AbstractContextManager[Outcome]:
        return calls.measured(self.service.metrics, TRANSPORT, method)


def _volume(header: pb.VolumeHeader, service: Service, share: Share) -> volumes.IncomingVolume:
    request, reference = convert.volume_header_from_message(header)
    return volumes.IncomingVolume(request, header.num_slices, reference, service, share)


def _add_slice(volume: volumes.IncomingVolume, part: pb.VolumeSlice) -> None:
    def known(shape: tuple[int, int]) -> volumes.Known:
        classes = len(volume.request.class_names) or wire.MAX_CLASSES
        student = convert.student_from_message(part.student_mask, shape, classes)
        return volumes.Known(student, **convert.marks_from_message(part))

    image = partial(convert.image_from_message, part.image) if part.HasField("image") else None
    volume.add(part.index, image, known)


def _error_message(request_id: str, error: VessaError, slice_index: int = 0) -> pb.SegmentResponse:
    return pb.SegmentResponse(
        request_id=request_id,
        slice_index=slice_index,
        error=pb.Error(
            code=errors.code_name(error),
            message=error.message,
            field=error.field,
            retry_after_seconds=error.retry_after,
        ),
    )


def _template(
    request: pb.AddTemplateRequest, service: Service
) -> tuple[AnyArray | bytes, AnyArray, list[ClassDefinition]]:
    image = convert.image_from_message(request.image)
    if isinstance(image, ImageReference):
        raise InvalidRequestError(
            "image.ref: a template needs its image, expected encoded or tensor", field="image.ref"
        )
    labels = wire.decode_label_map(request.label_map, expected=service.size_of(image))
    return image, labels, [convert.class_from_message(c) for c in request.classes]


def join_address(host: str, port: int) -> str:
    """Host and port in one text; an IPv6 address stands in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class GrpcServer:
    """A grpc.aio server with health and reflection."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.health = HealthServicer()
        self.server = grpc.aio.server(
            interceptors=(Door(service, (SERVICE_NAME, kserve.SERVICE_NAME), kserve.OPEN_CALLS),),
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", wire.MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", wire.MAX_MESSAGE_BYTES),
            ],
        )
        pb_grpc.add_PseudoLabelServiceServicer_to_server(PseudoLabelServicer(service), self.server)
        kserve.add_to_server(service, self.server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self.server)
        reflection.enable_server_reflection(
            (SERVICE_NAME, kserve.SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME),
            self.server,
        )
        self.port = 0

    async def start(self, host: str, port: int) -> None:
        """Listen and report SERVING.

        Raises:
            PortInUseError: the port is taken.
        """
        try:
            self.port = self.server.add_insecure_port(join_address(host, port))
        except RuntimeError as error:
            raise PortInUseError(
                f"grpc_port: cannot listen on {join_address(host, port)}, it is in use or not "
                "permitted; stop the other program or set another with --grpc-port"
            ) from error
        await self.server.start()
        await self.set_serving(True)

    async def set_serving(self, serving: bool) -> None:
        """Report SERVING or NOT_SERVING to health checks."""
        status = health_pb2.HealthCheckResponse.ServingStatus
        for name in ("", SERVICE_NAME, kserve.SERVICE_NAME):
            await self.health.set(name, status.SERVING if serving else status.NOT_SERVING)

    async def stop(self, grace: float) -> None:
        """Stop accepting, let calls finish for ``grace`` seconds."""
        await self.server.stop(grace)
