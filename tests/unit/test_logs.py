"""What the server's log keeps to itself."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from vessa_client import InvalidRequestError
from vessa_server.cases.images import ImageLimits, decode
from vessa_server.failures import where

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
        assert {e["at"] for e in events if "kind" in e} == {"<string>:10 in fail"}
        assert {"uvicorn.error", "grpc._cython.cygrpc", "asyncio"} <= {
            e.get("logger") for e in events
        }


def test_the_place_of_an_error_is_the_innermost_of_its_frames() -> None:
    with pytest.raises(InvalidRequestError) as ours:
        decode(b"SECRET", ImageLimits(max_bytes=100, max_side=100))
    assert re.fullmatch(r"vessa_server/cases/pictures\.py:\d+ in \w+", where(ours.value))
    with pytest.raises(json.JSONDecodeError) as of_a_module:
        json.loads("SECRET")
    assert re.fullmatch(
        r"json/decoder\.py:\d+ in JSONDecoder\.raw_decode", where(of_a_module.value)
    )
    with pytest.raises(TypeError) as of_a_package:
        json.loads(3)  # type: ignore[arg-type]
    assert re.fullmatch(r"json/__init__\.py:\d+ in loads", where(of_a_package.value))
    assert where(ValueError()) == ""
