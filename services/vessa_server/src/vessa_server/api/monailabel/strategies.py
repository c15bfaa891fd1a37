"""``/activelearning/{strategy}``: which scan to label next."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request

from vessa_client import NotFoundError
from vessa_server.api.monailabel.context import LabelApp, json_body

# Chooses one of the scans without a final label, of which there is at least one.
Strategy = Callable[[LabelApp, Mapping[str, Path]], str]


def first(app: LabelApp, scans: Mapping[str, Path]) -> str:
    """The first by name."""
    return min(scans)


def at_random(app: LabelApp, scans: Mapping[str, Path]) -> str:
    """Any of them."""
    return secrets.choice(sorted(scans))


STRATEGIES: dict[str, Strategy] = {"random": at_random, "first": first}


def strategy_router(app: LabelApp) -> APIRouter:
    """The route, around what it shares with others."""
    router = APIRouter(prefix="/activelearning")

    @router.post("/{strategy}")
    async def sample(request: Request, strategy: str) -> dict[str, Any]:
        """The next scan, or nothing where all have final labels."""
        params = await json_body(request)
        if strategy not in STRATEGIES:
            raise NotFoundError(
                f"strategy: no strategy {strategy[:80]!r}, expected {', '.join(STRATEGIES)}",
                field="strategy",
            )
        client = str(params.get("client_id") or "")
        return await app.service.work(lambda: _sample(app, strategy, client))

    return router


def _sample(app: LabelApp, strategy: str, client: str) -> dict[str, Any]:
    scans = app.store.unlabelled()
    if not scans:
        return {}
    chosen = STRATEGIES[strategy](app, scans)
    path = scans[chosen]
    now = int(time.time())
    return {
        "id": chosen,
        "weight": 1.0,
        "name": path.name,
        "ts": int(path.stat().st_mtime),
        "path": str(path),
        "strategy": {strategy: {"ts": now, "client_id": client[:80]}},
        **app.store.series(path),
    }
