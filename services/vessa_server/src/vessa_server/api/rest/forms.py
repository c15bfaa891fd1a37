"""Fields of multipart forms: known ones only, each as often as it may be given."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from starlette.datastructures import UploadFile

from vessa_client import InvalidRequestError
from vessa_client._types import Window

MULTIPART, JSON = "multipart/form-data", "application/json"
_FLAGS = {"": False, **dict.fromkeys(("0", "false", "off", "no"), False)}
_FLAGS |= dict.fromkeys(("1", "true", "on", "yes"), True)


# A file's content, in OpenAPI.
FILE = {"type": "string", "format": "binary"}


WINDOW = {"type": "string", "description": "Intensities that are seen: LOW,HIGH."}


def described(properties: Mapping[str, Any], required: Sequence[str]) -> dict[str, Any]:
    """A form as the body of a request, in OpenAPI."""
    schema = {"type": "object", "required": list(required), "properties": dict(properties)}
    return {"required": True, "content": {MULTIPART: {"schema": schema}}}


@dataclass(frozen=True)
class Form:
    """Files and texts of a form, by name."""

    files: dict[str, list[UploadFile]]
    texts: dict[str, list[str]]

    def check(self, files: Sequence[str], texts: Sequence[str], several: Sequence[str]) -> None:
        """Check names, and which are files.

        Args:
            files: known fields that are files.
            texts: known fields that are texts.
            several: those that may be given several times.

        Raises:
            InvalidRequestError: a field is unknown, of the wrong kind, or given twice.
        """
        for name in (*self.files, *self.texts):
            if name not in (*files, *texts):
                raise InvalidRequestError(
                    f"{name[:80]}: unknown field, expected {', '.join((*files, *texts))}",
                    field=name,
                )
            if name in (files if name in self.texts else texts):
                expected = "a file" if name in files else "text, not a file"
                raise InvalidRequestError(f"{name}: expected {expected}", field=name)
            count = len(self.files.get(name, self.texts.get(name, ())))
            if count > 1 and name not in several:
                raise InvalidRequestError(f"{name}: {count} values, expected one", field=name)

    def text(self, name: str) -> str:
        """A text, or an empty one."""
        return self.texts.get(name, [""])[0]

    def names(self, name: str) -> tuple[str, ...]:
        """Names of all values, which are comma-separated."""
        return tuple(part for text in self.texts.get(name, []) for part in split_names(text))

    def number(self, name: str) -> int | None:
        """A small integer from 0, or None where there is none.

        Raises:
            InvalidRequestError: it is something else.
        """
        text = self.text(name).strip()
        if not text:
            return None
        if not (text.isascii() and text.isdecimal() and len(text) < 6):
            raise InvalidRequestError(
                f"{name}: {text[:20]!r}, expected an integer from 0", field=name
            )
        return int(text)

    def window(self) -> Window | None:
        """Intensities that become black and white: LOW,HIGH.

        Raises:
            InvalidRequestError: it is something else.
        """
        text = self.text("window").strip()
        if not text:
            return None
        try:
            low, high = map(float, text.split(","))
        except ValueError as error:
            raise InvalidRequestError(
                f"window: {text[:40]!r}, expected LOW,HIGH such as -160,240", field="window"
            ) from error
        return low, high

    def flag(self, name: str) -> bool:
        """Whether a box is ticked.

        Raises:
            InvalidRequestError: it is something else.
        """
        text = self.text(name).strip().lower()
        if text not in _FLAGS:
            raise InvalidRequestError(f"{name}: {text[:20]!r}, expected true or false", field=name)
        return _FLAGS[text]


@asynccontextmanager
async def read_form(request: Request, max_files: int = 1000) -> AsyncIterator[Form]:
    """Read a form; its files can be read until the context ends."""
    async with request.form(max_files=max_files) as content:
        form = Form({}, {})
        for name, value in content.multi_items():
            if isinstance(value, UploadFile):
                form.files.setdefault(name, []).append(value)
            else:
                form.texts.setdefault(name, []).append(value)
        yield form


def content_type(request: Request, *expected: str) -> str:
    """The media type of a body, one of ``expected``.

    Raises:
        InvalidRequestError: it is of another.
    """
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given not in expected:
        raise InvalidRequestError(
            f"image: in a body of {given[:80]!r}, expected {' or '.join(expected)}", field="image"
        )
    return given


def split_names(text: str) -> list[str]:
    """Parts of a comma-separated list, without blanks."""
    return [part.strip() for part in text.split(",") if part.strip()]
