"""``POST /check``: leave-one-out over a bank, a line of JSON for each scan."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import AsyncGenerator
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from vessa_client import check_page, checking
from vessa_client.checking import ScanCheck
from vessa_server.api import checks, errors
from vessa_server.api.checks import BankCheck, Checks
from vessa_server.api.rest import render
from vessa_server.api.rest.guard import error_body
from vessa_server.api.rest.segment import caller_of
from vessa_server.api.rest.volume import LINES
from vessa_server.api.service import Service
from vessa_server.scheduler.scheduler import Priority

MAX_END = 80
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A line of JSON with the number of scans, one for each scan as soon as it "
        "is done (mean, Dice by class, Dice of its slices, a PNG of the worst ones in base64), "
        "and one with the summary that `vessa check --json` prints, and its verdict; or one with "
        "an error, which ends the check.",
        "content": {LINES: {}},
    }
}


def check_router(service: Service) -> APIRouter:
    """The route, around a service."""
    router = APIRouter(tags=["templates"])
    running = Checks()

    @router.post("/check", response_class=Response, responses=RESPONSES)
    async def check(
        request: Request,
        bank: str = "",
        patient_end: Annotated[
            str,
            Query(
                max_length=MAX_END,
                description="Scans whose names agree up to this, such as _frame, are of one "
                "patient, and are held out together.",
            ),
        ] = "",
        x_request_timeout: Annotated[
            float | None, Header(gt=0, description="Seconds after which no answer is wanted.")
        ] = None,
    ) -> Response:
        """Hold each annotated scan of a bank out, and segment it with the others."""
        caller = caller_of(request, x_request_timeout, Priority.BULK)
        shared = checks.patients(patient_end)
        with contextlib.ExitStack() as until_opened:
            until_opened.enter_context(running.of(bank))
            opened = await service.work(partial(BankCheck, service, bank, shared, caller))
            return _Lines(service, opened, until_opened.pop_all())

    return router


class _Lines(StreamingResponse):
    """Figures by scan; the bank's place is held until the end, or the client has gone."""

    def __init__(self, service: Service, check: BankCheck, place: contextlib.ExitStack) -> None:
        super().__init__(_lines(service, check), media_type=LINES)
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._place:
            await super().__call__(scope, receive, send)


async def _lines(service: Service, check: BankCheck) -> AsyncGenerator[str, None]:
    yield json.dumps({"scans": check.scans}) + "\n"
    found: list[ScanCheck] = []
    try:
        async with contextlib.aclosing(check.results()) as results:
            async for one in results:
                yield await service.work(partial(_line, one))
                found.append(one.without_pixels())
    except Exception as raised:
        yield json.dumps(error_body(errors.public(raised))) + "\n"
        return
    found.sort(key=lambda one: one.mean)
    summary = {"summary": checking.summary(found), "verdict": checking.verdict(found)}
    yield json.dumps(summary) + "\n"


def _line(one: ScanCheck) -> str:
    picture = base64.b64encode(render.png(check_page.picture(one))).decode()
    return json.dumps({**one.figures, "picture_png": picture}) + "\n"
