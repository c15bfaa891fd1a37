"""``/templates``: the bank over REST."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from vessa_client import ClassDefinition, InvalidRequestError, pictures
from vessa_server.api.corrections import OUTDATED, Outdated
from vessa_server.api.rest import forms, render
from vessa_server.api.rest.forms import Form
from vessa_server.api.rest.segment import label_pixels
from vessa_server.api.service import Service

FORM_FILES = ("image", "labels")
FORM_TEXTS = ("class_names", "descriptions", "name", "bank", "window", "outdated")
FORM_SCHEMA: dict[str, Any] = {
    "requestBody": forms.described(
        {
            "image": {**forms.FILE, "description": "PNG, JPEG, TIFF or NIfTI slice."},
            "labels": {**forms.FILE, "description": "Label map: PNG or NIfTI slice."},
            "class_names": {
                "type": "string",
                "description": "Comma-separated: label 1, 2, ...",
            },
            "descriptions": {
                "type": "string",
                "description": "Semicolon-separated, in the order of the classes.",
            },
            "name": {"type": "string", "description": "Free name, for people."},
            "bank": {
                "type": "string",
                "description": "Name of the bank, made where there is none.",
            },
            "window": forms.WINDOW,
            "outdated": {
                "type": "string",
                "enum": list(OUTDATED),
                "description": "What becomes of templates of this name that show the same pixels "
                "with other labels: by default they are kept beside the new one.",
            },
        },
        ["image", "labels", "class_names"],
    ),
}


def templates_router(service: Service) -> APIRouter:
    """The routes, around a service."""
    router = APIRouter(tags=["templates"])

    @router.get("/templates")
    async def list_templates(bank: str = "") -> dict[str, Any]:
        """Templates, classes and version of the bank."""
        listing = await service.listing(bank)
        return {
            "version": listing.version,
            "classes": [
                {**vars(c), "colour": pictures.hex_colour(number)}
                for number, c in enumerate(listing.classes, start=1)
            ],
            "templates": [vars(t) for t in listing.templates],
        }

    @router.post("/templates", status_code=201, openapi_extra=FORM_SCHEMA)
    async def add_template(request: Request) -> dict[str, Any]:
        """Add an annotated image; a template that is there already is not added again."""
        forms.content_type(request, forms.MULTIPART)
        async with forms.read_form(request) as form:
            form.check(FORM_FILES, FORM_TEXTS, ("class_names",))
            image, labels = [await _read(form, name) for name in FORM_FILES]
        label_map = await service.work(lambda: label_pixels(labels, "labels"))
        info, created = await service.add_template(
            image,
            label_map,
            _classes(form),
            form.text("name"),
            form.text("bank"),
            form.window(),
            outdated=_outdated(form),
        )
        return {**vars(info), "created": created}

    @router.delete("/templates/{template_id}")
    async def delete_template(template_id: str, bank: str = "") -> dict[str, str]:
        """Delete a template."""
        return {"version": await service.delete_template(template_id, bank)}

    @router.get("/templates/{template_id}/overlay.png")
    def template_overlay(template_id: str, bank: str = "") -> Response:
        """Picture of a template with its annotation; a class has one colour in all of them."""
        found = service.engine.banks.get(bank)
        order = [c.name for c in found.snapshot().classes]
        template = found.find(template_id)
        picture = render.png(pictures.overlay(template.seen, template.numbered(order)))
        return Response(picture, media_type="image/png")

    return router


async def _read(form: Form, name: str) -> bytes:
    if name not in form.files:
        raise InvalidRequestError(f"{name}: missing, expected a file", field=name)
    return await form.files[name][0].read()


def _outdated(form: Form) -> Outdated:
    given = form.text("outdated") or "keep"
    for known in OUTDATED:
        if given == known:
            return known
    raise InvalidRequestError(
        f"outdated: {given[:20]!r}, expected one of {', '.join(OUTDATED)}", field="outdated"
    )


def _classes(form: Form) -> list[ClassDefinition]:
    """Names with their descriptions, of which the last ones may be missing."""
    names = form.names("class_names")
    words = [part.strip() for part in form.text("descriptions").split(";")]
    if len(words) > max(1, len(names)):
        raise InvalidRequestError(
            f"descriptions: {len(words)}, expected at most {len(names)}, one for each class",
            field="descriptions",
        )
    words += [""] * (len(names) - len(words))
    return [ClassDefinition(name=n, description=d) for n, d in zip(names, words, strict=False)]
