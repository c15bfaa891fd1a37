"""``POST /pseudolabel``: forms or JSON in; JSON, PNG or NIfTI out."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Header, Query, Request, Response
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
from vessa_server.api.rest import render
from vessa_server.api.rest.guard import CLIENT_CLOSED
from vessa_server.api.service import Caller, Service
from vessa_server.cases import images
from vessa_server.scheduler.scheduler import Priority

NIFTI_TYPES = ("application/x-nifti", "application/nifti")
MEDIA_TYPES = ("application/json", "image/png", NIFTI_TYPES[0])
MASK_LIMITS = images.ImageLimits(max_bytes=1 << 26, max_side=1 << 12)
FORM_FILES = ("image", "student_mask", "volume")
FORM_TEXTS = (
    "class_names",
    "text",
    "top_k",
    "template_ids",
    "policy_off",
    "bank",
    "explain",
)


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
    top_k: int = Field(0, ge=0, le=1000)
    template_ids: list[str] = Field(default_factory=list)
    policy_off: list[str] = Field(
        default_factory=list, description="Rules that are not applied; see `GET /info`."
    )
    bank: str = Field("", description="Name of the bank; empty means the server's default.")
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
                        "policy_off": {"type": "string", "description": "Comma-separated."},
                        "bank": {"type": "string"},
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
        x_request_timeout: Annotated[
            float | None, Header(gt=0, description="Seconds after which no answer is wanted.")
        ] = None,
    ) -> Response:
        """Segment one image."""
        parse = await _parse(request)
        wanted = negotiated(request.headers.get("accept", ""))
        host = request.client.host if request.client else ""
        caller = Caller.within(x_request_timeout, host, Priority.INTERACTIVE)
        answer = service.segment(
            parse, lambda result: _answer(service, wanted, view, result), caller
        )
        return await unless_disconnected(request, answer)

    return router


async def unless_disconnected(request: Request, answer: Coroutine[Any, Any, Response]) -> Response:
    """The answer, or nothing more than a status as soon as the client has gone."""
    working = asyncio.ensure_future(answer)
    listening = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, listening}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else Response(status_code=CLIENT_CLOSED)
    finally:
        listening.cancel()
        working.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def negotiated(accept: str) -> str:
    """The media type of an answer: what ``Accept`` likes best, JSON where it says nothing."""
    best, best_quality = MEDIA_TYPES[0], 0.0
    for part in accept.lower().split(","):
        kind, *parameters = (piece.strip() for piece in part.split(";"))
        quality = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        offered = NIFTI_TYPES[0] if kind in NIFTI_TYPES else kind
        weight = float(quality) if quality.replace(".", "", 1).isdigit() else 0.0
        if offered in MEDIA_TYPES and weight > best_quality:
            best, best_quality = offered, weight
    return best


async def _parse(request: Request) -> Callable[[], SegmentationRequest]:
    """Read the body; what it holds is decoded by what is returned."""
    if request.headers.get("content-type", "").lower().startswith("application/json"):
        body = await request.body()
        return lambda: _from_json(body)
    async with request.form() as form:
        files: dict[str, list[bytes]] = {}
        texts: dict[str, list[str]] = {}
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                files.setdefault(name, []).append(await value.read())
            else:
                texts.setdefault(name, []).append(value)
    return lambda: _from_form(files, texts)


def _from_form(files: dict[str, list[bytes]], texts: dict[str, list[str]]) -> SegmentationRequest:
    for name in (*files, *texts):
        if name not in (*FORM_FILES, *FORM_TEXTS):
            known = ", ".join((*FORM_FILES, *FORM_TEXTS))
            raise InvalidRequestError(
                f"{name[:80]}: unknown field, expected {known}", field=name[:80]
            )
    for name, values in files.items():
        if name in FORM_TEXTS or (name != "volume" and len(values) > 1):
            raise InvalidRequestError(f"{name}: expected a single value, no files", field=name)
    for name in texts:
        if name in FORM_FILES:
            raise InvalidRequestError(f"{name}: is text, expected a file", field=name)
    if "image" not in files:
        raise InvalidRequestError(
            "image: missing, expected a file in multipart/form-data, or JSON", field="image"
        )

    def one(name: str) -> str:
        values = texts.get(name, [""])
        if len(values) > 1:
            raise InvalidRequestError(f"{name}: {len(values)} values, expected one", field=name)
        return values[0]

    def names(name: str) -> tuple[str, ...]:
        return tuple(part for text in texts.get(name, []) for part in split_names(text))

    top_k = one("top_k") or "0"
    if not (top_k.isascii() and top_k.isdecimal() and len(top_k) < 6):
        raise InvalidRequestError(f"top_k: {top_k[:20]!r}, expected a small integer", field="top_k")
    return SegmentationRequest(
        image=files["image"][0],
        class_names=names("class_names"),
        text=one("text"),
        student_mask=_student(files["student_mask"][0]) if "student_mask" in files else None,
        volume=tuple(files.get("volume", [])),
        top_k=int(top_k),
        template_ids=names("template_ids"),
        policy_off=names("policy_off"),
        bank=one("bank"),
        explain=one("explain").lower() in ("1", "true", "on", "yes"),
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
        policy_off=tuple(body.policy_off),
        bank=body.bank,
        explain=body.explain,
    )


def _base64(text: str, field: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:  # binascii's, or characters beyond ASCII
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


def _answer(service: Service, wanted: str, view: str, result: SegmentationResult) -> Response:
    if wanted == MEDIA_TYPES[0]:
        return JSONResponse(render.as_json(result))
    image = service.engine.images.resolve(ImageReference(result.image_sha256))
    if wanted == NIFTI_TYPES[0]:
        return Response(
            render.nifti(result.labels, image.geometry),
            media_type=NIFTI_TYPES[0],
            headers={"Content-Disposition": 'attachment; filename="pseudolabel.nii"'},
        )
    picture = (
        render.png(pictures.overlay(image.pixels, result.labels))
        if view == "overlay"
        else render.png(result.labels, palette=True)
    )
    return Response(picture, media_type="image/png")
