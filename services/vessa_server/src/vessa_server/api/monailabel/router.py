"""All routes of the protocol, around a service."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter
from fastapi.params import Depends

from vessa_client import NotFoundError
from vessa_server.api.monailabel.adapting import train_router
from vessa_server.api.monailabel.context import LabelApp
from vessa_server.api.monailabel.cors import PREFIX
from vessa_server.api.monailabel.datastore_routes import datastore_router
from vessa_server.api.monailabel.infer import infer_router
from vessa_server.api.monailabel.information import information_router, open_router
from vessa_server.api.monailabel.sessions import session_router
from vessa_server.api.monailabel.strategies import strategy_router
from vessa_server.api.service import Service

METHODS = ["GET", "POST", "PUT", "DELETE"]


def monai_router(service: Service, guarded: Sequence[Depends]) -> APIRouter:
    """The routes; those that tell or change something have the dependencies ``guarded``."""
    router = APIRouter(prefix=PREFIX.rstrip("/"), tags=["MONAI Label"])
    if service.settings.studies is None:

        @router.api_route("/{path:path}", methods=METHODS, include_in_schema=False)
        async def off(path: str) -> None:
            raise NotFoundError(
                "monai: no folder of scans is served; start the server with --studies FOLDER, or "
                "VESSA_STUDIES",
                field="monai",
            )

        return router
    app = LabelApp(service, service.settings.studies)
    router.include_router(open_router(app))
    parts = (
        information_router,
        datastore_router,
        infer_router,
        session_router,
        strategy_router,
        train_router,
    )
    for part in parts:
        router.include_router(part(app), dependencies=guarded)
    return router
