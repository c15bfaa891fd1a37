"""Scans and labels over the protocol of MONAI Label."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import nibabel as nib
import numpy as np
import pydicom
import pytest

from support import RunningServer, engine_of, running
from support_monai import (
    INFO,
    LABELS,
    SERIES_LABELS,
    SLICES,
    VOXELS,
    ask,
    error_of,
    nrrd_file,
    packed,
    params,
    put_label,
    serving,
    studies,
)
from vessa_client import files


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with serving(tmp_path_factory.mktemp("monai")) as started:
        yield started


@pytest.fixture
def own(tmp_path: Path) -> Iterator[RunningServer]:
    """A server whose folder and bank are the test's own."""
    with serving(tmp_path) as started:
        yield started


def folder_of(server: RunningServer) -> Path:
    assert server.settings.studies is not None
    return server.settings.studies


def templates(server: RunningServer, bank: str = "") -> set[str]:
    return {t.template_id for t in server.engine.banks.get(bank).snapshot().templates}


def put_image(server: RunningServer, image: str, name: str, content: bytes) -> httpx.Response:
    return ask(
        server,
        "PUT",
        "/datastore/image",
        params={"image": image},
        data=params(client_id="user-xyz"),
        files={"file": (name, content)},
    )


def test_without_a_folder_nothing_is_there_and_the_setting_is_named(tmp_path: Path) -> None:
    with running(engine_of(tmp_path, templates=0)) as plain:
        for method, path in (("GET", "/info/"), ("PUT", "/session/"), ("POST", "/infer/vessa")):
            answer = ask(plain, method, path)
            assert answer.status_code == 404
            assert "VESSA_STUDIES" in error_of(answer)


# --- Images


def test_scans_are_listed_by_the_names_of_their_files(server: RunningServer) -> None:
    listing = ask(server, "GET", "/datastore/?output=all").json()
    assert {"one", "two", "series"} <= set(listing["objects"])
    assert listing["objects"]["one"]["image"]["ext"] == ".nii.gz"
    assert listing["objects"]["series"] == {"image": {"ext": "", "info": {}}, "labels": {}}
    stats = ask(server, "GET", "/datastore/").json()
    assert stats["total"] >= 3
    assert set(stats) == {"total", "completed", "label_tags"}


def test_a_scan_is_sent_as_it_lies_and_head_says_whether_it_is_there(server: RunningServer) -> None:
    answer = ask(server, "GET", "/datastore/image?image=one")
    assert answer.content == (folder_of(server) / "one.nii.gz").read_bytes()
    assert 'filename="one.nii.gz"' in answer.headers["content-disposition"]
    assert ask(server, "HEAD", "/datastore/image?image=one").status_code == 200
    assert ask(server, "HEAD", "/datastore/image?image=none").status_code == 404


def test_a_series_is_found_by_its_uid_and_sent_as_a_zip(server: RunningServer) -> None:
    slices = sorted((folder_of(server) / "series").iterdir())
    uid = pydicom.dcmread(slices[0]).SeriesInstanceUID
    answer = ask(server, "GET", "/datastore/image", params={"image": uid})
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert {n: archive.read(n) for n in archive.namelist()} == {
            file.name: file.read_bytes() for file in slices
        }


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".zip"])
def test_an_image_that_is_put_is_there_under_its_id(own: RunningServer, suffix: str) -> None:
    folder = folder_of(own)
    if suffix == ".zip":
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for file in (folder / "series").iterdir():
                archive.write(file, f"patient/{file.name}")
        content = stream.getvalue()
    else:
        content = (folder / {".nii.gz": "one.nii.gz", ".nrrd": "two.nrrd"}[suffix]).read_bytes()
    answer = put_image(own, "new scan", f"/home/me/some{suffix}", content)
    assert answer.json() == {"image": "new scan"}
    again = put_image(own, "new scan", f"other{suffix}", content)
    assert again.json() == {"image": "new scan"}
    info = ask(own, "GET", "/datastore/image/info?image=new+scan").json()
    assert info == {"client_id": "user-xyz"}
    sent = ask(own, "GET", "/datastore/image?image=new+scan").content
    if suffix != ".zip":
        assert sent == content
    assert "there already" in error_of(put_image(own, "one", "a.nii.gz", packed(VOXELS + 1)))
    assert ask(own, "DELETE", "/datastore/image?id=new+scan").json() == {}
    assert ask(own, "GET", "/datastore/image?image=new+scan").status_code == 404


