"""What the published client of MONAI Label 0.8.5 sends, as it was recorded, and what it reads.

The client itself takes Python 3.12 or older and none of this project's environment; `{image}`,
`{label}` and `{session}` stand for what differs from run to run.
"""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from typing import Any

from support import ROOT
from support_monai import LABELS, packed, serving

RECORDED: list[dict[str, Any]] = json.loads(
    (ROOT / "tests" / "golden" / "monai_client.json").read_text()
)
# In the order of the recording: what tells each call from others, and what is read of its answer.
READ = (
    ("GET /monai/auth/", {"enabled"}),
    ("GET /monai/info/", {"models", "labels", "trainers", "strategies", "datastore"}),
    ("GET /monai/datastore/?output=all", {"objects"}),
    ("POST /monai/activelearning/random", {"id", "path", "name"}),
    ("PUT /monai/session/", {"session_id", "session_info"}),
    ("GET /monai/session/{session}", {"name", "image", "expiry"}),
    ("POST /monai/infer/vessa?image=one&session_id={session}", None),
    ("DELETE /monai/session/{session}", {"name"}),
    ("POST /monai/infer/vessa?image=one", None),
    ("POST /monai/infer/vessa?image=", None),
    ("PUT /monai/datastore/?image=up+loaded", {"image"}),
    ("PUT /monai/datastore/label?image=up+loaded&tag=final", {"image", "label"}),
    ("GET /monai/datastore/label?label=up+loaded&tag=final", None),
    ("GET /monai/train/?check_if_running=true", None),
    ("POST /monai/train/vessa", {"id", "status", "details"}),
    ("GET /monai/train/?check_if_running=true", {"status"}),
    ("GET /monai/train/", {"id", "status"}),
    ("DELETE /monai/train/", {"status"}),
)


def test_every_request_of_the_client_is_answered_as_it_reads_it(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        image = (tmp_path / "studies" / "one.nii.gz").read_bytes()
        label = packed(LABELS)
        host = server.http.removeprefix("http://")
        session = ""
        for recorded, (call, keys) in zip(RECORDED, READ, strict=True):
            assert call == f"{recorded['method']} {recorded['path']}"
            body = recorded["body"].encode().replace(b"{image}", image).replace(b"{label}", label)
            path = recorded["path"].replace("{session}", session)
            connection = http.client.HTTPConnection(host, timeout=60)
            connection.request(recorded["method"], path, body, recorded["headers"])
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            idle = call.endswith("check_if_running=true") and keys is None
            assert answer.status == (404 if idle else 200), (call, content)
            if keys is not None:
                found = json.loads(content)
                assert keys <= set(found), call
                session = found.get("session_id", session)
            elif "/infer/" in call:
                assert answer.headers["content-type"].startswith("multipart/form-data")
                assert content.count(b"filename=") == 1
            elif "/label?" in call:
                assert content == label
                assert "up loaded.nii.gz" in answer.headers["content-disposition"].replace(
                    "%20", " "
                )
