"""``POST /check``: what `vessa check` says; one at a time for a bank, and while somebody waits."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from support import CLASSES, Gate, RunningServer, engine_of, gate_of, hang_up, picture, running
from vessa_client import SegmentationRequest, VessaClient
from vessa_client.cli import app
from vessa_server.api import checks

# By bank and scan: seeds of its slices, and the one class that is annotated, if not both.
BANKS: dict[str, dict[str, tuple[tuple[int, ...], int]]] = {
    "hearts": {"p1_a": ((0, 1), 0), "p1_b": ((10, 11), 0), "p2_a": ((20,), 0), "p3_b": ((30,), 2)},
    "two": {"a": ((0, 1), 1), "b": ((10,), 2)},
    "sizes": {"a": ((0, 1), 0), "b": ((10,), 0), "c": ((20,), 0)},
    "one": {"a": ((0, 1), 0)},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running(engine_of(tmp_path_factory.mktemp("check"), templates=0)) as started:
        with VessaClient(started.grpc) as client:
            for bank, scans in BANKS.items():
                for scan, (seeds, only) in scans.items():
                    for index, seed in enumerate(seeds):
                        shape = (60, 52 + 8 * index) if bank == "sizes" else (60, 52)
                        image, labels = picture(seed, shape)
                        labels = np.where(labels == only, labels, 0) if only else labels
                        name = f"{scan} slice {index}"
                        client.add_template(image, labels, CLASSES, name=name, bank=bank)
        yield started


def post(server: RunningServer, headers: dict[str, str] | None = None, **params: str) -> Any:
    return httpx.post(f"{server.http}/check", params=params, headers=headers, timeout=60)


def lines(answer: httpx.Response) -> list[Any]:
    return [json.loads(line) for line in answer.raise_for_status().text.splitlines()]


@pytest.mark.parametrize(
    ("bank", "end"), [("hearts", ""), ("hearts", "_"), ("two", ""), ("sizes", "")]
)
def test_the_figures_are_those_of_the_command(
    server: RunningServer, tmp_path: Path, bank: str, end: str
) -> None:
    words = ["check", "--bank", bank, "--server", server.grpc, "--json", "--out", str(tmp_path)]
    words += ["--patient", f"^[^{end}]+"] if end else []
    first, *scans, last = lines(post(server, bank=bank, patient_end=end))
    said = CliRunner().invoke(app, words)
    assert last["summary"] == json.loads(said.stdout)
    assert last["verdict"] in (tmp_path / "index.html").read_text()
    assert first == {"scans": len(scans)}
    pictures = [one.pop("picture_png") for one in scans]
    assert sorted(scans, key=lambda one: one["mean"]) == last["summary"]["scans"]
    for data in pictures:
        assert Image.open(io.BytesIO(base64.b64decode(data))).size[1] > 3 * 224


@pytest.mark.parametrize(
    ("params", "status", "field", "words"),
    [
        ({"bank": "one"}, 422, "bank", "1 annotated scans, expected two or more"),
        ({"bank": "none"}, 404, "bank", "no bank 'none'"),
        ({"bank": "two", "patient_end": "a" * 81}, 422, "patient_end", "80"),
    ],
)
def test_what_cannot_be_checked_is_said(
    server: RunningServer, params: dict[str, str], status: int, field: str, words: str
) -> None:
    for _ in range(2):  # it holds no place
        answer = post(server, None, **params)
        error = answer.json()["error"]
        assert (answer.status_code, error["field"]) == (status, field)
        assert words in error["message"]


def test_a_scan_beyond_the_memory_for_requests_is_refused(tmp_path: Path) -> None:
    with running(engine_of(tmp_path), max_queue_bytes=4 * 60 * 52 - 1) as server:
        answer = post(server)
    assert answer.status_code == 413
    assert "'picture 0' has 1 slices" in answer.json()["error"]["message"]


def test_names_of_a_patient_agree_up_to_a_text_and_are_no_pattern() -> None:
    found = checks.patients("_frame.")
    assert found is not None
    names = ("a_1_frame.2_frame.3", "a_1_frame.9", "a_1_frame_9", "_frame.1")
    shared = [match and match.group(1) for match in map(found.search, names)]
    assert shared == ["a_1", "a_1", None, None]
    assert checks.patients("") is None


def waiting(server: RunningServer) -> int:
    text = httpx.get(f"{server.http}/metrics").text
    names = ("vessa_queue_depth ", "vessa_volume_bytes ")
    return int(sum(float(x.split()[1]) for x in text.splitlines() if x.startswith(names)))


def test_a_bank_is_checked_once_at_a_time_and_until_the_browser_goes(tmp_path: Path) -> None:
    gate: Gate = gate_of(tmp_path)
    with running(gate) as server:

        def begun() -> bool:
            if not gate.entered.is_set():
                return False
            answer = post(server)
            assert answer.status_code == 429
            assert answer.headers["retry-after"] == "10"
            assert "being checked already" in answer.json()["error"]["message"]
            return True

        hang_up(server, httpx.Request("POST", "http://x/check"), begun)
        while waiting(server):
            pass
        gate.opened.set()
        with VessaClient(server.grpc) as client:
            client.segment(SegmentationRequest(image=picture(9)[0], priority="bulk"))
        assert len(gate.seen) == 2  # this one, and the slice that was under way
        assert lines(post(server))[-1]["verdict"]


def test_a_deadline_and_the_end_of_the_server_end_it_in_words(tmp_path: Path) -> None:
    gate: Gate = gate_of(tmp_path)
    with running(gate, grace_seconds=0.5) as server:
        assert lines(post(server, {"X-Request-Timeout": "0.4"}))[-1]["error"]["code"] == (
            "DEADLINE_EXCEEDED"
        )
        with httpx.stream("POST", f"{server.http}/check", timeout=60) as answer:
            found = answer.iter_lines()
            assert json.loads(next(found)) == {"scans": 3}
            server.request_stop()
            assert json.loads(list(found)[-1])["error"]["code"] == "UNAVAILABLE"
        gate.opened.set()


def test_the_token_and_other_sites_are_looked_at(tmp_path: Path) -> None:
    with running(engine_of(tmp_path), token="secret") as server:
        assert post(server).status_code == 401
        headers = {"Authorization": "Bearer secret", "Sec-Fetch-Site": "cross-site"}
        assert post(server, headers).status_code == 403