def test_an_image_without_an_id_is_named_as_its_file(own: RunningServer) -> None:
    answer = ask(
        own, "PUT", "/datastore/", files={"file": ("/tmp/x/p7.scan.nii.gz", packed(VOXELS))}
    )
    assert answer.json() == {"image": "p7.scan"}
    assert (folder_of(own) / "p7.scan.nii.gz").is_file()


def test_two_files_of_one_name_are_told_by_their_suffixes(tmp_path: Path) -> None:
    scans = studies(tmp_path)
    (scans / "one.nrrd").write_bytes((scans / "two.nrrd").read_bytes())
    (scans / "one_gt.nii.gz").write_bytes(packed(LABELS))
    with serving(tmp_path, studies=scans) as started:
        listing = ask(started, "GET", "/datastore/?output=all").json()["objects"]
        assert set(listing) == {"one.nii.gz", "one.nrrd", "two", "series"}


# --- Labels, and the templates that they become


def test_a_final_label_becomes_templates_of_its_slices(own: RunningServer) -> None:
    before = templates(own)
    content = packed(LABELS)
    answer = put_label(own, "one", content)
    assert answer.json() == {"image": "one", "label": "one", "templates": SLICES}
    assert (folder_of(own) / "labels" / "final" / "one.nii.gz").read_bytes() == content
    new = [t for t in own.engine.bank.snapshot().templates if t.template_id not in before]
    assert len(new) == SLICES
    assert {t.class_names for t in new} == {("disc", "bar")}
    for info in new:
        template = own.engine.bank.load(info)
        means = [template.image[template.labels == value].mean() for value in (0, 1, 2)]
        assert means[2] < means[0] < means[1], "dark bar, grey, bright disc"
    stats = ask(own, "GET", "/datastore/").json()
    assert (stats["completed"], stats["label_tags"]) == (1, {"final": 1})
    assert ask(own, "HEAD", "/datastore/label?image=one&tag=final").status_code == 200
    sent = ask(own, "GET", "/datastore/label?label=one&tag=final")
    assert sent.content == content
    assert 'filename="one.nii.gz"' in sent.headers["content-disposition"]
    info = ask(own, "GET", "/datastore/label/info?label=one&tag=final").json()
    assert info["label_info"] == INFO
    pairs = ask(own, "GET", "/datastore/?output=train").json()
    assert pairs == [
        {
            "image": str(folder_of(own) / "one.nii.gz"),
            "label": str(folder_of(own) / "labels" / "final" / "one.nii.gz"),
        }
    ]


def test_a_label_that_is_put_again_replaces_its_templates_and_no_others(
    own: RunningServer, tmp_path: Path
) -> None:
    before = templates(own)
    put_label(own, "one", packed(LABELS)).raise_for_status()
    first = templates(own)
    corrected = LABELS.copy()
    corrected[..., 0] = 0  # this slice is not annotated any more
    corrected[10, 10, 1] = 1  # this one differs
    put_label(own, "one", nrrd_file(tmp_path, corrected), "c:\\my files\\label.nrrd")
    second = templates(own)
    assert before < second
    assert len(second) == len(before) + SLICES - 1
    assert len(first & second) == len(before) + SLICES - 2, "slices that are the same stay"
    assert [p.name for p in (folder_of(own) / "labels" / "final").glob("one.n*")] == ["one.nrrd"]
    put_label(own, "one", packed(np.zeros_like(LABELS))).raise_for_status()
    assert templates(own) == before, "nothing is labelled"


def test_labels_of_several_scans_do_not_take_each_others_templates(own: RunningServer) -> None:
    put_image(own, "copy", "copy.nii.gz", packed(VOXELS)).raise_for_status()
    put_label(own, "one", packed(LABELS)).raise_for_status()
    both = templates(own)
    put_label(own, "copy", packed(LABELS)).raise_for_status()
    ask(own, "DELETE", "/datastore/label?id=copy&tag=final").raise_for_status()
    assert templates(own) == both


