"""REST transport: the same service for people, scripts and browsers."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from importlib.resources import files
from typing import Annotated, Any

import numpy as np
import structlog
from fastapi import Depends, FastAPI, File, Form, Header, Query, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile as StarletteUpload

from vessa_client import (
    AnyArray,
    ClassDefinition,
    ImageReference,
    InvalidRequestError,
    NotFoundError,
    SegmentationRequest,
    SegmentationResult,
    UnavailableError,
    VessaError,
    pictures,
)
from vessa_server.bank import BankError
from vessa_server.engine import images
from vessa_server.serving import errors, render
from vessa_server.serving.body_limit import BodyLimit
from vessa_server.serving.service import Service

log = structlog.get_logger(__name__)
NIFTI_TYPES = ("application/x-nifti", "application/nifti")
FORM_OVERHEAD = 1024 * 1024


class PseudoLabelJson(BaseModel):
    """JSON body of ``POST /pseudolabel``; files are base64."""

    model_config = ConfigDict(extra="forbid")

    image: str | None = Field(None, description="PNG, JPEG, TIFF or NIfTI slice, base64.")
    image_ref: str | None = Field(None, description="Digest of an image sent before.")
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


def create_app(service: Service) -> FastAPI:
    """Build the application around a service."""
    app = FastAPI(
        title="VESSA",
        version=version("vessa-server"),
        description="Pseudo-labels for medical images from a bank of annotated templates.",
    )
    app.add_middleware(BodyLimit, max_bytes=2 * service.settings.max_image_bytes + FORM_OVERHEAD)
    _add_error_handlers(app)

    @app.middleware("http")
    async def measure(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        start = time.perf_counter()
        response = await call_next(request)
        route = request.scope.get("route")
        method = f"{request.method} {getattr(route, 'path', 'other')}"
        service.metrics.requests.labels("http", method, str(response.status_code)).inc()
        service.metrics.latency.labels("http", method).observe(time.perf_counter() - start)
        return response

    def authenticated(authorization: Annotated[str | None, Header()] = None) -> None:
        service.authenticate(authorization)

    guarded = [Depends(authenticated)]

    @app.post("/pseudolabel", dependencies=guarded, openapi_extra=FORM_SCHEMA, tags=["segment"])
    async def pseudolabel(
        request: Request,
        view: Annotated[str, Query(pattern="^(labels|overlay)$")] = "labels",
    ) -> Response:
        """Segment one image."""
        asked = await _parse(request)
        result = await service.segment(asked)
        return _answer(service, request.headers.get("accept", ""), view, result)

    @app.get("/templates", dependencies=guarded, tags=["templates"])
    async def list_templates() -> dict[str, Any]:
        """Templates, classes and version of the bank."""
        listing = await service.listing()
        return {
            "version": listing.version,
            "classes": [vars(c) for c in listing.classes],
            "templates": [vars(t) for t in listing.templates],
        }

    @app.post("/templates", dependencies=guarded, status_code=201, tags=["templates"])
    async def add_template(
        image: Annotated[UploadFile, File(description="PNG, JPEG, TIFF or NIfTI slice")],
        labels: Annotated[UploadFile, File(description="Label map: PNG or NIfTI slice")],
        class_names: Annotated[str, Form(description="Comma-separated: label 1, 2, ...")],
        descriptions: Annotated[str, Form(description="Semicolon-separated")] = "",
        name: Annotated[str, Form()] = "",
    ) -> dict[str, Any]:
        """Add an annotated image; a template that is there already is not added again."""
        names, words = _split(class_names), [d.strip() for d in descriptions.split(";")]
        words += [""] * (len(names) - len(words))
        classes = [ClassDefinition(name=n, description=d) for n, d in zip(names, words)]  # noqa: B905
        label_map = _label_pixels(await labels.read(), "labels")
        info, created = await service.add_template(await image.read(), label_map, classes, name)
        return {**vars(info), "created": created}

    @app.delete("/templates/{template_id}", dependencies=guarded, tags=["templates"])
    async def delete_template(template_id: str) -> dict[str, str]:
        """Delete a template."""
        return {"version": await service.delete_template(template_id)}

    @app.get("/templates/{template_id}/overlay.png", dependencies=guarded, tags=["templates"])
    def template_overlay(template_id: str) -> Response:
        """Picture of a template with its annotation; a class has one colour in all of them."""
        bank = service.engine.bank
        listing = bank.snapshot()
        for info in listing.templates:
            if info.template_id == template_id:
                template = bank.load(info)
                order = [c.name for c in listing.classes]
                lookup = np.array([0, *(order.index(name) + 1 for name in info.class_names)])
                picture = render.png(pictures.overlay(template.image, lookup[template.labels]))
                return Response(picture, media_type="image/png")
        raise NotFoundError(f"template_id: no template {template_id!r}", field="template_id")

    @app.get("/info", dependencies=guarded, tags=["server"])
    async def info() -> dict[str, Any]:
        """Model, bank and limits."""
        found = await service.info()
        return {
            **vars(found),
            "classes": [vars(c) for c in found.classes],
            "limits": vars(found.limits),
        }

    @app.get("/health/live", tags=["server"])
    async def live() -> dict[str, str]:
        """The process runs."""
        return {"status": "live"}

    @app.get("/health/ready", tags=["server"])
    async def ready() -> dict[str, str]:
        """Requests are accepted; 503 while starting or stopping."""
        if not service.ready:
            raise UnavailableError("the server is starting or stopping")
        return {"status": "ready"}

    @app.get("/metrics", tags=["server"])
    def metrics() -> Response:
        """Metrics for Prometheus."""
        return Response(service.metrics.expose(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(files("vessa_server.serving").joinpath("page.html").read_text())

    return app


def _add_error_handlers(app: FastAPI) -> None:
    def body(code: str, message: str, field: str = "") -> dict[str, Any]:
        return {"error": {"code": code, "message": message, "field": field}}

    @app.exception_handler(VessaError)
    async def wrong_request(request: Request, error: VessaError) -> JSONResponse:
        headers = (
            {"Retry-After": f"{max(1, round(error.retry_after))}"} if error.retry_after else {}
        )
        return JSONResponse(
            body(errors.code_name(error), error.message, error.field),
            errors.http_status(error),
            headers,
        )

    @app.exception_handler(BankError)
    async def bank_unreadable(request: Request, error: BankError) -> JSONResponse:
        log.error("bank.unreadable", error=str(error))
        return JSONResponse(body(errors.INTERNAL, str(error)), 500)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"][1:])
        return JSONResponse(body("INVALID_ARGUMENT", f"{field}: {first['msg']}", field), 422)


async def _parse(request: Request) -> SegmentationRequest:
    if request.headers.get("content-type", "").startswith("application/json"):
        return _from_json(await request.body())
    async with request.form() as form:
        upload = form.get("image")
        if not isinstance(upload, StarletteUpload):
            raise InvalidRequestError(
                "image: missing, expected a file in multipart/form-data, or JSON", field="image"
            )
        student = form.get("student_mask")
        mask = await student.read() if isinstance(student, StarletteUpload) else None
        top_k = str(form.get("top_k") or "0")
        if not top_k.isdecimal():
            raise InvalidRequestError(f"top_k: {top_k!r}, expected an integer", field="top_k")
        return SegmentationRequest(
            image=await upload.read(),
            class_names=tuple(_split(str(form.get("class_names", "")))),
            text=str(form.get("text", "")),
            student_mask=_student(mask),
            top_k=int(top_k),
            template_ids=tuple(_split(str(form.get("template_ids", "")))),
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
        top_k=body.top_k,
        template_ids=tuple(body.template_ids),
        explain=body.explain,
    )


def _base64(text: str, field: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise InvalidRequestError(f"{field}: not base64 ({error})", field=field) from error


MASK_LIMITS = images.ImageLimits(max_bytes=1 << 26, max_side=1 << 14)


def _student(data: bytes | None) -> AnyArray | None:
    return None if data is None else _label_pixels(data, "student_mask")


def _label_pixels(data: bytes, field: str) -> AnyArray:
    """Label map of a PNG or NIfTI file; a palette picture holds labels, not colours."""
    pixels, _ = images.decode(data, MASK_LIMITS, field=field, labels=True)
    if pixels.dtype.kind == "f" and bool((pixels == np.rint(pixels)).all()):
        return pixels.astype(np.int64)
    return pixels


def _split(text: str) -> list[str]:
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
