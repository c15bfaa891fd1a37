"""Labels over the protocol of MONAI Label: as Slicer, OHIF and the published client ask."""

from __future__ import annotations

import email.parser
import email.policy
import http.client
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pydicom
import pytest
import SimpleITK
from highdicom.seg import segread

from support import RunningServer
from support_monai import (
    AFFINE,
    LABELS,
    SLICES,
    VOXELS,
    ask,
    error_of,
    packed,
    params,
    put_label,
    serving,
)
from vessa_client import NotFoundError, OverloadedError
from vessa_server.api.monailabel.sessions import Sessions
from vessa_server.api.monailabel.uploads import Upload


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with serving(tmp_path_factory.mktemp("monai")) as started:
        yield started


def folder_of(server: RunningServer) -> Path:
    assert server.settings.studies is not None
    return server.settings.studies


def infer(
    server: RunningServer, query: dict[str, str], values: dict[str, Any] | None = None, **more: Any
) -> httpx.Response:
    model = more.pop("model", "vessa")
    # Forms of the clients are multipart, with files or without.
    files = {"params": (None, params(**(values or {}))["params"]), **more.pop("files", {})}
    return ask(server, "POST", f"/infer/{model}", params=query, files=files, **more)


def parts_of(answer: httpx.Response) -> tuple[dict[str, Any], str, bytes]:
    """Parameters, file name and file of a multipart answer."""
    answer.raise_for_status()
    head = f"Content-Type: {answer.headers['content-type']}\r\n\r\n".encode()
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + answer.content)
    found, image = message.iter_parts()
    assert [p.get_param("name", header="content-disposition") for p in (found, image)] == [
        "params",
        "image",
    ]
    assert found.get_filename() is None
    return (
        json.loads(found.get_content()),
        str(image.get_filename()),
        bytes(image.get_payload(decode=True)),
    )


def opened(folder: Path, name: str, content: bytes) -> SimpleITK.Image:
    path = folder / name
    path.write_bytes(content)
    return SimpleITK.ReadImage(str(path))


def test_info_is_what_slicer_and_ohif_read(server: RunningServer) -> None:
    info = ask(server, "GET", "/info/").raise_for_status().json()
    assert not info.get("config")
    assert info["labels"] == ["disc", "bar"]
    model = info["models"]["vessa"]
    assert (model["type"], model["dimension"]) == ("segmentation", 3)
    assert model["labels"] == {"disc": 1, "bar": 2}
    assert set(info["strategies"]) == {"random", "first"}
    assert set(info["trainers"]) == {"vessa"}
    assert info["datastore"]["total"] >= 3
    assert ask(server, "GET", "/auth/").json() == {"enabled": False}
    assert ask(server, "GET", "/info").status_code == 404, "slashes are exact"
    assert ask(server, "GET", "/logs/?lines=3").headers["content-type"].startswith("text/plain")


def test_clicks_are_voxels_of_the_file_and_are_obeyed(
    server: RunningServer, tmp_path: Path
) -> None:
    sent = {"result_extension": ".nii.gz", "label": "bar"}
    clicks = {"foreground": [[3, 4, 1]], "background": [[30, 20, 2]]}
    for image in ("one", "two"):
        before, after = (
            opened(tmp_path, *parts_of(infer(server, {"image": image}, {**sent, **more}))[1:])
            for more in ({}, clicks)
        )
        assert after.GetPixel(3, 4, 1) == 2
        assert after.GetPixel(30, 20, 2) == 0
        old, new = (SimpleITK.GetArrayFromImage(labels) for labels in (before, after))
        assert np.array_equal(old[0], new[0]), "another slice"


