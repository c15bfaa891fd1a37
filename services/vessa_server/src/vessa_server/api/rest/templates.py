"""``/templates``: the bank over REST."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, File, Form, Response, UploadFile

from vessa_client import ClassDefinition, NotFoundError, pictures
from vessa_server.api.rest import render
from vessa_server.api.rest.forms import split_names
from vessa_server.api.rest.segment import label_pixels
from vessa_server.api.service import Service


def templates_router(service: Service) -> APIRouter:
    """The routes, around a service."""
    router = APIRouter(tags=["templates"])

    @router.get("/templates")
    async def list_templates(bank: str = "") -> dict[str, Any]:
        """Templates, classes and version of the bank."""
        listing = await service.listing(bank)
        return {
            "version": listing.version,
            "classes": [vars(c) for c in listing.classes],
            "templates": [vars(t) for t in listing.templates],
        }

    @router.post("/templates", status_code=201)
    async def add_template(
        image: Annotated[UploadFile, File(description="PNG, JPEG, TIFF or NIfTI slice")],
        labels: Annotated[UploadFile, File(description="Label map: PNG or NIfTI slice")],
        class_names: Annotated[str, Form(description="Comma-separated: label 1, 2, ...")],
        descriptions: Annotated[str, Form(description="Semicolon-separated")] = "",
        name: Annotated[str, Form()] = "",
        bank: Annotated[str, Form(description="Name of the bank, made where there is none")] = "",
    ) -> dict[str, Any]:
        """Add an annotated image; a template that is there already is not added again."""
        names, words = split_names(class_names), [d.strip() for d in descriptions.split(";")]
        words += [""] * (len(names) - len(words))
        classes = [ClassDefinition(name=n, description=d) for n, d in zip(names, words)]  # noqa: B905
        label_data = await labels.read()
        label_map = await service.work(lambda: label_pixels(label_data, "labels"))
        image_data = await image.read()
        info, created = await service.add_template(image_data, label_map, classes, name, bank)
        return {**vars(info), "created": created}

    @router.delete("/templates/{template_id}")
    async def delete_template(template_id: str, bank: str = "") -> dict[str, str]:
        """Delete a template."""
        return {"version": await service.delete_template(template_id, bank)}

    @router.get("/templates/{template_id}/overlay.png")
    def template_overlay(template_id: str, bank: str = "") -> Response:
        """Picture of a template with its annotation; a class has one colour in all of them."""
        found = service.engine.banks.get(bank)
        listing = found.snapshot()
        for info in listing.templates:
            if info.template_id == template_id:
                template = found.load(info)
                order = [c.name for c in listing.classes]
                lookup = np.array([0, *(order.index(name) + 1 for name in info.class_names)])
                picture = render.png(pictures.overlay(template.image, lookup[template.labels]))
                return Response(picture, media_type="image/png")
        raise NotFoundError(f"template_id: no template {template_id!r}", field="template_id")

    return router
