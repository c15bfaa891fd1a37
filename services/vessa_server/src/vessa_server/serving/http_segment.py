"""``POST /pseudolabel``: forms or JSON in; JSON, PNG or NIfTI out."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile

from vessa_client import (
    AnyArray,
    ImageReference,
    InvalidRequestError,
    SegmentationRequest,
    SegmentationResult,
    pictures,
)
from vessa_server.engine import images
from vessa_server.serving import render
from vessa_server.serving.service import Service

NIFTI_TYPES = ("application/x-nifti", "application/nifti")
MASK_LIMITS = images.ImageLimits(max_bytes=1 << 26, max_side=1 << 14)


class PseudoLabelJson(BaseModel):
    """JSON body of ``POST /pseudolabel``; files are base64."""

    model_config = ConfigDict(extra="forbid")

    image: str | None = Field(None, description="PNG, JPEG, TIFF or NIfTI slice, base64.")
    image_ref: str | None = Field(None, description="Digest of an image sent before.")
    volume: list[str] = Field(
        default_factory=list, description="Slices of the image's volume, base64 files."
    )
    class_names: list[str] = Field(default_factory=list, description="Empty means all.")
    text: str = ""
    student_mask: str | None = Field(None, description="Label map as PNG or NIfTI, base64.")
    top_k: int = 0
    template_ids: list[str] = Field(default_factory=list)
    explain: bool = False


FORM_SCHEMA: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {
                        "image": {"type": "string", "format": "binary"},
                        "student_mask": {"type": "string", "format": "binary"},
                        "volume": {
                            "type": "array",
                            "items": {"type": "string", "format": "binary"},
                            "description": "Slices of the image's volume.",
                        },
                        "class_names": {"type": "string", "description": "Comma-separated."},
                        "text": {"type": "string"},
                        "top_k": {"type": "integer"},
                        "template_ids": {"type": "string", "description": "Comma-separated."},
                        "explain": {"type": "boolean"},
                    },
                }
            },
            "application/json": {"schema": PseudoLabelJson.model_json_schema()},
        },
    },
    "responses": {
        "200": {
            "description": "By `Accept`: JSON, PNG (labels, or ?view=overlay), or NIfTI.",
            "content": {
                "application/json": {},
                "image/png": {"schema": {"type": "string", "format": "binary"}},
                "application/x-nifti": {"schema": {"type": "string", "format": "binary"}},
            },
        }
    },
}


def segment_router(service: Service) -> APIRouter:
    """The route, around a service."""
    router = APIRouter(tags=["segment"])

    @router.post("/pseudolabel", openapi_extra=FORM_SCHEMA)
    async def pseudolabel(
        request: Request,
        view: Annotated[str, Query(pattern="^(labels|overlay)$")] = "labels",
    ) -> Response:
        """Segment one image."""
        asked = await _parse(request)
        result = await service.segment(asked)
        return _answer(service, request.headers.get("accept", ""), view, result)

    return router


async def _parse(request: Request) -> SegmentationRequest:
    if request.headers.get("content-type", "").startswith("application/json"):
        return _from_json(await request.body())
    async with request.form() as form:
        upload = form.get("image")
        if not isinstance(upload, UploadFile):
            raise InvalidRequestError(
                "image: missing, expected a file in multipart/form-data, or JSON", field="image"
            )
        student = form.get("student_mask")
        mask = await student.read() if isinstance(student, UploadFile) else None
        top_k = str(form.get("top_k") or "0")
        if not top_k.isdecimal():
            raise InvalidRequestError(f"top_k: {top_k!r}, expected an integer", field="top_k")
        return SegmentationRequest(
            image=await upload.read(),
            class_names=tuple(split_names(str(form.get("class_names", "")))),
            text=str(form.get("text", "")),
            student_mask=_student(mask),
            volume=tuple(
                [await f.read() for f in form.getlist("volume") if isinstance(f, UploadFile)]
            ),
            top_k=int(top_k),
            template_ids=tuple(split_names(str(form.get("template_ids", "")))),
            explain=str(form.get("explain", "")).lower() in ("1", "true", "on", "yes"),
        )


def _from_json(data: bytes) -> SegmentationRequest:
    try:
        body = PseudoLabelJson.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InvalidRequestError(f"{field}: {first['msg']}", field=field) from error
    if (body.image is None) == (body.image_ref is None):
        raise InvalidRequestError("image: expected either image or image_ref", field="image")
    image: bytes | ImageReference
    if body.image_ref is not None:
        image = ImageReference(body.image_ref)
    else:
        image = _base64(body.image or "", "image")
    mask = None if body.student_mask is None else _base64(body.student_mask, "student_mask")
    return SegmentationRequest(
        image=image,
        class_names=tuple(body.class_names),
        text=body.text,
        student_mask=_student(mask),
        volume=tuple(_base64(text, "volume") for text in body.volume),
        top_k=body.top_k,
        template_ids=tuple(body.template_ids),
        explain=body.explain,
    )


def _base64(text: str, field: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise InvalidRequestError(f"{field}: not base64 ({error})", field=field) from error


def _student(data: bytes | None) -> AnyArray | None:
    return None if data is None else label_pixels(data, "student_mask")


def label_pixels(data: bytes, field: str) -> AnyArray:
    """Label map of a PNG or NIfTI file; a palette picture holds labels, not colours."""
    pixels, _ = images.decode(data, MASK_LIMITS, field=field, labels=True)
    if pixels.dtype.kind == "f" and bool((pixels == np.rint(pixels)).all()):
        return pixels.astype(np.int64)
    return pixels


def split_names(text: str) -> list[str]:
    """Parts of a comma-separated list, without blanks."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _answer(service: Service, accept: str, view: str, result: SegmentationResult) -> Response:
    image = service.engine.images.resolve(ImageReference(result.image_sha256))
    if any(kind in accept for kind in NIFTI_TYPES):
        return Response(
            render.nifti(result.labels, image.geometry),
            media_type=NIFTI_TYPES[0],
            headers={"Content-Disposition": 'attachment; filename="pseudolabel.nii"'},
        )
    if "image/png" in accept:
        picture = (
            render.png(pictures.overlay(image.pixels, result.labels))
            if view == "overlay"
            else render.png(result.labels, palette=True)
        )
        return Response(picture, media_type="image/png")
    return JSONResponse(render.as_json(result))
