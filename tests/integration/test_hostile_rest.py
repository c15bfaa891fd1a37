"""REST requests of enemies and of mistaken users: one form of errors, and nothing is guessed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from support import RunningServer, engine_of, picture, running
from support_files import nifti, png
from vessa_server.api.rest.negotiation import negotiated

IMAGE, LABELS = picture(0)
FILES = {"image": png(IMAGE)}
JSON = {"Content-Type": "application/json"}
OWN = "own"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running(engine_of(tmp_path_factory.mktemp("attacked"))) as started:
        yield started


def ask(server: RunningServer, method: str, path: str, **request: Any) -> httpx.Response:
    return httpx.request(method, server.http + path, timeout=30, **request)


def error_of(answer: httpx.Response) -> dict[str, str]:
    """The error of an answer, which has the form of all."""
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message", "field"}
    assert body["error"]["message"].isprintable()
    assert len(answer.content) < 4000
    found: dict[str, str] = body["error"]
    return found


# --- Forms and JSON


@pytest.mark.parametrize(
    ("files", "data", "status", "field"),
    [
        (FILES, {"top_k": "9" * 5000}, 422, "top_k"),
        (FILES, {"top_k": "-1"}, 422, "top_k"),
        (FILES, {"top_k": "٣"}, 422, "top_k"),
        (FILES, {"class_names": "é" * 500_000}, 404, "class_names"),
        (FILES, {"class_names": ",".join(map(str, range(10_000)))}, 422, "class_names"),
        (FILES, {"class_names": "a\x1b[31m\n\0b"}, 404, "class_names"),
        (FILES, {"class_names": "e" * 2_000_000}, 400, ""),
        (FILES, {"text": ["a", "b"]}, 422, "text"),
        (FILES, {"bank": "../x"}, 422, "bank"),
        (FILES, {"policy_off": "x" * 100_000}, 422, "policy_off"),
        (FILES, {"template_ids": "x" * 100_000}, 404, "options.template_ids"),
        (FILES, {"student_mask": "text"}, 422, "student_mask"),
        (FILES, {"explain": "maybe"}, 422, "explain"),
        (FILES, {"unknown": "x"}, 422, "unknown"),
        ({**FILES, "class_names": b"x"}, {}, 422, "class_names"),
        ({**FILES, "student_mask": png(np.stack([LABELS] * 3, -1))}, {}, 422, "student_mask"),
        ([("image", png(IMAGE)), ("image", png(IMAGE))], {}, 422, "image"),
        ({}, {"text": "x"}, 422, "image"),
    ],
)
def test_forms_say_what_is_wrong(
    server: RunningServer, files: Any, data: dict[str, Any], status: int, field: str
) -> None:
    answer = ask(server, "POST", "/pseudolabel", files=files, data=data)
    assert answer.status_code == status
    assert error_of(answer)["field"] == field


TEMPLATE = {"image": png(picture(7)[0]), "labels": png(picture(7)[1])}


@pytest.mark.parametrize(
    ("files", "data", "status", "field"),
    [
        (TEMPLATE, {"class_names": "disc,bar", "other": "x"}, 422, "other"),
        (TEMPLATE, {"class_names": "disc,bar", "name": ["a", "b"]}, 422, "name"),
        (TEMPLATE, {"class_names": "disc", "descriptions": "a;b"}, 422, "descriptions"),
        (TEMPLATE, {"class_names": "disc"}, 422, "label_map"),
        (TEMPLATE, {}, 422, "classes"),
        ({"image": TEMPLATE["image"]}, {"class_names": "disc,bar"}, 422, "labels"),
        ({"labels": TEMPLATE["labels"]}, {"class_names": "disc,bar"}, 422, "image"),
        ({**TEMPLATE, "labels": b"x"}, {"class_names": "disc,bar"}, 422, "labels"),
        ({**TEMPLATE, "image": b"x"}, {"class_names": "disc,bar"}, 422, "image.encoded"),
        (TEMPLATE, {"class_names": "disc,bar", "name": "x" * 999}, 422, "name"),
        (TEMPLATE, {"class_names": "disc,\x1b"}, 422, "classes.name"),
    ],
)
def test_forms_of_templates_do_too(
    server: RunningServer, files: Any, data: dict[str, Any], status: int, field: str
) -> None:
    before = ask(server, "GET", "/templates").json()
    answer = ask(server, "POST", "/templates", files=files, data=data)
    assert answer.status_code == status
    assert error_of(answer)["field"] == field
    assert ask(server, "GET", "/templates").json() == before


def test_a_list_may_be_given_in_any_way(server: RunningServer) -> None:
    expected = ask(server, "POST", "/pseudolabel", files=FILES, data={"class_names": "disc,bar"})
    repeated = {"class_names": ["disc", "bar"]}
    found = ask(server, "POST", "/pseudolabel", files=FILES, data=repeated)
    assert found.json()["labels_png"] == expected.json()["labels_png"]
    assert [c["class_name"] for c in found.json()["classes"]] == ["disc", "bar"]


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        (json.dumps({"image": "é"}), 422, "image"),
        ('{"image": "aaaa", "top_k": ' + "9" * 5000 + "}", 422, "body"),
        ('{"image": NaN}', 422, "image"),
        ("", 422, "body"),
        ("[]", 422, "body"),
        ("[" * 100_000, 422, "body"),
        ('{"image": "aaaa", "volume": [' + '"",' * 200_000 + '""]}', 413, "body"),
        (b"\0\xff", 422, "body"),
        (json.dumps({"k" * 1_000_000: 1}), 422, "k" * 80),
        (json.dumps({"image_ref": "x\n" * 100_000}), 404, "image.ref"),
        ("{}", 422, "image"),
        ('{"image": "aaaa", "image_ref": "b"}', 422, "image"),
    ],
)
def test_json_says_what_is_wrong(
    server: RunningServer, body: str | bytes, status: int, field: str
) -> None:
    answer = ask(server, "POST", "/pseudolabel", content=body, headers=JSON)
    assert answer.status_code == status
    assert error_of(answer)["field"] == field


@pytest.mark.parametrize(
    ("method", "path", "headers", "content", "status", "code"),
    [
        ("GET", "/nothing", {}, b"", 404, "NOT_FOUND"),
        ("GET", "/templates/", {}, b"", 404, "NOT_FOUND"),
        ("GET", "/redoc", {}, b"", 404, "NOT_FOUND"),
        ("GET", "/pseudolabel", {}, b"", 405, "UNIMPLEMENTED"),
        ("OPTIONS", "/pseudolabel", {}, b"", 405, "UNIMPLEMENTED"),
        ("MADEUP", "/", {}, b"", 405, "UNIMPLEMENTED"),
        ("POST", "/pseudolabel", {"Content-Type": "text/plain"}, b"x", 422, "INVALID_ARGUMENT"),
        ("POST", "/pseudolabel", {}, b"x", 422, "INVALID_ARGUMENT"),
        (
            *("POST", "/pseudolabel", {"Content-Type": "multipart/form-data"}),
            *(b"x", 400, "INVALID_ARGUMENT"),
        ),
        (
            *("POST", "/templates", {"Content-Type": "multipart/form-data; boundary=b"}),
            *(b"x", 400, "INVALID_ARGUMENT"),
        ),
        ("POST", "/templates", {}, b"", 422, "INVALID_ARGUMENT"),
        ("POST", "/pseudolabel?view=" + "x" * 3000, {}, b"", 422, "INVALID_ARGUMENT"),
        ("DELETE", "/templates/" + "x" * 5000, {}, b"", 404, "NOT_FOUND"),
        ("GET", "/templates/%00%1b/overlay.png", {}, b"", 404, "NOT_FOUND"),
        ("GET", "/templates?bank=../x", {}, b"", 422, "INVALID_ARGUMENT"),
    ],
)
def test_every_error_has_one_form(
    server: RunningServer,
    method: str,
    path: str,
    headers: dict[str, str],
    content: bytes,
    status: int,
    code: str,
) -> None:
    answer = ask(server, method, path, headers=headers, content=content)
    assert answer.status_code == status
    assert error_of(answer)["code"] == code


def test_head_is_get_without_a_body(server: RunningServer) -> None:
    for path in ("/", "/docs", "/health/live", "/health/ready", "/templates", "/info"):
        answer, whole = (ask(server, method, path) for method in ("HEAD", "GET"))
        assert answer.status_code == 200
        assert answer.content == b""
        assert answer.headers["content-type"] == whole.headers["content-type"]


def test_methods_that_are_made_up_make_no_counters(server: RunningServer) -> None:
    for index in range(5):
        ask(server, f"MADEUP{index}", f"/made/up/{index}")
    metrics = ask(server, "GET", "/metrics").text
    assert "MADEUP" not in metrics
    assert "/made/up" not in metrics
    assert 'method="other other"' in metrics


def test_the_reference_needs_no_other_site(server: RunningServer) -> None:
    page = ask(server, "GET", "/docs").raise_for_status().text
    assert not re.findall(r"(?:https?:)?//[a-z]", page)
    listed = ask(server, "GET", "/openapi.json").json()["paths"]
    assert {"/pseudolabel", "/pseudolabel/volume", "/templates", "/info"} <= set(listed)


@pytest.mark.parametrize(
    ("seconds", "status"),
    [
        ("0", 422),
        ("-1", 422),
        ("nan", 422),
        ("x", 422),
        ("inf", 200),
        ("1e308", 200),
        ("1e-6", 504),
    ],
)
def test_a_deadline_is_a_positive_number(server: RunningServer, seconds: str, status: int) -> None:
    headers = {"X-Request-Timeout": seconds}
    answer = ask(server, "POST", "/pseudolabel", files=FILES, headers=headers)
    assert answer.status_code == status


def test_floats_that_are_labels_are_labels(server: RunningServer) -> None:
    whole = nifti(LABELS.astype(np.float32)[..., None])
    answer = ask(server, "POST", "/pseudolabel", files={**FILES, "student_mask": whole})
    assert answer.status_code == 200
    for value in (np.inf, np.nan, 1e30, 0.5, -1):
        mask = nifti(np.full((*IMAGE.shape, 1), value, np.float32))
        answer = ask(server, "POST", "/pseudolabel", files={**FILES, "student_mask": mask})
        assert answer.status_code == 422
        assert error_of(answer)["field"] == "student_mask.label_map"


# --- Media types

OFFERED = ("application/json", "image/png", "application/x-nifti")


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", "application/json"),
        ("*/*", "application/json"),
        ("image/png", "image/png"),
        ("Image/PNG", "image/png"),
        ("image/*", "image/png"),
        ("image/png;q=0", "application/json"),
        ("image/png; q=0, */*", "application/json"),
        ("application/json;q=0, */*", "image/png"),
        ("application/json;q=0.1, image/png", "image/png"),
        ("image/png;q=0.5, application/x-nifti;q=0.6", "application/x-nifti"),
        ("application/x-nifti, application/json", "application/x-nifti"),
        ("text/html, */*;q=0.8", "application/json"),
        ("text/html", "application/json"),
        ("image/png;q=²", "application/json"),
        ("image/png;q=nan", "application/json"),
        ("image/png;q=1e5", "application/json"),
        ("image/png-like", "application/json"),
        (";;;,,,q=", "application/json"),
    ],
)
def test_the_media_type_is_negotiated(accept: str, chosen: str) -> None:
    assert negotiated(accept, OFFERED) == chosen


def test_so_it_is_over_the_wire(server: RunningServer) -> None:
    for accept, chosen in ((b"Image/PNG", "image/png"), (b"image/png;q=\xb2", "application/json")):
        answer = ask(server, "POST", "/pseudolabel", files=FILES, headers={b"Accept": accept})
        assert answer.headers["content-type"] == chosen


# --- Pages of other sites


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": OWN}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://behind.a.proxy"}, 200),
    ],
)
def test_pages_of_other_sites_change_nothing(
    server: RunningServer, headers: dict[str, str], status: int
) -> None:
    given = {k: server.http if v == OWN else v for k, v in headers.items()}
    assert ask(server, "POST", "/pseudolabel", files=FILES, headers=given).status_code == status
    before = ask(server, "GET", "/templates", headers=given).raise_for_status().json()
    files = {"image": png(picture(7)[0]), "labels": png(picture(7)[1])}
    data = {"class_names": "disc,bar", "name": "from a page"}
    answer = ask(server, "POST", "/templates", files=files, data=data, headers=given)
    if status == 403:
        assert error_of(answer)["code"] == "PERMISSION_DENIED"
        template = before["templates"][0]["template_id"]
        assert ask(server, "DELETE", f"/templates/{template}", headers=given).status_code == 403
        assert ask(server, "GET", "/templates").json() == before
    else:
        assert answer.status_code == 201
        added = answer.json()["template_id"]
        assert ask(server, "DELETE", f"/templates/{added}", headers=given).status_code == 200
