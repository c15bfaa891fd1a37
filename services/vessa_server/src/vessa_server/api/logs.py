"""Structured logs on standard error: for people, or JSON lines for machines.

No line holds what users sent: of errors of libraries only their kind and place are kept, since
messages, frames and their variables may hold pixels and names.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
import warnings
from collections import deque

import structlog
from structlog.types import EventDict, Processor, WrappedLogger

from vessa_server.failures import described

# They say of damaged bodies what the answer to their sender says, too.
_SILENT = ("PIL", "nibabel.global", "python_multipart")
# Lines that are kept for those who look at the log through the server.
KEPT_LINES = 1000
_kept: deque[str] = deque(maxlen=KEPT_LINES)
# From here on messages of libraries may show objects.
_OBJECTS = re.compile(r"[\n(<{\[]")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def configure_logs(form: str) -> None:
    """``form`` is ``console`` or ``json``; the standard library's loggers are included."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    rendered: Processor = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )

    def renderer(logger: WrappedLogger, name: str, event: EventDict) -> str:
        line = str(rendered(logger, name, event))
        _kept.append(_COLOURS.sub("", line))
        return line

    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(processor=renderer, foreign_pre_chain=[*shared, _bare])
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    for name in _SILENT:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")  # of libraries, about what users sent
    threading.excepthook = _thread_failed
    sys.unraisablehook = _not_raised


def recent_lines(most: int) -> list[str]:
    """The last lines of the log, ``most`` at most, without colours."""
    kept = list(_kept)
    return kept[max(0, len(kept) - max(0, most)) :]


def _bare(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Of a library's message its beginning, of its error the kind and place."""
    event["event"] = _OBJECTS.split(str(event["event"]), maxsplit=1)[0].strip()
    event["logger"] = event["_record"].name
    event.pop("stack_info", None)
    raised = event.pop("exc_info", None)
    error = raised[1] if isinstance(raised, tuple) else raised
    if isinstance(error, BaseException):
        event.update(described(error))
    return event


def _thread_failed(failed: threading.ExceptHookArgs) -> None:
    _log_failure("thread.failed", failed.exc_value)


def _not_raised(failed: sys.UnraisableHookArgs) -> None:
    _log_failure("cleanup.failed", failed.exc_value)


def _log_failure(event: str, error: BaseException | None) -> None:
    if error is not None:
        log = structlog.get_logger(__name__)
        log.error(event, **described(error))