@pytest.mark.parametrize("image", ["one", "two", "series"])
@pytest.mark.parametrize("suffix", [".nrrd", ".nii.gz", ".nii"])
def test_labels_lie_where_the_scan_does(
    server: RunningServer, tmp_path: Path, image: str, suffix: str
) -> None:
    sent = {"result_extension": suffix, "result_dtype": "uint8", "client_id": "user-xyz"}
    found, name, content = parts_of(infer(server, {"image": image}, sent))
    assert name == image + suffix
    assert found["label_names"] == {"disc": 1, "bar": 2}
    labels = opened(tmp_path, name, content)
    source = folder_of(server)
    if image == "series":
        reader = SimpleITK.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(source / "series")))
        scan = reader.Execute()
    else:
        scan = SimpleITK.ReadImage(str(next(source.glob(f"{image}.*"))))
    assert labels.GetSize() == scan.GetSize()
    assert labels.GetPixelID() == SimpleITK.sitkUInt8
    for corner in ((0, 0, 0), tuple(n - 1 for n in scan.GetSize())):
        one, other = (v.TransformIndexToPhysicalPoint(corner) for v in (labels, scan))
        assert np.allclose(one, other, atol=1e-3)
    values = SimpleITK.GetArrayFromImage(labels)
    counts = {c["class_name"]: c["voxels"] for c in found["classes"]}
    assert counts == {n: int((values == v).sum()) for n, v in found["label_names"].items()}
    assert values.any()


