"""What the routes share: the service, the folder of scans, and how requests are read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from fastapi import Request

from vessa_client import InvalidRequestError, NotFoundError, OverloadedError
from vessa_server.api.monailabel.datastore import Datastore
from vessa_server.api.monailabel.sessions import Sessions
from vessa_server.api.monailabel.uploads import Upload
from vessa_server.api.rest.forms import Form
from vessa_server.api.service import Service
from vessa_server.bank import TemplateBank

T = TypeVar("T")
MODEL = "vessa"
MAX_JSON_BYTES = 1 << 20


class LabelApp:
    """A service, and the scans that it labels.

    Attributes:
        service: segments and keeps the banks.
        store: the scans.
        sessions: scans that are kept for a while.
        max_bytes: of a scan's voxels.
    """

    def __init__(self, service: Service, folder: Path) -> None:
        self.service = service
        self.max_bytes = service.settings.max_queue_bytes
        self.store = Datastore(folder, self.max_bytes)
        self.sessions = Sessions(self.max_bytes)
        service.when_closing.append(self.sessions.close)
        self._changing = asyncio.Lock()

    async def change(self, function: Callable[[], T]) -> T:
        """Run what changes scans or labels in the pool, one at a time."""
        async with self._changing:
            return await self.service.work(function)

    def models(self) -> dict[str, str]:
        """Banks by the model that answers from them."""
        banks = self.service.engine.banks
        return {MODEL: "", **{f"{MODEL}-{name}": name for name in banks.names()}}

    def bank(self, model: str) -> tuple[str, TemplateBank]:
        """Name and bank of a model.

        Raises:
            NotFoundError: there is no such model.
        """
        models = self.models()
        if model not in models:
            raise NotFoundError(
                f"model: no model {model[:80]!r}, expected {', '.join(models)}", field="model"
            )
        return models[model], self.service.engine.banks.get(models[model])


def upload_of(form: Form, field: str) -> Upload:
    """The file of a form.

    Raises:
        InvalidRequestError: there is none.
    """
    if field not in form.files:
        raise InvalidRequestError(f"{field}: missing, expected a file", field=field)
    file = form.files[field][0]
    return Upload(file.filename or "", file.file)


def params_of(form: Form, field: str = "params") -> dict[str, Any]:
    """The JSON object in a text of a form; empty where there is none.

    Raises:
        InvalidRequestError: it is something else.
    """
    return _object(form.text(field) or "{}", field)


async def json_body(request: Request) -> dict[str, Any]:
    """The JSON object of a body; empty where there is none.

    Raises:
        InvalidRequestError: it is something else.
        OverloadedError: it is too long.
    """
    body = await request.body()
    if len(body) > MAX_JSON_BYTES:
        raise OverloadedError(
            f"body: {len(body)} bytes of JSON, expected at most {MAX_JSON_BYTES}", field="body"
        )
    return _object(body or b"{}", "body")


def _object(text: str | bytes, field: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"{field}: not JSON ({error})", field=field) from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise InvalidRequestError(f"{field}: expected a JSON object", field=field)
    return found
