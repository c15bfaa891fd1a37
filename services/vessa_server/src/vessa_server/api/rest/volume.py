"""``POST /pseudolabel/volume``: a NIfTI volume in, its labels or a summary out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import JSONResponse

from vessa_client import InvalidRequestError, SegmentationResult, VolumeRequest, files
from vessa_client.files import FileError, ImageFile
from vessa_server.api.rest import forms
from vessa_server.api.rest.forms import Form
from vessa_server.api.rest.negotiation import negotiated
from vessa_server.api.rest.segment import (
    JSON,
    NIFTI,
    NIFTI_TOO,
    SEVERAL,
    caller_of,
    nifti_response,
    unless_disconnected,
)
from vessa_server.api.scans import segment_scan
from vessa_server.api.service import Caller, Service
from vessa_server.cases import nifti
from vessa_server.scheduler.scheduler import Priority

VOLUME_PATH = "/pseudolabel/volume"
FORM_TEXTS = ("class_names", "text", "top_k", "template_ids", "policy_off", "bank", "axis")
FORM_SCHEMA: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {
                        "image": {
                            "type": "string",
                            "format": "binary",
                            "description": "NIfTI volume, .nii or .nii.gz.",
                        },
                        "class_names": {"type": "string", "description": "Comma-separated."},
                        "text": {"type": "string"},
                        "top_k": {"type": "integer"},
                        "template_ids": {"type": "string", "description": "Comma-separated."},
                        "policy_off": {"type": "string", "description": "Comma-separated."},
                        "bank": {"type": "string"},
                        "axis": {
                            "type": "integer",
                            "description": "Slicing axis: 0 from left to right, 1 from back to "
                            "front, 2 upwards; by default the one along which it was acquired.",
                        },
                    },
                }
            },
        },
    },
    "responses": {
        "200": {
            "description": "By `Accept`: labels as NIfTI with the image's geometry, or a summary.",
            "content": {
                NIFTI: {"schema": {"type": "string", "format": "binary"}},
                JSON: {},
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
        wanted = negotiated(request.headers.get("accept", ""), (NIFTI, NIFTI_TOO, JSON))
        forms.content_type(request, forms.MULTIPART)
        async with forms.read_form(request) as form:
            form.check(("image",), FORM_TEXTS, SEVERAL)
            answer = _segment(service, form, wanted, caller)
            return await unless_disconnected(request, answer)

    return router


async def _segment(service: Service, form: Form, wanted: str, caller: Caller) -> Response:
    file, results = await segment_scan(service, partial(_open, service, form), caller)
    return await service.work(partial(_answer, file, results, wanted))


def _open(service: Service, form: Form) -> tuple[ImageFile, VolumeRequest]:
    """Decode and check a volume and what is asked of it."""
    if "image" not in form.files:
        raise InvalidRequestError("image: missing, expected a NIfTI volume", field="image")
    axis = form.number("axis")
    if axis is not None and axis > 2:
        raise InvalidRequestError(f"axis: {axis}, expected 0..2", field="axis")
    request = VolumeRequest(
        slices=(),
        class_names=form.names("class_names"),
        text=form.text("text"),
        top_k=form.number("top_k") or 0,
        template_ids=form.names("template_ids"),
        policy_off=form.names("policy_off"),
        bank=form.text("bank"),
    )
    return _read(form, service.settings.max_queue_bytes, axis), request


def _read(form: Form, max_bytes: int, axis: int | None) -> ImageFile:
    """The file, its size checked before it is unpacked."""
    source = form.files["image"][0].file
    start = source.read(348)
    source.seek(0)
    if not nifti.is_nifti(start):
        raise InvalidRequestError("image: not NIfTI, expected .nii or .nii.gz", field="image")
    image = nifti.read(source, "image", max_bytes, partial(nifti.check_axes, field="image"))
    try:
        return files.from_nifti(Path("image"), image, axis=axis)
    except FileError as error:
        raise InvalidRequestError(str(error), field="image") from error
    except Exception as error:  # such as a header whose spacing makes no sense
        raise nifti.damaged("image", error) from error


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
