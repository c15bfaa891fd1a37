"""``POST /image``: any image file in, its pixels as a raw NRRD out, for who cannot read it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from vessa_client.windows import AUTOMATIC
from vessa_server.api.rest import forms, uploads
from vessa_server.api.room import Share
from vessa_server.api.service import Service
from vessa_server.cases import nrrd

IMAGE_PATH = "/image"
NRRD = "application/x-nrrd"
FORM_SCHEMA: dict[str, Any] = {
    "requestBody": forms.described(
        {
            "image": {
                **forms.FILE,
                "description": f"PNG, JPEG, TIFF, {uploads.VOLUME_FORMATS}.",
            },
            "bank": {"type": "string", "description": "In whose window CT is seen."},
        },
        ["image"],
    ),
    "responses": {
        "200": {
            "description": "Pixels as the server sees them; of a volume the axes lead to the "
            "right, to the front and up, `slice axis` is the one along which it is sliced, and "
            "`stored sizes`, `axes`, `signs` and `affine` say how the file has it; `window` is "
            "that in which CT is seen.",
            "content": {NRRD: {"schema": forms.FILE}},
        }
    },
}


def image_router(service: Service) -> APIRouter:
    """The route, around a service."""
    router = APIRouter(tags=["segment"])

    @router.post(IMAGE_PATH, openapi_extra=FORM_SCHEMA)
    async def read_image(request: Request) -> Response:
        """Pixels of an image file, to look at."""
        forms.content_type(request, forms.MULTIPART)
        async with forms.read_form(request) as form:
            form.check(("image",), ("bank",), ())
            with Share(service.volumes) as share:

                def work() -> bytes:
                    file = uploads.read_image(form, service)
                    share.take(file.pixels.nbytes)
                    templates = service.engine.banks.get(form.text("bank")).snapshot().templates
                    return nrrd.encode(AUTOMATIC.of(file, templates))

                return Response(await service.work(work), media_type=NRRD)

    return router
