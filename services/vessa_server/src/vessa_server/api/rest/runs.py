"""``/runs``: what the trainer's runs say of themselves."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Response

from vessa_client import NotFoundError
from vessa_server.api.errors import printable
from vessa_server.api.rest.pages import HEADERS
from vessa_server.api.runs import MAX_NAME, Runs
from vessa_server.api.service import Service


def runs_router(service: Service) -> APIRouter:
    """The routes, around a service."""
    router = APIRouter(prefix="/runs", tags=["runs"])
    folder = service.settings.runs_dir
    runs = None if folder is None else Runs(folder)

    def there() -> Runs:
        if runs is None:
            raise NotFoundError(
                "runs: no folder is set; start the server with --runs DIR or VESSA_RUNS_DIR",
                field="runs",
            )
        return runs

    @router.get("")
    async def list_runs() -> dict[str, Any]:
        """Runs of the trainer, newest first; `folder` is null where none is set."""
        if runs is None:
            return {"folder": None, "runs": [], "count": 0}
        listed, count = await service.work(runs.listing)
        shown = printable(runs.folder.name, MAX_NAME)
        return {"folder": shown, "runs": [_aged(run) for run in listed], "count": count}

    @router.get("/{name}")
    async def one_run(name: str) -> dict[str, Any]:
        """A run: what it was told, curves of at most 500 points, worst cases, pictures."""
        return _aged(await service.work(lambda: there().run(name)))

    @router.get("/{name}/{picture}.png")
    async def run_picture(name: str, picture: str) -> Response:
        """A picture of a run: gallery, regions, pseudo_labels, or curves."""
        data = await service.work(lambda: there().picture(name, picture))
        return Response(data, media_type="image/png", headers=HEADERS)

    return router


def _aged(run: dict[str, Any]) -> dict[str, Any]:
    """With the seconds since it was written, by the clock that its files have."""
    return {**run, "age_seconds": max(0.0, time.time() - run["written"])}
