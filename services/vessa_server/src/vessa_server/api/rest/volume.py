"""``POST /pseudolabel/volume``: a volume in; its labels, a summary, or answers by slice out."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from typing import Annotated, Any, Self

import numpy as np
from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from vessa_client import InvalidRequestError, SegmentationResult, VessaError, VolumeRequest, files
from vessa_client.files import ImageFile
from vessa_server.api import volumes
from vessa_server.api.rest import forms, render, uploads
from vessa_server.api.rest.forms import Form
from vessa_server.api.rest.guard import error_body
from vessa_server.api.rest.negotiation import negotiated
from vessa_server.api.rest.segment import (
    ASKED,
    JSON,
    NIFTI,
    NIFTI_TOO,
    SEVERAL,
    asked,
    caller_of,
    nifti_response,
    unless_disconnected,
)
from vessa_server.api.room import Share
from vessa_server.api.scans import OpenedScan, open_scan, segment_scan
from vessa_server.api.service import Caller, Service
from vessa_server.scheduler.scheduler import Priority

VOLUME_PATH = "/pseudolabel/volume"
LINES = "application/x-ndjson"
FORM_SCHEMA: dict[str, Any] = {
    "requestBody": forms.described(
        {
            "image": {
                **forms.FILE,
                "description": f"{uploads.VOLUME_FORMATS}.",
            },
            **ASKED,
            "axis": {
                "type": "integer",
                "description": "Slicing axis: 0 from left to right, 1 from back to "
                "front, 2 upwards; by default the one along which it was acquired.",
            },
        },
        ["image"],
    ),
    "responses": {
        "200": {
            "description": "By `Accept`: labels as NIfTI with the image's geometry, a summary, or "
            "a line of JSON for each slice, as `POST /pseudolabel` answers it, as soon as it is "
            "ready.",
            "content": {
                NIFTI: {"schema": forms.FILE},
                JSON: {},
                LINES: {},
            },
        }
    },
}


def volume_router(service: Service) -> APIRouter:
    """The route, around a service."""
    router = APIRouter(tags=["segment"])

    @router.post(VOLUME_PATH, openapi_extra=FORM_SCHEMA)
    async def pseudolabel_volume(
        request: Request,
        x_request_timeout: Annotated[
            float | None, Header(gt=0, description="Seconds after which no answer is wanted.")
        ] = None,
    ) -> Response:
        """Segment a volume."""
        caller = caller_of(request, x_request_timeout, Priority.BULK)
        wanted = negotiated(request.headers.get("accept", ""), (NIFTI, NIFTI_TOO, JSON, LINES))
        forms.content_type(request, forms.MULTIPART)
        async with forms.read_form(request) as form:
            form.check(("image",), (*ASKED, "axis"), SEVERAL)
            if wanted == LINES:
                return await _Lines.opened(service, form, caller)
            answer = _segment(service, form, wanted, caller)
            return await unless_disconnected(request, answer)

    return router


async def _segment(service: Service, form: Form, wanted: str, caller: Caller) -> Response:
    file, results = await segment_scan(service, partial(_open, service, form), caller)
    return await service.work(partial(_answer, file, results, wanted))


class _Lines(StreamingResponse):
    """Answers by slice; the volume is held until the last has been sent, or the client has gone."""

    def __init__(self, service: Service, volume: OpenedScan, share: Share, caller: Caller):
        super().__init__(self._lines(service, volume, caller), media_type=LINES)
        self._share = share

    @classmethod
    async def opened(cls, service: Service, form: Form, caller: Caller) -> Self:
        """Read the volume, and begin to answer."""
        with contextlib.ExitStack() as until_read:
            share = until_read.enter_context(Share(service.volumes))
            volume = await service.work(partial(_open, service, form, share))
            until_read.pop_all()
        return cls(service, volume, share, caller)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._share:
            await super().__call__(scope, receive, send)

    @staticmethod
    async def _lines(
        service: Service, volume: OpenedScan, caller: Caller
    ) -> AsyncGenerator[str, None]:
        answers = volumes.answers(service, volume.incoming, volume.indices, render.as_json, caller)
        async with contextlib.aclosing(answers):
            async for index, answer in answers:
                found = error_body(answer) if isinstance(answer, VessaError) else answer
                yield json.dumps({"slice_index": index, **found}) + "\n"


def _open(service: Service, form: Form, share: Share) -> OpenedScan:
    """Decode and check a volume and what is asked of it."""
    axis = form.number("axis")
    if axis is not None and axis > 2:
        raise InvalidRequestError(f"axis: {axis}, expected 0..2", field="axis")
    request = VolumeRequest(slices=(), **asked(form))
    file = uploads.read_volume(form, service.settings.max_queue_bytes, axis)
    return open_scan(service, share, file, request)


def _answer(file: ImageFile, results: Sequence[SegmentationResult], wanted: str) -> Response:
    if wanted == JSON:
        return JSONResponse(summary(file, results))
    labels = [result.labels for result in results]
    return nifti_response(bytes(files.to_nifti(labels, file).to_bytes()))


def summary(file: ImageFile, results: Sequence[SegmentationResult]) -> dict[str, Any]:
    """What was found, in numbers: of all slices and of each."""
    names = [c.class_name for c in results[0].classes]
    pixels_ZC = np.array(
        [np.bincount(r.labels.ravel(), minlength=len(names) + 1)[1:] for r in results]
    )
    iou_ZC = np.array([[c.predicted_iou for c in r.classes] for r in results])
    shown_C = (pixels_ZC > 0).sum(axis=0)
    mean_C = np.where(pixels_ZC > 0, iou_ZC, 0).sum(axis=0) / np.maximum(shown_C, 1)
    return {
        "shape": list(file.pixels.shape),
        "axis": file.axis,
        "classes": [
            {
                "label": c + 1,
                "class_name": name,
                "voxels": int(pixels_ZC[:, c].sum()),
                "predicted_iou": float(mean_C[c]),
            }
            for c, name in enumerate(names)
        ],
        "slices": [
            {"index": z, "pixels": pixels_ZC[z].tolist(), "predicted_iou": iou_ZC[z].tolist()}
            for z in range(len(results))
        ],
        "model_digest": results[0].model_digest,
        "bank_version": results[0].bank_version,
        "volume_ref": results[0].volume_sha256,
    }
