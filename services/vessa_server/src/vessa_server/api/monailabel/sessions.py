"""``/session/``: scans that are kept for a while, beside those of the datastore."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response

from vessa_client import InvalidRequestError, NotFoundError, OverloadedError
from vessa_server.api.monailabel import scans, uploads
from vessa_server.api.monailabel.sending import sent
from vessa_server.api.monailabel.uploads import Upload
from vessa_server.api.rest import forms
from vessa_server.api.room import RETRY_SECONDS

if TYPE_CHECKING:
    from vessa_server.api.monailabel.context import LabelApp

DEFAULT_SECONDS, MAX_SECONDS = 3600, 24 * 3600
# What a session counts for besides its files, so that there are not too many.
OVERHEAD_BYTES = 1 << 16


@dataclass(frozen=True)
class Session:
    """A scan, and until when it is kept: ``expiry`` seconds after it was last asked for."""

    name: str
    path: Path
    image: Path
    meta: dict[str, Any]
    create_ts: int
    last_access_ts: int
    expiry: int
    size: int

    def described(self) -> dict[str, Any]:
        """What clients are told."""
        found = asdict(self) | {"path": str(self.path), "image": str(self.image)}
        del found["size"]
        return found


class Sessions:
    """Scans by session, bounded in bytes. Thread-safe.

    Args:
        max_bytes: of all together, and of one scan's voxels.
        clock: seconds since 1970.
    """

    def __init__(self, max_bytes: int, clock: Callable[[], float] = time.time) -> None:
        self.max_bytes = max_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[str, Session] = {}
        self._folder: Path | None = None

    def create(self, given: Sequence[Upload], expiry: int) -> tuple[str, Session]:
        """Keep a scan: a file, a zip, or the files of a DICOM series.

        Raises:
            InvalidRequestError: it is no scan.
            OverloadedError: it is too large, or has no room beside others.
        """
        self.expire()
        session_id, now = secrets.token_urlsafe(16), int(self._clock())
        path = self._home() / session_id
        with uploads.writing(path):
            path.mkdir()
        try:
            with uploads.writing(path):
                image = uploads.receive(given, path, "files", self.max_bytes)
            scans.read(image, "files", self.max_bytes)
            size = sum(file.stat().st_size for file in path.rglob("*")) + OVERHEAD_BYTES
            seconds = min(expiry, MAX_SECONDS) if expiry > 0 else DEFAULT_SECONDS
            session = Session(image.name, path, image, {}, now, now, seconds, size)
            with self._lock:
                self._check_room(size)
                self._known[session_id] = session
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise
        return session_id, session

    def get(self, session_id: str, *, touch: bool = False) -> Session:
        """A session, which is kept longer if it is touched.

        Raises:
            NotFoundError: it is unknown, or has expired.
        """
        self.expire()
        with self._lock:
            session = self._known.get(session_id)
            if session is None:
                raise NotFoundError(
                    f"session_id: no session {session_id[:80]!r} (any more)", field="session_id"
                )
            if touch:
                session = replace(session, last_access_ts=int(self._clock()))
                self._known[session_id] = session
            return session

    def delete(self, session_id: str) -> Session:
        """Forget a session and remove its files.

        Raises:
            NotFoundError: it is unknown, or has expired.
        """
        session = self.get(session_id)
        with self._lock:
            self._known.pop(session_id, None)
        shutil.rmtree(session.path, ignore_errors=True)
        return session

    def expire(self) -> None:
        """Remove the files of sessions that nobody asked for in time."""
        now = self._clock()
        with self._lock:
            over = [i for i, s in self._known.items() if s.last_access_ts + s.expiry < now]
            gone = [self._known.pop(session_id) for session_id in over]
        for session in gone:
            shutil.rmtree(session.path, ignore_errors=True)

    def close(self) -> None:
        """Forget all."""
        with self._lock:
            self._known.clear()
            folder, self._folder = self._folder, None
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def _home(self) -> Path:
        with self._lock:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="vessa-sessions-"))
            return self._folder

    def _check_room(self, size: int) -> None:
        held = sum(session.size for session in self._known.values())
        if held + size > self.max_bytes:
            raise OverloadedError(
                f"files: {size} bytes, other sessions hold {held}, at most {self.max_bytes} may be "
                "held (VESSA_MAX_QUEUE_BYTES); delete some, or wait until they expire",
                field="files",
                retry_after=RETRY_SECONDS,
            )


def session_router(app: LabelApp) -> APIRouter:
    """The routes, around what they share."""
    router = APIRouter(prefix="/session")
    sessions = app.sessions

    @router.put("/")
    async def create(request: Request, expiry: int = 0) -> dict[str, Any]:
        """Keep a scan for ``expiry`` seconds after it was last asked for; zips are unpacked."""
        async with forms.read_form(request, uploads.MAX_FILES) as form:
            given = [Upload(f.filename or "", f.file) for f in form.files.get("files", ())]
            if not given:
                raise InvalidRequestError("files: missing, expected a scan", field="files")
            session_id, made = await app.service.work(lambda: sessions.create(given, expiry))
        return {"session_id": session_id, "session_info": made.described()}

    @router.get("/{session_id}")
    async def get(session_id: str, update_ts: bool = False, image: bool = False) -> Any:
        """What is known of a session, or its scan."""

        def found() -> dict[str, Any] | Response:
            session = sessions.get(session_id, touch=update_ts)
            return sent(session.image) if image else session.described()

        return await app.service.work(found)

    @router.delete("/{session_id}")
    async def delete(session_id: str) -> dict[str, Any]:
        """Forget a session."""
        return (await app.service.work(lambda: sessions.delete(session_id))).described()

    return router
