"""What every gRPC call has: a caller, metrics, and errors as status codes."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import grpc

from vessa_client import VessaError
from vessa_server.api import errors
from vessa_server.api.metrics import Metrics
from vessa_server.api.service import Caller
from vessa_server.scheduler.scheduler import Priority

T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]


class Outcome:
    """How a call ended: the name of its status code."""

    # Of those who go, nothing else is heard.
    code = "CANCELLED"

    def failed(self, raised: Exception) -> VessaError:
        """Note an error; returns what of it leaves the process."""
        error = errors.public(raised)
        self.code = errors.code_name(error)
        return error


@contextmanager
def measured(metrics: Metrics, transport: str, method: str) -> Iterator[Outcome]:
    """Count a call and its seconds."""
    outcome, start = Outcome(), time.perf_counter()
    try:
        yield outcome
        if outcome.code == Outcome.code:
            outcome.code = "OK"
    finally:
        metrics.requests.labels(transport, method, outcome.code).inc()
        metrics.latency.labels(transport, method).observe(time.perf_counter() - start)


async def answered(
    metrics: Metrics,
    transport: str,
    method: str,
    context: Context,
    answer: Callable[[], Awaitable[T]],
) -> T:
    """One answer to one message, measured; an error ends the call with its status code."""
    with measured(metrics, transport, method) as outcome:
        try:
            return await answer()
        except Exception as raised:
            await abort(context, outcome.failed(raised))


async def abort(context: Context, error: VessaError) -> NoReturn:
    """End a call with an error."""
    context.set_trailing_metadata(errors.grpc_metadata(error))
    await context.abort(errors.grpc_status(error), error.message)
    raise AssertionError("unreachable: abort raises")


def caller_of(context: Context, priority: Priority) -> Caller:
    """Who calls: the host, whatever the port, until the call's deadline."""
    host = context.peer().rpartition(":")[0]
    return Caller.within(context.time_remaining(), host, priority)
