"""How the trainer reaches the server, and what is wrong where the server cannot help.

No waiting mends a class that no template shows, an empty or unknown bank, or a wrong token: these
stop a run, with the command that mends them. A server that is away stops it at its start only.
"""

from __future__ import annotations

import ipaddress
import os
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import structlog

from ssl_trainer.config import AssistantConfig
from vessa_client import (
    AuthenticationError,
    ClientOptions,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    RetryPolicy,
    VessaClient,
    VessaError,
)

T = TypeVar("T")

TOKEN_VARIABLE = "VESSA_TOKEN"  # that of the `vessa` command
# Between two attempts to reach a server that is not there yet.
ATTEMPT_SECONDS = 0.3
# For a server that is there and busy, also where a run does not wait for one.
ANSWER_SECONDS = 10.0
# Of containers: Docker's file, and podman's variable.
CONTAINER_FILE, CONTAINER_VARIABLE = Path("/.dockerenv"), "container"
# Fields of a request that are the same in all requests of a run.
BANK_FIELDS = ("bank", "class_names")

log = structlog.get_logger(__name__)


class AssistantError(ValueError):
    """VESSA cannot help; the message names what is wrong, and the command that mends it."""


def connect(config: AssistantConfig, timeout: float) -> VessaClient:
    """A client that tries once; its token is that of the environment.

    Args:
        config: names server, bank and certificates.
        timeout: seconds for one call.

    Raises:
        AssistantError: token or certificates cannot be used.
    """
    assert config.server is not None
    token = os.environ.get(TOKEN_VARIABLE)
    try:
        options = ClientOptions(
            timeout=timeout,
            retry=RetryPolicy(attempts=1),
            token=token,
            root_certificates=config.root_certificates,
            bank=config.bank,
        )
        return VessaClient(config.server, options)
    except OSError as error:
        raise AssistantError(f"assistant.root_certificates: {error}") from error
    except ValueError as error:
        raise AssistantError(f"{TOKEN_VARIABLE}: {error}") from error


def check(config: AssistantConfig, classes: Sequence[str]) -> None:
    """Whether the server answers, and its bank shows every class.

    Raises:
        AssistantError: not so, also after ``wait_seconds``.
    """
    with connect(config, max(ANSWER_SECONDS, config.wait_seconds)) as client:
        listing = reached(config, classes, client.list_templates)
    shown = [c.name for c in listing.classes]
    missing = [name for name in classes if name not in shown]
    if not shown:
        raise AssistantError(f"{_bank(config)} is empty: {_fill(config, classes)}")
    if missing:
        raise AssistantError(
            f"data.classes: {_bank(config)} has no template of {_quoted(missing)}, it has "
            f"{_quoted(shown)}: name them as the bank does, or {_fill(config, classes)}"
        )


def reached(config: AssistantConfig, classes: Sequence[str], call: Callable[[], T]) -> T:
    """The answer to ``call``, tried again for ``wait_seconds`` where the server is away.

    Raises:
        AssistantError: the call cannot be answered, or the server stays away.
    """
    deadline, waits = time.monotonic() + config.wait_seconds, False
    while True:
        try:
            return call()
        except VessaError as error:
            if lasts(error):
                raise AssistantError(explain(error, config, classes)) from error
            if time.monotonic() >= deadline:
                reason = explain(error, config, classes)
                raise AssistantError(f"{reason}; without --server a run trains alone") from error
        if not waits:
            waits = True
            log.info("assistant.waiting", server=config.server, seconds=config.wait_seconds)
        time.sleep(ATTEMPT_SECONDS)


def lasts(error: VessaError) -> bool:
    """Whether no waiting mends it."""
    if isinstance(error, OverloadedError):  # over a limit, unless the server says when to come back
        return error.retry_after <= 0
    return isinstance(error, (InvalidRequestError, NotFoundError, AuthenticationError))


def of_one_slice(error: VessaError) -> bool:
    """Whether the server cannot take this one slice, and may well take the others."""
    return lasts(error) and error.field.startswith(("image", "volume", "student_mask"))


def explain(error: VessaError, config: AssistantConfig, classes: Sequence[str]) -> str:
    """What is wrong, and the command that mends it, on one line."""
    at = f"VESSA at {config.server}"
    if isinstance(error, AuthenticationError):
        given = "refuses the token of" if os.environ.get(TOKEN_VARIABLE) else "wants a token in"
        return f"{at} {given} {TOKEN_VARIABLE}: export {TOKEN_VARIABLE}=TOKEN, the server's own"
    if error.field in BANK_FIELDS:
        return f"{at}: {error.message}: {_fill(config, classes)}"
    if lasts(error):
        return f"{at} refuses: {error.message}"
    hint = "is `vessa-server serve` running there?"
    known = "vessa-server serve" in error.message  # as where nothing listens
    return f"{at} does not answer: {error.message}{'' if known else '; ' + hint}"


def on_this_machine(server: str) -> bool:
    """Whether the address is one of this machine's own, or a service beside this container."""
    host = server.rpartition("/")[2].rpartition(":")[0].strip("[]")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        contained = CONTAINER_VARIABLE in os.environ or CONTAINER_FILE.exists()
        own = host == "localhost" or server.startswith("unix:")
        return own or (contained and "." not in host)
    return address.is_loopback


def _bank(config: AssistantConfig) -> str:
    name = f"bank {config.bank!r}" if config.bank else "the default bank"
    return f"{name} of VESSA at {config.server}"


def _fill(config: AssistantConfig, classes: Sequence[str]) -> str:
    """The commands that put templates into a bank."""
    add = ["vessa", "templates", "add", "IMAGE", "LABELS", "--server", str(config.server)]
    add += [word for name in classes for word in ("-c", name)]
    add += ["--bank", config.bank] if config.bank else []
    own = f"ssl-trainer train CONFIG --out RUN --server {config.server} --fill-bank"
    return f"put the annotated scans into it with `{shlex.join(add)}`, or start with `{own}`"


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)
