"""``POST /pseudolabel``: forms or JSON in; JSON, PNG or NIfTI out."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Coroutine, Sequence
from typing import Annotated, Any, TypedDict

import numpy as np
from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema

from vessa_client import (
    AnyArray,
    Box,
    ImageReference,
    InvalidRequestError,
    OverloadedError,
    Point,
    Region,
    SegmentationRequest,
    SegmentationResult,
    pictures,
)
from vessa_client._types import Window
from vessa_server.api.rest import forms, render
from vessa_server.api.rest.forms import Form, split_names
from vessa_server.api.rest.guard import CLIENT_CLOSED
from vessa_server.api.rest.negotiation import negotiated
from vessa_server.api.service import Caller, Service
from vessa_server.cases import images
from vessa_server.cases.images import StoredImage
from vessa_server.scheduler.scheduler import Priority

__all__ = ["label_pixels", "segment_router", "split_names", "unless_disconnected"]

JSON, PNG, NIFTI, NIFTI_TOO = forms.JSON, "image/png", "application/x-nifti", "application/nifti"
MASK_LIMITS = images.ImageLimits(max_bytes=1 << 26, max_side=1 << 12)
# Values of a JSON body: many small ones take far more memory than their text.
MAX_JSON_VALUES = 100_000
FORM_FILES = ("image", "student_mask", "volume")
# What is asked of an image or of a volume; those of a form that are texts.
ASKED: dict[str, Any] = {
    "class_names": {"type": "string", "description": "Comma-separated."},
    "text": {"type": "string"},
    "top_k": {"type": "integer"},
    "template_ids": {"type": "string", "description": "Comma-separated."},
    "policy_off": {"type": "string", "description": "Comma-separated."},
    "bank": {"type": "string"},
    "explain": {"type": "boolean"},
    "window": forms.WINDOW,
}
FORM_TEXTS = tuple(ASKED)
SEVERAL = ("class_names", "template_ids", "policy_off")


class Asked(TypedDict):
    """The fields of :data:`ASKED`, read."""

    class_names: tuple[str, ...]
    text: str
    top_k: int
    template_ids: tuple[str, ...]
    policy_off: tuple[str, ...]
    bank: str
    explain: bool
    window: Window | None


def _inline(required: Sequence[str], names: Sequence[str], texts: Sequence[str] = ()) -> Any:
    """Of an object of integers and texts: a reference has no place in the whole description."""
    kinds = {**dict.fromkeys(names, "integer"), **dict.fromkeys(texts, "string")}
    properties = {name: {"type": kind} for name, kind in kinds.items()}
    return {"type": "object", "required": list(required), "properties": properties}


EDGES = ("top", "left", "height", "width")
REGION_SCHEMA = _inline(EDGES, (*EDGES, "quarter_turns"))
POINT_SCHEMA = _inline(("row", "column"), ("row", "column"), ("class_name",))
BOX_SCHEMA = _inline((*EDGES, "class_name"), EDGES, ("class_name",))


class RegionJson(BaseModel):
    """A part of the image, in pixels, and how many quarters it is turned counter-clockwise."""

    model_config = ConfigDict(extra="forbid")

    top: int
    left: int
    height: int
    width: int
    quarter_turns: int = 0


class PointJson(BaseModel):
    """What a pixel is; background without a class."""

    model_config = ConfigDict(extra="forbid", strict=True)

    row: int
    column: int
    class_name: str = ""


class BoxJson(BaseModel):
    """A part of the image outside of which a class is nowhere, in pixels."""

    model_config = ConfigDict(extra="forbid", strict=True)

    top: int
    left: int
    height: int
    width: int
    class_name: str


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
    region: Annotated[RegionJson, WithJsonSchema(REGION_SCHEMA)] | None = Field(
        None, description="Where to look, as an answer has it; by default the server finds that."
    )
    points: list[Annotated[PointJson, WithJsonSchema(POINT_SCHEMA)]] = Field(
        default_factory=list, description="What pixels are; the answer follows. At most 256."
    )
    boxes: list[Annotated[BoxJson, WithJsonSchema(BOX_SCHEMA)]] = Field(
        default_factory=list, description="A class is nowhere outside of its boxes. At most 32."
    )
    top_k: int = Field(0, ge=0, le=1000)
    template_ids: list[str] = Field(default_factory=list)
    policy_off: list[str] = Field(
        default_factory=list, description="Rules that are not applied; see `GET /info`."
    )
    bank: str = Field("", description="Name of the bank; empty means the server's default.")
    explain: bool = False
    window: tuple[float, float] | None = Field(
        None, description="Intensities that become black and white."
    )


_BODY = forms.described(
    {
        "image": forms.FILE,
        "student_mask": forms.FILE,
        "volume": {
            "type": "array",
            "items": forms.FILE,
            "description": "Slices of the image's volume.",
        },
        **ASKED,
    },
    ["image"],
)
_BODY["content"][JSON] = {"schema": PseudoLabelJson.model_json_schema()}
FORM_SCHEMA: dict[str, Any] = {
    "requestBody": _BODY,
    "responses": {
        "200": {
            "description": "By `Accept`: JSON, PNG (labels, or ?view=overlay), or NIfTI.",
            "content": {
                "application/json": {},
                "image/png": {"schema": forms.FILE},
                "application/x-nifti": {"schema": forms.FILE},
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
        caller = caller_of(request, x_request_timeout, Priority.INTERACTIVE)
        parse = await _parse(request)
        wanted = negotiated(request.headers.get("accept", ""), (JSON, PNG, NIFTI, NIFTI_TOO))
        held: list[StoredImage] = []

        def read() -> SegmentationRequest:
            asked = parse()
            if wanted != JSON:  # it is shown, or gives the geometry, and may be evicted meanwhile
                held.append(service.engine.images.resolve(asked.image))
            return asked

        answer = service.segment(read, lambda result: _answer(result, wanted, view, *held), caller)
        return await unless_disconnected(request, answer)

    return router


def caller_of(request: Request, timeout: float | None, priority: Priority) -> Caller:
    """Who calls: the host, until ``timeout`` seconds from now."""
    return Caller.within(timeout, request.client.host if request.client else "", priority)


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


async def _parse(request: Request) -> Callable[[], SegmentationRequest]:
    """Read the body; what it holds is decoded by what is returned."""
    if forms.content_type(request, forms.MULTIPART, JSON) == JSON:
        body = await request.body()
        return lambda: _from_json(body)
    async with forms.read_form(request) as form:
        form.check(FORM_FILES, FORM_TEXTS, (*SEVERAL, "volume"))
        files = {name: [await f.read() for f in given] for name, given in form.files.items()}
    return lambda: _from_form(form, files)


def _from_form(form: Form, files: dict[str, list[bytes]]) -> SegmentationRequest:
    if "image" not in files:
        raise InvalidRequestError(
            "image: missing, expected a file in multipart/form-data, or JSON", field="image"
        )
    masks = files.get("student_mask", [])
    return SegmentationRequest(
        image=files["image"][0],
        student_mask=label_pixels(masks[0], "student_mask") if masks else None,
        volume=tuple(files.get("volume", [])),
        **asked(form),
    )


def asked(form: Form) -> Asked:
    """What a form asks of its image or volume.

    Raises:
        InvalidRequestError: a field is malformed.
    """
    return Asked(
        class_names=form.names("class_names"),
        text=form.text("text"),
        top_k=form.number("top_k") or 0,
        template_ids=form.names("template_ids"),
        policy_off=form.names("policy_off"),
        bank=form.text("bank"),
        explain=form.flag("explain"),
        window=form.window(),
    )


def _from_json(data: bytes) -> SegmentationRequest:
    if data.count(b",") > MAX_JSON_VALUES:
        raise OverloadedError(
            f"body: more than {MAX_JSON_VALUES} values in JSON, expected a few", field="body"
        )
    try:
        body = PseudoLabelJson.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        field = ".".join(str(part)[:80] for part in first["loc"]) or "body"
        raise InvalidRequestError(f"{field}: {first['msg']}", field=field) from None
    if (body.image is None) == (body.image_ref is None):
        raise InvalidRequestError("image: expected either image or image_ref", field="image")
    image: bytes | ImageReference
    if body.image_ref is not None:
        image = ImageReference(body.image_ref)
    else:
        image = _base64(body.image or "", "image")
    mask = None
    if body.student_mask is not None:
        mask = label_pixels(_base64(body.student_mask, "student_mask"), "student_mask")
    return SegmentationRequest(
        image=image,
        class_names=tuple(body.class_names),
        text=body.text,
        student_mask=mask,
        region=None if body.region is None else Region(**body.region.model_dump()),
        points=tuple(Point(**point.model_dump()) for point in body.points),
        boxes=tuple(Box(**box.model_dump()) for box in body.boxes),
        volume=tuple(_base64(text, "volume") for text in body.volume),
        top_k=body.top_k,
        template_ids=tuple(body.template_ids),
        policy_off=tuple(body.policy_off),
        bank=body.bank,
        explain=body.explain,
        window=body.window,
    )


def _base64(text: str, field: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:  # binascii's, or characters beyond ASCII
        raise InvalidRequestError(f"{field}: not base64 ({error})", field=field) from error


def label_pixels(data: bytes, field: str) -> AnyArray:
    """Label map of a PNG or NIfTI file; a palette picture holds labels, not colours.

    Raises:
        InvalidRequestError: it cannot be read, or is in colour.
        OverloadedError: it is over a limit.
    """
    pixels, _ = images.decode(data, MASK_LIMITS, field=field, labels=True)
    if pixels.ndim != 2:
        raise InvalidRequestError(
            f"{field}: a colour picture, expected labels 0, 1, 2, ... in one channel", field=field
        )
    if pixels.dtype.kind == "f" and np.array_equal(np.clip(np.rint(pixels), 0, 255), pixels):
        return pixels.astype(np.uint8)
    return pixels


def _answer(
    result: SegmentationResult, wanted: str, view: str, image: StoredImage | None = None
) -> Response:
    """The answer; of files also the image is needed."""
    if image is None:
        return JSONResponse(render.as_json(result))
    if wanted != PNG:
        return nifti_response(render.nifti(result.labels, image.geometry))
    if view == "overlay":
        return Response(render.png(pictures.overlay(image.pixels, result.labels)), media_type=PNG)
    return Response(render.png(result.labels, palette=True), media_type=PNG)


def nifti_response(data: bytes) -> Response:
    """A NIfTI file, to be saved."""
    return Response(
        data,
        media_type=NIFTI,
        headers={"Content-Disposition": 'attachment; filename="pseudolabel.nii"'},
    )
