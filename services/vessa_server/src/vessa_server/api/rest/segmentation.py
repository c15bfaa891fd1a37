"""``POST /segmentation``: labels of a DICOM series in, a DICOM segmentation object out."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response

from vessa_client import InvalidRequestError, files
from vessa_server.api.rest import forms, uploads
from vessa_server.api.rest.forms import Form
from vessa_server.api.room import Share
from vessa_server.api.service import Service

SEGMENTATION_PATH = "/segmentation"
DICOM = "application/dicom"
FORM_SCHEMA: dict[str, Any] = {
    "requestBody": forms.described(
        {
            "image": {**forms.FILE, "description": "A DICOM file, or a zip of a series."},
            "labels": {**forms.FILE, "description": "NIfTI on the grid of the image."},
            "class_names": {
                "type": "string",
                "description": "Of the labels 1, 2, ..., comma-separated.",
            },
            "corrected": {"type": "boolean", "description": "A person has changed the labels."},
        },
        ["image", "labels", "class_names"],
    ),
    "responses": {
        "200": {
            "description": "A DICOM segmentation object that refers to the image.",
            "content": {DICOM: {"schema": forms.FILE}},
        }
    },
}


def segmentation_router(service: Service) -> APIRouter:
    """The route, around a service."""
    router = APIRouter(tags=["segment"])

    @router.post(SEGMENTATION_PATH, openapi_extra=FORM_SCHEMA)
    async def write_segmentation(request: Request) -> Response:
        """Labels of a DICOM series as a DICOM segmentation object."""
        forms.content_type(request, forms.MULTIPART)
        async with forms.read_form(request) as form:
            form.check(("image", "labels"), ("class_names", "corrected"), ("class_names",))
            with Share(service.volumes) as share:
                content = await service.work(lambda: _written(service, form, share))
        return Response(content, media_type=DICOM)

    return router


def _written(service: Service, form: Form, share: Share) -> bytes:
    names, most = form.names("class_names"), service.settings.max_queue_bytes
    if len(names) > service.settings.max_classes:
        raise InvalidRequestError(
            f"class_names: {len(names)}, expected {service.settings.max_classes} at most",
            field="class_names",
        )
    with uploads.dicom_scan(form, most) as file, tempfile.TemporaryDirectory() as folder:
        share.take(file.pixels.nbytes)
        labels = uploads.read_labels(form, "labels", file, most)
        highest = max(int(plane.max()) for plane in labels)
        if highest > len(names):
            raise InvalidRequestError(
                f"class_names: {len(names)}, expected one for each label up to {highest}",
                field="class_names",
            )
        path, model = Path(folder) / "labels.dcm", f"VESSA {service.engine.info.model_digest[:12]}"
        with uploads.as_requests(file.path):
            files.write_segmentation(
                path, labels, file, names, model=model, corrected=form.flag("corrected")
            )
        return path.read_bytes()
