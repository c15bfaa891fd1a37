"""``/datastore/``: scans and labels of the folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from vessa_client import InvalidRequestError
from vessa_server.api.monailabel import information, labels
from vessa_server.api.monailabel.context import LabelApp, params_of, upload_of
from vessa_server.api.monailabel.datastore import FINAL
from vessa_server.api.monailabel.sending import sent, zipped
from vessa_server.api.rest import forms

Output = Annotated[str, Query(pattern="^(stats|all|train)$")]


def datastore_router(app: LabelApp) -> APIRouter:
    """The routes, around what they share."""
    router = APIRouter(prefix="/datastore")

    @router.get("/")
    async def datastore(output: Output = "stats") -> Any:
        """Counts, everything, or pairs of scans and final labels."""
        views: dict[str, Callable[[LabelApp], Any]] = {
            "stats": information.statistics,
            "all": _everything,
            "train": _pairs,
        }
        return await app.service.work(lambda: views[output](app))

    @router.get("/dataset")
    async def dataset() -> Response:
        """All scans with a final label, as a zip."""
        return await app.service.work(lambda: zipped("dataset", _dataset(app)))

    _add_image_routes(router, app)
    _add_label_routes(router, app)
    return router


def _add_image_routes(router: APIRouter, app: LabelApp) -> None:
    @router.put("/")
    @router.put("/image")
    async def put_image(request: Request, image: str = "") -> dict[str, str]:
        """Add a scan: a file, or a DICOM series as a zip."""
        async with forms.read_form(request) as form:
            upload, params = upload_of(form, "file"), params_of(form)

            def put() -> str:
                name = app.store.put_image(image, upload)
                app.store.put_info(name, params)
                return name

            return {"image": await app.change(put)}

    @router.get("/image")
    async def get_image(image: str) -> Response:
        """A scan; a DICOM series as a zip."""
        return await app.service.work(lambda: sent(app.store.image(image)))

    @router.delete("/")
    @router.delete("/image")
    async def delete_image(id: str) -> dict[str, str]:
        """Remove a scan for good, with its labels and their templates."""

        def delete() -> None:
            name = app.store.named(id)[0]
            labels.forget_templates(app, name)
            app.store.delete_image(name)

        await app.change(delete)
        return {}

    @router.get("/image/info")
    async def get_image_info(image: str) -> dict[str, Any]:
        """What was noted of a scan."""
        return await app.service.work(lambda: app.store.info(app.store.named(image)[0]))

    @router.put("/image/info")
    async def put_image_info(request: Request, image: str) -> dict[str, str]:
        """Note something of a scan: the field ``info``."""
        async with forms.read_form(request) as form:
            info = params_of(form, "info")
        await app.change(lambda: app.store.put_info(app.store.named(image)[0], info))
        return {}


def _add_label_routes(router: APIRouter, app: LabelApp) -> None:
    @router.put("/label")
    async def put_label(request: Request, image: str, tag: str = FINAL) -> dict[str, Any]:
        """Keep a label map; a final one makes templates of its slices."""
        async with forms.read_form(request) as form:
            upload, params = upload_of(form, "label"), params_of(form)
            return await labels.put(app, image, tag or FINAL, upload, params)

    @router.get("/label")
    async def get_label(label: str = "", image: str = "", tag: str = FINAL) -> Response:
        """A label map; clients that only ask whether it is there name the image."""
        if not (label or image):
            raise InvalidRequestError("label: missing, expected an id", field="label")
        return await app.service.work(lambda: sent(app.store.label(label or image, tag)))

    @router.delete("/label")
    async def delete_label(id: str, tag: str = FINAL) -> dict[str, str]:
        """Remove a label map for good; of a final one also its templates."""

        def delete() -> None:
            app.store.label(id, tag)
            if tag == FINAL:
                labels.forget_templates(app, app.store.named(id)[0])
            app.store.delete_label(id, tag)

        await app.change(delete)
        return {}

    @router.get("/label/info")
    async def get_label_info(label: str, tag: str = FINAL) -> dict[str, Any]:
        """What was noted of a label map."""

        def read() -> dict[str, Any]:
            app.store.label(label, tag)
            return app.store.info(app.store.named(label)[0], tag)

        return await app.service.work(read)

    @router.put("/label/info")
    async def put_label_info(request: Request, label: str, tag: str = FINAL) -> dict[str, str]:
        """Note something of a label map: the field ``info``."""
        async with forms.read_form(request) as form:
            info = params_of(form, "info")
        info.pop(labels.RECORD, None)  # the server's own

        def put() -> None:
            app.store.label(label, tag)
            app.store.put_info(app.store.named(label)[0], info, tag)

        await app.change(put)
        return {}


def _everything(app: LabelApp) -> dict[str, Any]:
    store = app.store
    tags = store.tags()
    return {
        "name": information.NAME,
        "description": information.DESCRIPTION,
        "images_dir": "",
        "labels_dir": "labels",
        "objects": {
            name: {
                "image": {"ext": _ending(path, name), "info": store.info(name)},
                "labels": {
                    tag: {"ext": _ending(found[name], name), "info": store.info(name, tag)}
                    for tag, found in tags.items()
                    if name in found
                },
            }
            for name, path in store.images().items()
        },
    }


def _ending(path: Path, name: str) -> str:
    return path.name.removeprefix(name)


def _pairs(app: LabelApp) -> list[dict[str, str]]:
    images, final = app.store.images(), app.store.tags().get(FINAL, {})
    return [
        {"image": str(images[name]), "label": str(path)}
        for name, path in final.items()
        if name in images
    ]


def _dataset(app: LabelApp) -> dict[str, Path]:
    """Files of the zip: scans, and their labels in ``labels/final/``."""
    inside: dict[str, Path] = {}
    for pair in _pairs(app):
        for path in map(Path, pair.values()):
            for file in path.iterdir() if path.is_dir() else [path]:
                inside[str(file.relative_to(app.store.folder))] = file
    return inside
