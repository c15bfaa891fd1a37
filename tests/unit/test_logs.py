"""What the server's log keeps to itself."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

FAILING = """
import asyncio, logging, sys, threading, warnings
from vessa_server.api.logs import configure_logs

configure_logs(sys.argv[1])


def fail():
    secret = "SECRET"
    raise ValueError(f"about {secret}")


def log(name, *arguments):
    try:
        fail()
    except ValueError:
        logging.getLogger(name).exception(*arguments, stack_info=True)


class Fails:
    def __del__(self):
        fail()


log("uvicorn.error", "Exception in ASGI application\\n")
log("grpc._cython.cygrpc", "Unexpected [%s] raised by servicer method [%s]", "SECRET", "x")
log("PIL.Image", "SECRET")
logging.getLogger("other").error("future: <Task SECRET>")


async def forgotten():
    asyncio.get_running_loop().create_task(failing())
    await asyncio.sleep(0)


async def failing():
    fail()


asyncio.run(forgotten())
thread = threading.Thread(target=fail)
thread.start()
thread.join()
Fails()
warnings.warn("SECRET")
"""


@pytest.mark.parametrize("form", ["console", "json"])
def test_errors_of_libraries_are_logged_by_kind_and_place(form: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", FAILING, form], capture_output=True, text=True, check=True
    )
    assert "SECRET" not in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.count("ValueError") == 5
    for words in ("Exception in ASGI application", "thread.failed", "cleanup.failed"):
        assert words in result.stderr
    if form == "json":
        events = [json.loads(line) for line in result.stderr.splitlines()]
        assert {e["at"] for e in events if "kind" in e} == {"<string>:10"}
        assert {"uvicorn.error", "grpc._cython.cygrpc", "asyncio"} <= {
            e.get("logger") for e in events
        }
