"""Parameters of a request: what :class:`SegmentationRequest` has beside its arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from vessa_client import InvalidRequestError
from vessa_client._types import Priority
from vessa_server.api.rest.segment import split_names

Parameter = bool | int | float | str
MICROSECONDS: Final = 1_000_000
MAX_INTEGER: Final = (1 << 63) - 1
_KNOWN: Final = (
    "class_names",
    "text",
    "top_k",
    "template_ids",
    "bank",
    "policy_off",
    "explain",
    "return_probabilities",
    "priority",
    "timeout",
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Parameters, checked; those of the same name are as in :class:`SegmentationRequest`.

    Attributes:
        timeout: seconds after which no answer is wanted; None for no end.
    """

    class_names: tuple[str, ...]
    text: str
    top_k: int
    template_ids: tuple[str, ...]
    bank: str
    policy_off: tuple[str, ...]
    explain: bool
    return_probabilities: bool
    priority: Priority
    timeout: float | None


def read(values: Mapping[str, Parameter]) -> Options:
    """Check parameters.

    Raises:
        InvalidRequestError: one is unknown, or not of its type; it is named.
    """
    for name in values:
        if name not in _KNOWN:
            raise InvalidRequestError(
                f"parameters: {name[:80]!r} is unknown, expected some of {', '.join(_KNOWN)}",
                field="parameters",
            )
    timeout = _count(values, "timeout")
    return Options(
        class_names=_names(values, "class_names"),
        text=_text(values, "text"),
        top_k=_count(values, "top_k"),
        template_ids=_names(values, "template_ids"),
        bank=_text(values, "bank"),
        policy_off=_names(values, "policy_off"),
        explain=flag(values, "explain"),
        return_probabilities=flag(values, "return_probabilities"),
        priority=_priority(values),
        timeout=timeout / MICROSECONDS if timeout else None,
    )


def flag(values: Mapping[str, Parameter], name: str) -> bool:
    """A parameter that is true or false; false where it is not given.

    Raises:
        InvalidRequestError: it is neither.
    """
    value = values.get(name, False)
    if not isinstance(value, bool):
        raise _wrong(name, value, "true or false")
    return value


def _text(values: Mapping[str, Parameter], name: str) -> str:
    value = values.get(name, "")
    if not isinstance(value, str):
        raise _wrong(name, value, "a string")
    return value


def _names(values: Mapping[str, Parameter], name: str) -> tuple[str, ...]:
    return tuple(split_names(_text(values, name)))


def _count(values: Mapping[str, Parameter], name: str) -> int:
    value = values.get(name, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_INTEGER:
        raise _wrong(name, value, f"an integer in 0..{MAX_INTEGER}")
    return value


def _priority(values: Mapping[str, Parameter]) -> Priority:
    """Triton's integers, 1 before all others and 0 for the default, or our names."""
    value = values.get("priority", 0)
    if value in ("interactive", 1) and not isinstance(value, bool):
        return "interactive"
    if value == "bulk":
        return "bulk"
    if isinstance(value, str):
        raise _wrong("priority", value, "interactive, bulk, or an integer from 0")
    return "bulk" if _count(values, "priority") else ""


def _wrong(name: str, value: Parameter, expected: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"parameters.{name}: {str(value)[:80]!r}, expected {expected}", field=f"parameters.{name}"
    )
