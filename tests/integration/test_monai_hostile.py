"""MONAI Label's protocol against names, files and bodies that mean no good."""

from __future__ import annotations

import gzip
import http.client
import io
import json
import os
import resource
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import nibabel as nib
import numpy as np
import pydicom
import pytest

from support import RunningServer
from support_files import nifti
from support_monai import (
    AFFINE,
    INFO,
    LABELS,
    VOXELS,
    ask,
    error_of,
    nrrd_file,
    packed,
    put_label,
    serving,
    studies,
)

MIB = 1 << 20
RAW_NRRD = b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 8 8 8\nencoding: raw\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a secret beside the scans, and links to it among them."""
    place = tmp_path_factory.mktemp("monai")
    made = studies(place)
    secret = place / "secret.nii.gz"
    secret.write_bytes(packed(VOXELS))
    (made / "link.nii.gz").symlink_to(secret)
    (made / "linked").symlink_to(made / "series")
    (made / ".hidden.nii.gz").write_bytes(secret.read_bytes())
    (made / "damaged.nii.gz").write_bytes(packed(VOXELS)[:900])
    (made / "mixed").mkdir()
    slices = sorted((made / "series").iterdir())
    (made / "mixed" / "IM0000").write_bytes(slices[0].read_bytes())
    (made / "mixed" / "IM0001").symlink_to(slices[1])
    return made


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[RunningServer]:
    with serving(folder.parent, studies=folder, max_queue_bytes=4 * MIB) as started:
        yield started


@pytest.fixture(autouse=True)
def _nothing_changes(server: RunningServer, folder: Path) -> Iterator[None]:
    """What is refused leaves scans, labels and templates as they were."""

    def state() -> tuple[list[tuple[str, bytes]], str]:
        inside = sorted(p for p in folder.parent.rglob("*") if p.is_file() and "bank" not in str(p))
        return [(str(p), p.read_bytes()) for p in inside], server.engine.bank.snapshot().version

    before = state()
    yield
    assert state() == before


def put_image(
    server: RunningServer, name: str, content: bytes, image: str = "new"
) -> httpx.Response:
    return ask(
        server, "PUT", "/datastore/image", params={"image": image}, files={"file": (name, content)}
    )


# --- Names


NAMES = ["../secret", "..", ".", "/etc/passwd", "series/../../secret", "..\\secret", "a/b", "a\0b"]


@pytest.mark.parametrize("name", [*NAMES, ".hidden", "link", "linked", "x" * 300, "*", "\u202e"])
def test_names_lead_nowhere_else(server: RunningServer, name: str) -> None:
    for method, path, query in (
        ("GET", "/datastore/image", {"image": name}),
        ("HEAD", "/datastore/image", {"image": name}),
        ("GET", "/datastore/image/info", {"image": name}),
        ("DELETE", "/datastore/image", {"id": name}),
        ("GET", "/datastore/label", {"label": name, "tag": "final"}),
        ("GET", "/datastore/label", {"label": "one", "tag": name}),
        ("DELETE", "/datastore/label", {"id": "one", "tag": name}),
        ("POST", "/infer/vessa", {"image": name}),
        ("POST", "/infer/vessa", {"session_id": name}),
    ):
        assert ask(server, method, path, params=query).status_code == 404, (method, path)
    assert put_label(server, name, packed(LABELS)).status_code == 404


@pytest.mark.parametrize("name", [*NAMES, ".hidden", "x" * 300, "labels", "one_gt"])
def test_nothing_is_put_under_names_that_lead_elsewhere(server: RunningServer, name: str) -> None:
    assert put_image(server, "a.nii.gz", packed(VOXELS), name).status_code == 422
    if name not in ("labels", "one_gt"):
        assert put_label(server, "one", packed(LABELS), tag=name).status_code == 422


def test_encoded_slashes_are_no_way_out(server: RunningServer) -> None:
    host = server.http.removeprefix("http://")
    for path in (
        "/monai/../../etc/passwd",
        "/monai/session/..%2f..%2fsecret",
        "/monai/infer/..%2F..%2Fvessa?image=one",
        "/monai/datastore/image?image=..%2f..%2fsecret",
        "/monai/datastore/image?image=%2e%2e%2fsecret",
        "/monai/datastore/%2e%2e/image?image=one",
        "//monai/info/",
    ):
        connection = http.client.HTTPConnection(host)
        connection.request("GET", path)
        assert connection.getresponse().status in (404, 405), path
        connection.close()


def test_a_series_with_a_link_in_it_is_refused(server: RunningServer) -> None:
    answer = ask(server, "POST", "/infer/vessa?image=mixed")
    assert "is a link" in error_of(answer)


def test_unknown_models_strategies_and_tags_are_named(server: RunningServer) -> None:
    for method, path, field in (
        ("POST", "/infer/unet?image=one", "expected vessa"),
        ("POST", "/infer/vessa-none?image=one", "expected vessa"),
        ("POST", "/train/unet", "expected vessa"),
        ("POST", "/activelearning/none", "random, first"),
        ("GET", "/session/none", "session_id"),
        ("GET", "/datastore/label?label=one&tag=none", "label"),
    ):
        answer = ask(server, method, path)
        assert answer.status_code == 404
        assert field in error_of(answer)
    answer = put_label(server, "one", packed(LABELS), model="unet")
    assert answer.status_code == 404
    assert ask(server, "POST", "/infer/vessa?image=one&output=pickle").status_code == 422
    assert "expected an id" in error_of(ask(server, "POST", "/infer/vessa"))


# --- Bodies


@pytest.mark.parametrize("text", ["{", "[1]", "1", '"a"', "[" * 100_000, "\ud800", '{"a": NaN'])
def test_parameters_that_are_no_object_are_refused(server: RunningServer, text: str) -> None:
    sent = text.encode("utf-8", "surrogatepass")
    answer = ask(server, "POST", "/infer/vessa?image=one", files={"params": (None, sent)})
    assert answer.status_code == 422
    assert "params" in error_of(answer)
    assert ask(server, "POST", "/activelearning/first", content=sent).status_code == 422


def test_scribbles_are_refused_rather_than_ignored(server: RunningServer) -> None:
    for name in ("points", "roi"):
        sent = {"params": (None, json.dumps({name: [[1, 2, 3]]}))}
        assert name in error_of(ask(server, "POST", "/infer/vessa?image=one", files=sent))
    sent_label: dict[str, Any] = {"label": ("l.nii.gz", packed(LABELS))}
    assert "label" in error_of(ask(server, "POST", "/infer/vessa?image=one", files=sent_label))


@pytest.mark.parametrize(
    ("clicks", "said"),
    [
        ({"foreground": [[1, 2, 3]]}, "params.label: 'None', expected one of disc, bar"),
        ({"foreground": [[1, 2, 3]], "label": ""}, "params.label: ''"),
        ({"background": [[1, 2]]}, "params.background: expected a list of [i, j, k]"),
        ({"background": [[1, 2, "x"]]}, "params.background: expected a list"),
        ({"background": 5}, "params.background: expected a list"),
        ({"background": [[1, 2, 1e300]]}, "params.background: expected a list"),
        ({"background": [[1, 2, 3000]]}, "params.background: voxel [1, 2, 3000], expected it in"),
        ({"background": [[1, 2, 3]] * 257}, "params.background: 257, expected 256 at most"),
        ({"foreground": [[1, 2, 3]], "label": []}, "params.label: '[]'"),
    ],
)
def test_wrong_clicks_are_refused_in_words(
    server: RunningServer, clicks: dict[str, Any], said: str
) -> None:
    answer = ask(
        server, "POST", "/infer/vessa?image=one", files={"params": (None, json.dumps(clicks))}
    )
    assert answer.status_code == 422
    assert said in error_of(answer)


def test_bodies_over_the_limit_are_refused_before_they_are_read(server: RunningServer) -> None:
    for method, path in (
        ("PUT", "/datastore/image?image=x"),
        ("PUT", "/datastore/label?image=one"),
        ("PUT", "/session/"),
        ("POST", "/infer/vessa"),
    ):
        answer = ask(server, method, path, content=bytes(6 * MIB))
        assert answer.status_code == 413
        assert "VESSA_MAX_QUEUE_BYTES" in error_of(answer)
    long = json.dumps({"client_id": "x" * (2 * MIB)}).encode()
    assert ask(server, "POST", "/activelearning/first", content=long).status_code == 413


# --- Files


def _zip(entries: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return stream.getvalue()


def _deflated(folder: Path) -> bytes:
    """A DICOM file that a few bytes unpack to a lot."""
    data = pydicom.dcmread(next((folder / "series").iterdir()))
    data.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    stream = io.BytesIO()
    data.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def _huge_dicom(folder: Path) -> bytes:
    data = pydicom.dcmread(next((folder / "series").iterdir()))
    data.Rows = data.Columns = 60_000
    stream = io.BytesIO()
    data.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def _nrrd(text: str, content: bytes) -> bytes:
    return f"NRRD0004\ntype: uint8\ndimension: 3\n{text}\n\n".encode() + content


BOMB = gzip.compress(bytes(64 * MIB))
BAD_FILES: dict[str, tuple[str, bytes, int]] = {
    "empty": ("a.nii.gz", b"", 422),
    "no suffix": ("scan", b"123", 422),
    "other suffix": ("a.exe", b"123", 422),
    "picture": ("a.png", b"\x89PNG", 422),
    "truncated": ("a.nii.gz", packed(VOXELS)[:-40], 422),
    "voxels missing": ("a.nii", nifti(VOXELS)[:2000], 422),
    "four axes": ("a.nii.gz", gzip.compress(nifti(np.zeros((9, 9, 9, 2), np.uint8))), 422),
    "trailing": ("a.nii.gz", gzip.compress(nifti(VOXELS) + bytes(64 * MIB)), 422),
    "too many voxels": ("a.nii.gz", gzip.compress(nifti(np.zeros((300, 300, 50)))), 413),
    "nrrd elsewhere": ("a.nrrd", _nrrd("sizes: 8 8 8\ndata file: /etc/passwd", b""), 422),
    "nrrd list": ("a.nrrd", _nrrd("sizes: 8 8 8\ndatafile: LIST\n/etc/passwd", b""), 422),
    "nrrd bomb": ("a.nrrd", _nrrd("sizes: 8 8 8\nencoding: gzip", BOMB), 422),
    "nrrd too large": ("a.nrrd", _nrrd("sizes: 9999 9999 9999\nencoding: raw", b""), 413),
    "nrrd short": ("a.nrrd", RAW_NRRD + b"\n" + bytes(100), 422),
    "nrrd no end": ("a.nrrd", RAW_NRRD, 422),
    "nrrd negative": ("a.nrrd", _nrrd("sizes: -8 8 8\nencoding: raw", b""), 422),
    "nrrd cut": ("a.nrrd", _nrrd("sizes: 8 8 8\nencoding: gzip", BOMB[:100]), 422),
    "zip bomb": ("a.zip", _zip({"a.dcm": bytes(64 * MIB)}), 413),
    "zip of names": ("a.zip", _zip({"x/../../evil.sh": b"1", "../../.bashrc": b"2"}), 422),
    "zip empty": ("a.zip", _zip({}), 422),
    "zip damaged": ("a.zip", _zip({"a.dcm": b"123"})[:-9], 422),
    "zip in zip": ("a.zip", _zip({"b.zip": _zip({"c.dcm": b""})}), 422),
    "no dicom": ("a.dcm", b"\0" * 200, 422),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files_are_refused_in_one_line(server: RunningServer, kind: str) -> None:
    name, content, status = BAD_FILES[kind]
    for answer in (
        put_image(server, name, content),
        ask(server, "PUT", "/session/", files={"files": (name, content)}),
        ask(server, "POST", "/infer/vessa", files={"file": (name, content)}),
        put_label(server, "one", content, name),
    ):
        assert answer.status_code == status, answer.text
        assert "/tmp" not in error_of(answer)


def test_dicom_that_unpacks_to_a_lot_is_refused(server: RunningServer, folder: Path) -> None:
    assert "deflated" in error_of(put_image(server, "a.dcm", _deflated(folder)))
    assert put_image(server, "a.dcm", _huge_dicom(folder)).status_code == 413


def test_a_damaged_scan_hinders_no_other(server: RunningServer) -> None:
    answer = ask(server, "POST", "/infer/vessa?image=damaged")
    assert answer.status_code == 422
    assert ask(server, "POST", "/infer/vessa?image=one").status_code == 200


# --- Labels


def test_labels_of_another_place_are_refused(server: RunningServer, tmp_path: Path) -> None:
    moved = AFFINE.copy()
    moved[0, 3] += 3
    turned = AFFINE @ np.diag([-1, 1, 1, 1])
    for content in (
        packed(LABELS[:-1]),
        packed(LABELS[..., :-1]),
        packed(LABELS, moved),
        packed(LABELS, turned),
    ):
        for tag in ("final", "draft"):
            assert "expected the image's" in error_of(put_label(server, "one", content, tag=tag))
    assert put_label(server, "one", nrrd_file(tmp_path, LABELS, moved), "l.nrrd").status_code == 422


def test_labels_of_other_values_are_refused(server: RunningServer) -> None:
    for labels in (LABELS.astype(np.float32) + 0.5, LABELS.astype(np.int16) * 300):
        assert "0..255" in error_of(put_label(server, "one", packed(labels)))
    assert "-1" not in error_of(put_label(server, "one", packed(LABELS.astype(np.int16) - 1)))
    colours = nib.Nifti1Image(
        np.zeros(LABELS.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")]), AFFINE
    )
    assert put_label(server, "one", bytes(colours.to_bytes()), "l.nii").status_code == 422


@pytest.mark.parametrize(
    "given",
    [
        None,
        [],
        "disc",
        {"disc": 1},
        [1, 2],
        [{"name": "disc", "idx": 1}],
        [{"name": " ", "idx": 2}, INFO[0]],
        [{"name": ["x"], "idx": 2}, INFO[0]],
        [{"name": "bar", "idx": "two"}, INFO[0]],
        [{"name": "bar"}, INFO[0]],
    ],
)
def test_values_without_a_name_are_named(server: RunningServer, given: Any) -> None:
    answer = put_label(server, "one", packed(LABELS), label_info=given)
    assert answer.status_code == 422
    assert "label_info: no name for the label's value" in error_of(answer)


@pytest.mark.parametrize("name", ["disc\n", "x" * 500, "a\x1b[31m", "disc"])
def test_names_that_no_class_can_have_are_refused(server: RunningServer, name: str) -> None:
    info = [
        {"name": "disc", "idx": 1},
        {"name": f"{name}{'' if name == 'disc' else '!'}", "idx": 2},
    ]
    answer = put_label(server, "one", packed(LABELS), label_info=info)
    assert answer.status_code == 422
    assert error_of(answer)


def test_voxels_without_a_header_must_fit(server: RunningServer) -> None:
    for raw in (b"", LABELS.tobytes()[:-1], LABELS.tobytes() + b"\0"):
        assert "one for each" in error_of(put_label(server, "one", raw, "label.bin"))


# --- The disk


@pytest.fixture
def little_space() -> Iterator[int]:
    """Files of this process may be no longer than this."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    most = 6000
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield most
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="takes limits of files")
def test_a_full_disk_is_said_and_loses_nothing(server: RunningServer, little_space: int) -> None:
    noise = np.random.default_rng(0).integers(0, 3, LABELS.shape).astype(np.uint8)
    image, label = packed(VOXELS), nifti(noise, AFFINE)
    assert min(len(image), len(label)) > little_space
    for answer in (
        put_image(server, "big.nii.gz", image),
        put_label(server, "one", label, "label.nii"),
        ask(server, "PUT", "/session/", files={"files": ("a.nii.gz", image)}),
        ask(server, "POST", "/infer/vessa", files={"file": ("a.nii.gz", image)}),
    ):
        assert answer.status_code == 507, answer.text
        assert "full" in error_of(answer)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_named(server: RunningServer, folder: Path) -> None:
    folder.chmod(0o500)
    try:
        assert "cannot be written" in error_of(put_image(server, "a.nii.gz", packed(VOXELS)))
    finally:
        folder.chmod(0o700)


def test_a_label_whose_bank_is_full_is_not_kept(server: RunningServer) -> None:
    """The file would fit, its templates do not."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    label = packed(LABELS)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(label) + 1, before[1]))
    try:
        answer = put_label(server, "one", label)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert answer.status_code == 507, answer.text
    assert ask(server, "GET", "/datastore/label?label=one&tag=final").status_code == 404