def test_a_label_that_is_deleted_takes_its_templates_along(own: RunningServer) -> None:
    before = templates(own)
    put_label(own, "one", packed(LABELS)).raise_for_status()
    assert ask(own, "DELETE", "/datastore/label?id=one&tag=final").json() == {}
    assert templates(own) == before
    assert ask(own, "GET", "/datastore/label?label=one&tag=final").status_code == 404
    put_label(own, "one", packed(LABELS)).raise_for_status()
    assert ask(own, "DELETE", "/datastore/?id=one").json() == {}
    assert templates(own) == before
    assert "one" not in ask(own, "GET", "/datastore/?output=all").json()["objects"]


def test_a_label_of_another_tag_is_kept_and_makes_no_templates(own: RunningServer) -> None:
    before = templates(own)
    assert put_label(own, "one", packed(LABELS), tag="draft").json()["templates"] == 0
    assert templates(own) == before
    assert ask(own, "GET", "/datastore/").json()["completed"] == 0


def test_a_label_goes_to_the_bank_of_its_model(own: RunningServer) -> None:
    own.engine.banks.create("hearts")
    before = templates(own)
    put_label(own, "one", packed(LABELS), model="vessa-hearts").raise_for_status()
    assert templates(own) == before
    assert len(templates(own, "hearts")) == SLICES
    put_label(own, "one", packed(LABELS)).raise_for_status()
    assert templates(own, "hearts") == set(), "the label has moved"


def test_ohifs_label_without_a_header_lies_as_the_series_does(own: RunningServer) -> None:
    raw = SERIES_LABELS.tobytes(order="F")
    uid = pydicom.dcmread(next((folder_of(own) / "series").iterdir())).SeriesInstanceUID
    answer = ask(
        own,
        "PUT",
        f"/datastore/label?image={uid}",
        data=params(label_info=[*INFO, {"name": "unused", "idx": 3, "color": [1, 2, 3]}]),
        files={"label": ("label.bin", raw, "application/octet-stream")},
        headers={"Origin": "http://localhost:3000"},
    )
    assert answer.json() == {"image": "series", "label": "series", "templates": SLICES}
    label = nib.load(folder_of(own) / "labels" / "final" / "series.nii.gz")
    assert np.array_equal(np.asarray(label.dataobj), SERIES_LABELS)
    source = files.read(folder_of(own) / "series")
    source.check_same_space(files.read(Path(label.get_filename()), labels=True))


def test_the_dataset_is_a_zip_of_pairs(own: RunningServer) -> None:
    put_label(own, "one", packed(LABELS)).raise_for_status()
    answer = ask(own, "GET", "/datastore/dataset")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert set(archive.namelist()) == {"one.nii.gz", "labels/final/one.nii.gz"}


def test_what_is_noted_of_labels_stays_beside_what_the_server_notes(own: RunningServer) -> None:
    put_label(own, "one", packed(LABELS)).raise_for_status()
    path = "/datastore/label/info?label=one&tag=final"
    note = {"info": json.dumps({"by": "me", "vessa": {"bank": "", "templates": ["x"]}})}
    ask(own, "PUT", path, data=note).raise_for_status()
    info = ask(own, "GET", path).json()
    assert info["by"] == "me"
    assert len(info["vessa"]["templates"]) == SLICES
    ask(own, "PUT", "/datastore/image/info?image=one", data=note).raise_for_status()
    assert ask(own, "GET", "/datastore/image/info?image=one").json()["by"] == "me"


def test_of_two_puts_at_once_one_is_kept_whole(own: RunningServer) -> None:
    before = templates(own)
    other = np.where(LABELS == 2, 0, LABELS)
    with ThreadPoolExecutor(8) as pool:
        contents = [packed(LABELS), packed(other)] * 4
        answers = list(pool.map(lambda c: put_label(own, "one", c), contents))
    assert {answer.status_code for answer in answers} == {200}
    kept = (folder_of(own) / "labels" / "final" / "one.nii.gz").read_bytes()
    assert kept in (contents[0], contents[1])
    new = [t for t in own.engine.bank.snapshot().templates if t.template_id not in before]
    names = {t.class_names for t in new}
    assert len(new) == SLICES
    assert names == {("disc", "bar") if kept == contents[0] else ("disc",)}
