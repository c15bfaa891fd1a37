"""Over REST: corrected labels of a template, and where to look."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from support import CLASSES, RunningServer, engine_of, picture, running
from support_files import png
from vessa_client import AnyArray
from vessa_server.engine import VessaEngine

IMAGE, LABELS = picture(7)
NAMES = ",".join(c.name for c in CLASSES)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[RunningServer, VessaEngine]]:
    engine = engine_of(tmp_path, templates=0)
    engine.add_template(IMAGE, LABELS, CLASSES, name="scan slice 4")
    with running(engine) as started:
        yield started, engine


def add(server: RunningServer, labels: AnyArray, **data: str) -> httpx.Response:
    files = {"image": png(IMAGE), "labels": png(labels)}
    form = {"class_names": NAMES, "name": "scan slice 4", **data}
    return httpx.post(f"{server.http}/templates", files=files, data=form)


def test_other_labels_of_the_same_pixels_are_refused_replaced_or_kept(
    served: tuple[RunningServer, VessaEngine],
) -> None:
    server, engine = served
    changed = LABELS.copy()
    changed[:3, :5] = 1
    before = engine.bank.snapshot()
    refused = add(server, changed, outdated="refuse")
    assert refused.status_code == 422
    assert refused.json()["error"]["field"] == "outdated"
    assert "'scan slice 4' otherwise (disc by 15 pixels)" in refused.json()["error"]["message"]
    assert engine.bank.snapshot() == before
    assert add(server, LABELS, outdated="refuse").json()["created"] is False
    replaced = add(server, changed, outdated="replace").raise_for_status().json()
    assert [t.template_id for t in engine.bank.snapshot().templates] == [replaced["template_id"]]
    add(server, LABELS).raise_for_status()
    assert len(engine.bank.snapshot().templates) == 2


def test_what_is_wrong_leaves_the_bank_as_it_is(
    served: tuple[RunningServer, VessaEngine],
) -> None:
    server, engine = served
    before = engine.bank.snapshot()
    for labels, more, field in (
        (LABELS, {"outdated": "perhaps"}, "outdated"),
        (LABELS[:-1], {"outdated": "replace"}, "label_map"),
        (LABELS * 3, {"outdated": "replace"}, "label_map"),
    ):
        answer = add(server, labels, **more)
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, field)
        assert engine.bank.snapshot() == before
    added = add(server, LABELS, outdated="refuse", bank="new")
    assert added.json()["created"] is True


def test_a_region_is_where_the_server_looks(served: tuple[RunningServer, VessaEngine]) -> None:
    server, _ = served
    region = {"top": 5, "left": 4, "height": 30, "width": 40, "quarter_turns": 1}
    image = {"image": base64.b64encode(png(IMAGE)).decode()}
    answer = httpx.post(f"{server.http}/pseudolabel", json={**image, "region": region})
    assert answer.raise_for_status().json()["region"] == region
    again = {**image, "image_ref": None, "region": {**region, "height": 300}}
    for wrong, field in (
        (again, "region"),
        ({**image, "region": {"top": 1}}, "region.left"),
        ({**image, "region": {**region, "depth": 1}}, "region.depth"),
    ):
        refused = httpx.post(f"{server.http}/pseudolabel", json=wrong)
        assert (refused.status_code, refused.json()["error"]["field"]) == (422, field)
    listed = httpx.get(f"{server.http}/openapi.json").text
    assert "$defs" not in listed
