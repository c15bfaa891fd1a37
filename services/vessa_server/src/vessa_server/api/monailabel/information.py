"""``/auth/``, ``/info/`` and ``/logs/``: what clients ask first."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse

from vessa_server.api.logs import recent_lines
from vessa_server.api.monailabel.adapting import CONFIG
from vessa_server.api.monailabel.context import LabelApp
from vessa_server.api.monailabel.strategies import STRATEGIES
from vessa_server.api.rest import forms

NAME = "VESSA"
DESCRIPTION = "Labels of scans from a bank of annotated templates."


def open_router(app: LabelApp) -> APIRouter:
    """Routes for those who have no token yet; the token is the password, of any user."""
    router = APIRouter(prefix="/auth")

    @router.get("/")
    async def auth() -> dict[str, bool]:
        """Whether a token is needed."""
        return {"enabled": app.service.settings.token is not None}

    @router.post("/token")
    async def token(request: Request) -> dict[str, str]:
        """The token, for whoever gives it as password."""
        async with forms.read_form(request) as form:
            given = form.text("password")
        app.service.authenticate(f"Bearer {given}")
        return {"access_token": given.strip(), "token_type": "bearer"}

    return router


def information_router(app: LabelApp) -> APIRouter:
    """Routes that need the token, where there is one."""
    router = APIRouter()

    @router.get("/auth/token/valid")
    async def valid() -> dict[str, Any]:
        """The token that came along is right."""
        return {}

    @router.get("/info/")
    async def info() -> dict[str, Any]:
        """Models, labels and what is in the datastore."""
        return await app.service.work(lambda: describe(app))

    @router.get("/logs/")
    async def logs(lines: int = 300) -> PlainTextResponse:
        """The last lines of the log, as plain text."""
        return PlainTextResponse("\n".join(recent_lines(lines)))

    return router


def describe(app: LabelApp) -> dict[str, Any]:
    """What ``/info/`` says."""
    models = {
        model: {
            "type": "segmentation",
            "labels": label_names(app, model),
            "dimension": 3,
            "description": f"{NAME} with the templates of bank {bank or 'default'}",
            "config": {},
        }
        for model, bank in app.models().items()
    }
    trains = app.service.settings.runtime == "torch"
    trainers = {model: {"config": CONFIG} for model in models} if trains else {}
    return {
        "name": NAME,
        "description": DESCRIPTION,
        "version": version("vessa-server"),
        "labels": [c.name for c in app.service.engine.bank.snapshot().classes],
        "models": models,
        "trainers": trainers,
        "strategies": {name: {} for name in STRATEGIES},
        "scoring": {},
        "train_stats": {},
        "datastore": statistics(app),
    }


def label_names(app: LabelApp, model: str) -> dict[str, int]:
    """Values of a model's labels by name: 1, 2, ... in the bank's order."""
    classes = app.bank(model)[1].snapshot().classes
    return {c.name: value for value, c in enumerate(classes, start=1)}


def statistics(app: LabelApp) -> dict[str, Any]:
    """How many scans there are, and how many have labels."""
    images, tags = app.store.images(), app.store.tags()
    return {
        "total": len(images),
        "completed": len(images) - len(app.store.unlabelled()),
        "label_tags": {tag: len(labels) for tag, labels in tags.items()},
    }