def test_a_file_that_is_mirrored_in_memory_only_gets_the_same_labels(
    server: RunningServer, tmp_path: Path
) -> None:
    mirrored = VOXELS[::-1].copy()
    affine = AFFINE @ np.array(
        [[-1, 0, 0, VOXELS.shape[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]
    )
    answers = [
        parts_of(infer(server, {}, {}, files={"file": (name, content)}))
        for name, content in (("a.nii.gz", packed(VOXELS)), ("b.nii.gz", packed(mirrored, affine)))
    ]
    one, other = (opened(tmp_path, name, content) for _, name, content in answers)
    moved = SimpleITK.Resample(other, one, SimpleITK.Transform(), SimpleITK.sitkNearestNeighbor)
    assert np.array_equal(*(SimpleITK.GetArrayFromImage(v) for v in (one, moved)))


def test_ohif_gets_voxels_that_are_not_packed_and_the_values_of_info(
    server: RunningServer, tmp_path: Path
) -> None:
    uid = pydicom.dcmread(next((folder_of(server) / "series").iterdir())).SeriesInstanceUID
    sent = {
        "result_extension": ".nrrd",
        "result_dtype": "uint8",
        "result_compress": False,
        "restore_label_idx": False,
    }
    origin = {"Origin": "http://localhost:3000"}
    query = {"image": uid, "output": "image"}
    answer = infer(server, query, sent, headers=origin).raise_for_status()
    assert answer.headers["access-control-allow-origin"] == "*"
    header, _, voxels = answer.content.partition(b"\n\n")
    assert b"encoding: raw" in header
    assert len(voxels) == VOXELS.size
    whole = SimpleITK.GetArrayFromImage(opened(tmp_path, "whole.nrrd", answer.content))
    assert np.array_equal(np.frombuffer(voxels, np.uint8), whole.ravel())
    part = infer(server, query, {**sent, "label_prompt": [2]}).raise_for_status()
    values = SimpleITK.GetArrayFromImage(opened(tmp_path, "part.nrrd", part.content))
    assert set(np.unique(values)) <= {0, 2}
    assert values.any()
    for wrong in ([3], "bar", [[1]], 2):
        assert "label_prompt" in error_of(infer(server, query, {**sent, "label_prompt": wrong}))


def test_parameters_alone_are_json(server: RunningServer) -> None:
    found = infer(server, {"image": "one", "output": "json"}).raise_for_status().json()
    assert found["label_names"] == {"disc": 1, "bar": 2}
    assert len(found["slices"]) == SLICES


def test_a_dicom_segmentation_names_its_series_and_agrees_with_the_labels(
    server: RunningServer, tmp_path: Path
) -> None:
    answer = infer(server, {"image": "series", "output": "dicom_seg"}).raise_for_status()
    assert answer.headers["content-type"] == "application/dicom"
    path = tmp_path / "seg.dcm"
    path.write_bytes(answer.content)
    segmentation = segread(path)
    slices = {
        d.SOPInstanceUID: d
        for d in (pydicom.dcmread(f) for f in (folder_of(server) / "series").iterdir())
    }
    uids = sorted(slices, key=lambda uid: float(slices[uid].ImagePositionPatient[2]))
    assert {s.SegmentLabel for s in segmentation.SegmentSequence} == {"disc", "bar"}
    pixels = segmentation.get_pixels_by_source_instance(
        uids, combine_segments=True, ignore_spatial_locations=True
    )
    _, name, content = parts_of(infer(server, {"image": "series"}))
    labels = SimpleITK.GetArrayFromImage(opened(tmp_path, name, content))
    assert np.array_equal(pixels, labels)
    wrong = infer(server, {"image": "one", "output": "dicom_seg"})
    assert "DICOM series" in error_of(wrong)


# --- Sessions


def test_a_session_is_labelled_as_the_same_scan_in_the_datastore(server: RunningServer) -> None:
    content = (folder_of(server) / "one.nii.gz").read_bytes()
    made = ask(server, "PUT", "/session/?expiry=60", files={"files": ("one.nii.gz", content)})
    session = made.raise_for_status().json()["session_id"]
    info = made.json()["session_info"]
    assert (info["name"], info["expiry"]) == ("one.nii.gz", 60)
    assert {"path", "image", "meta", "create_ts", "last_access_ts"} < set(info)
    assert ask(server, "GET", f"/session/{session}").json()["name"] == "one.nii.gz"
    assert ask(server, "GET", f"/session/{session}?image=true").content == content
    # The client names an image, too, which need not be there.
    one = parts_of(infer(server, {"image": "x", "session_id": session}))
    assert one == parts_of(infer(server, {"image": "one"}))
    assert ask(server, "DELETE", f"/session/{session}").status_code == 200
    assert not Path(info["image"]).exists()
    for method, path in (("GET", f"/session/{session}"), ("DELETE", f"/session/{session}")):
        assert ask(server, method, path).status_code == 404
    assert infer(server, {"session_id": session}).status_code == 404


@pytest.mark.parametrize("zipped", [False, True])
def test_a_session_of_several_files_is_a_series(server: RunningServer, zipped: bool) -> None:
    slices = {file.name: file.read_bytes() for file in (folder_of(server) / "series").iterdir()}
    sent = [("files", (name, content)) for name, content in slices.items()]
    if zipped:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for name, content in slices.items():
                archive.writestr(name, content)
        sent = [("files", ("series.zip", stream.getvalue()))]
    made = ask(server, "PUT", "/session/?uncompress=true", files=sent).raise_for_status().json()
    found, _, content = parts_of(infer(server, {"session_id": made["session_id"]}))
    assert len(found["slices"]) == SLICES
    assert content == parts_of(infer(server, {"image": "series"}))[2]


def test_sessions_expire_and_are_bounded(tmp_path: Path) -> None:
    now = [1000.0]
    size, held = 1 << 20, 0
    sessions = Sessions(size, lambda: now[0])
    content = packed(VOXELS)

    def create() -> str:
        return sessions.create([Upload("a.nii.gz", io.BytesIO(content))], 100)[0]

    first = create()
    place = sessions.get(first).image
    now[0] += 90
    sessions.get(first, touch=True)
    now[0] += 90
    assert sessions.get(first).last_access_ts == 1090
    now[0] += 90
    with pytest.raises(NotFoundError, match="no session"):
        sessions.get(first)
    assert not place.exists()
    while len(content) + held < size - (1 << 17):
        create()
        held += len(content) + (1 << 16)
    create()
    with pytest.raises(OverloadedError, match="VESSA_MAX_QUEUE_BYTES"):
        create()
    now[0] += 101
    create()
    sessions.close()
    assert not place.parent.parent.exists()


# --- What to label next


def test_scans_without_final_labels_come_next(tmp_path: Path) -> None:
    with serving(tmp_path) as own:
        body = {"client_id": "user-xyz"}
        sample = ask(own, "POST", "/activelearning/first", json=body).json()
        assert sample["id"] == "one"
        assert Path(sample["path"]).samefile(folder_of(own) / "one.nii.gz")
        assert {"weight", "name", "ts", "strategy"} < set(sample)
        put_label(own, "one", packed(LABELS)).raise_for_status()
        series = ask(own, "POST", "/activelearning/first", json=body).json()
        assert (series["id"], series["PatientID"]) == ("series", "1")
        assert series["SeriesInstanceUID"]
        ids = {ask(own, "POST", "/activelearning/random").json()["id"] for _ in range(40)}
        assert ids == {"series", "two"}
        for image in ("two", "series"):
            ask(own, "DELETE", f"/datastore/image?id={image}").raise_for_status()
        assert ask(own, "POST", "/activelearning/random", json=body).json() == {}
        assert "random, first" in error_of(ask(own, "POST", "/activelearning/suggest"))


# --- Training


def test_one_adaptation_runs_at_a_time_and_can_be_stopped(server: RunningServer) -> None:
    assert ask(server, "GET", "/train/?check_if_running=true").status_code == 404
    assert "steps" in error_of(ask(server, "POST", "/train/vessa", json={"steps": 0}))
    started = ask(server, "POST", "/train/vessa", json={"steps": 90_000}).raise_for_status().json()
    assert started["status"] == "RUNNING"
    assert {"id", "request", "start_ts", "end_ts", "details"} < set(started)
    assert ask(server, "GET", "/train/?check_if_running=true").status_code == 200
    assert ask(server, "POST", "/train/vessa", json={}).status_code == 429
    assert ask(server, "DELETE", "/train/").json()["status"] == "STOPPED"
    assert ask(server, "GET", "/train/?check_if_running=true").status_code == 404
    last = ask(server, "GET", "/train/").json()
    assert (last["id"], last["status"]) == (started["id"], "STOPPED")


# --- Who may ask


def test_the_token_is_the_password(tmp_path: Path) -> None:
    with serving(tmp_path, token="s3cret") as guarded:
        assert ask(guarded, "GET", "/auth/").json() == {"enabled": True}
        wrong = {"username": "me", "password": "guess", "grant_type": "password"}
        assert ask(guarded, "POST", "/auth/token", data=wrong).status_code == 401
        given = ask(guarded, "POST", "/auth/token", data={**wrong, "password": "s3cret"}).json()
        assert given["token_type"] == "bearer"
        bearer = {"Authorization": f"bearer {given['access_token']}"}
        elsewhere = {"Origin": "https://ohif.example.org"}
        for path in ("/info/", "/datastore/", "/auth/token/valid", "/logs/"):
            assert ask(guarded, "GET", path).status_code == 401
            answer = ask(guarded, "GET", path, headers={**bearer, **elsewhere})
            assert answer.status_code == 200
        for method, path in (("PUT", "/session/"), ("POST", "/infer/vessa"), ("DELETE", "/train/")):
            assert ask(guarded, method, path).status_code == 401


def test_pages_of_other_hosts_need_to_be_named(tmp_path: Path) -> None:
    ohif = "https://ohif.example.org"
    with serving(tmp_path, studies_origins=ohif) as named:
        preflight = ask(
            named,
            "OPTIONS",
            "/datastore/label?image=one",
            headers={"Origin": ohif, "Access-Control-Request-Method": "PUT"},
        )
        assert preflight.status_code == 200
        assert "PUT" in preflight.headers["access-control-allow-methods"]
        for origin, status in (
            (ohif, 200),
            ("http://localhost:3000", 200),
            (named.http, 200),
            ("https://evil.example", 403),
            ("null", 403),
            ("http://[", 403),
        ):
            for method, path in (("GET", "/info/"), ("POST", "/activelearning/first")):
                answer = ask(named, method, path, headers={"Origin": origin})
                assert answer.status_code == status, origin
                assert answer.headers["access-control-allow-origin"] == "*", "so that it is read"
        # Elsewhere nothing has changed.
        for path in ("/info", "/health/live"):
            assert "access-control-allow-origin" not in httpx.get(named.http + path).headers
        for origin in (ohif, "http://localhost:3000"):
            answer = httpx.post(f"{named.http}/pseudolabel", headers={"Origin": origin})
            assert answer.status_code == 403


def test_http_client_reads_answers_whole(server: RunningServer) -> None:
    host = server.http.removeprefix("http://")
    connection = http.client.HTTPConnection(host)
    connection.request("POST", "/monai/infer/vessa?image=one", b"", {})
    answer = connection.getresponse()
    assert answer.status == 200
    assert int(answer.headers["content-length"]) == len(answer.read())
    connection.close()
