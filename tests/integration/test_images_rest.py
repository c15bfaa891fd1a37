"""``POST /image``, volumes of every format, answers by slice, and the headers of the pages."""

from __future__ import annotations

import gzip
import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.uid import DeflatedExplicitVRLittleEndian

from support import Gate, RunningServer, engine_of, gate_of, hang_up, picture, running
from support_dicom import VOXELS_ZRC, write_series, zip_of
from support_files import nifti, picture_file, png
from vessa_client import AnyArray, files, pictures

VOXELS = np.stack([picture(seed)[0] for seed in range(5)], axis=-1)
AFFINE = np.array([[1.2, 0, 0, -30], [0, 1.5, 0, 12], [0, 0, 6.0, 5], [0, 0, 0, 1.0]])
LINES = {"Accept": "application/x-ndjson"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running(engine_of(tmp_path_factory.mktemp("images"))) as started:
        yield started


def post(server: RunningServer, path: str, content: bytes, **more: object) -> httpx.Response:
    request = {"files": {"image": content}, "timeout": 60, **more}
    return httpx.post(server.http + path, **request)  # type: ignore[arg-type]


def nrrd_of(image: nib.Nifti1Image, folder: Path) -> bytes:
    nib.save(image, folder / "volume.nii")
    path = folder / "volume.nrrd"
    SimpleITK.WriteImage(SimpleITK.ReadImage(str(folder / "volume.nii")), str(path), True)
    return path.read_bytes()


def error_of(answer: httpx.Response) -> dict[str, str]:
    found: dict[str, str] = answer.json()["error"]
    return found


# --- Images out


@pytest.mark.parametrize(
    ("voxels", "affine"),
    [
        (VOXELS, AFFINE),
        (VOXELS.astype(np.int16) - 900, AFFINE @ np.diag([-1, -1, 1, 1])),
        (VOXELS.astype(np.float64) * 1e-9, AFFINE),
        (VOXELS.astype(">i4"), AFFINE[[1, 2, 0, 3]]),
    ],
)
def test_a_volume_comes_out_in_its_place(
    server: RunningServer, tmp_path: Path, voxels: AnyArray, affine: AnyArray
) -> None:
    """Read by another library, voxels are where the file has them."""
    answer = post(server, "/image", gzip.compress(nifti(voxels, affine))).raise_for_status()
    assert answer.headers["content-type"] == "application/x-nrrd"
    (tmp_path / "out.nrrd").write_bytes(answer.content)
    nib.save(nib.Nifti1Image(voxels, affine), tmp_path / "in.nii")
    found, expected = (SimpleITK.ReadImage(str(tmp_path / n)) for n in ("out.nrrd", "in.nii"))
    assert found.GetNumberOfPixels() == expected.GetNumberOfPixels()
    for index in ((0, 0, 0), (3, 1, 2), (20, 30, 4)):
        place = expected.TransformIndexToPhysicalPoint(index)
        there = found.TransformPhysicalPointToIndex(place)
        assert found[there] == pytest.approx(expected[index], rel=1e-6)


@pytest.mark.parametrize(
    "image",
    [
        picture_file(np.arange(40 * 30, dtype=np.uint16).reshape(40, 30) * 50, "TIFF"),
        png(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)),
    ],
    ids=["16 bits", "colours"],
)
def test_a_picture_comes_out_as_it_lies(
    server: RunningServer, tmp_path: Path, image: bytes
) -> None:
    (tmp_path / "out.nrrd").write_bytes(post(server, "/image", image).raise_for_status().content)
    (tmp_path / "in").write_bytes(image)
    found, expected = (SimpleITK.ReadImage(str(tmp_path / name)) for name in ("out.nrrd", "in"))
    shown, given = (SimpleITK.GetArrayFromImage(each) for each in (found, expected))
    assert np.array_equal(shown, given)


def test_volumes_of_every_format_are_answered_on_their_grid(
    server: RunningServer, tmp_path: Path
) -> None:
    image = nib.Nifti1Image(VOXELS, AFFINE)
    expected = post(server, "/pseudolabel/volume", bytes(image.to_bytes())).raise_for_status()
    labels = nib.Nifti1Image.from_bytes(expected.content)
    found = post(server, "/pseudolabel/volume", nrrd_of(image, tmp_path)).raise_for_status()
    again = nib.Nifti1Image.from_bytes(found.content)
    assert np.array_equal(again.dataobj, labels.dataobj)
    assert np.allclose(again.affine, AFFINE)
    paths = write_series(tmp_path / "series")
    answer = post(server, "/pseudolabel/volume", zip_of(paths)).raise_for_status()
    series = files.read(tmp_path / "series")
    assert series.stored is not None
    found_labels = nib.Nifti1Image.from_bytes(answer.content)
    assert np.allclose(found_labels.affine, series.stored.affine)
    assert found_labels.shape == VOXELS_ZRC.shape[::-1]
    assert post(server, "/image", paths[0].read_bytes()).status_code == 200


# --- Answers by slice


def test_answers_come_slice_by_slice_and_are_those_of_the_whole(server: RunningServer) -> None:
    volume = nifti(VOXELS, AFFINE)
    whole = nib.Nifti1Image.from_bytes(post(server, "/pseudolabel/volume", volume).content)
    answer = post(server, "/pseudolabel/volume", volume, headers=LINES).raise_for_status()
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert sorted(line["slice_index"] for line in lines) == list(range(5))
    for line in lines:
        counted = [c["pixels"] for c in line["classes"]]
        labels = np.asarray(whole.dataobj)[..., line["slice_index"]]
        assert counted == [int((labels == c).sum()) for c in (1, 2)]
        assert line["templates"]
        assert line["stage_ms"]


def test_a_slice_that_is_wrong_fails_alone(server: RunningServer) -> None:
    voxels = VOXELS.astype(np.float32)
    voxels[..., 3] = np.nan
    answer = post(server, "/pseudolabel/volume", nifti(voxels), headers=LINES)
    lines = {line["slice_index"]: line for line in map(json.loads, answer.text.splitlines())}
    assert [index for index, line in sorted(lines.items()) if "error" in line] == [3]
    assert "NaN" in lines[3]["error"]["message"]


def held(server: RunningServer) -> float:
    """Bytes of volumes that are answered."""
    text = httpx.get(f"{server.http}/metrics").text
    return float(re.findall(r"^vessa_volume_bytes (\S+)", text, re.MULTILINE)[0])


def test_who_goes_away_between_slices_is_forgotten(tmp_path: Path) -> None:
    gate: Gate = gate_of(tmp_path)
    request = httpx.Request(
        "POST", "http://x/pseudolabel/volume", files={"image": nifti(VOXELS)}, headers=LINES
    )
    with running(gate) as server:
        hang_up(server, request, lambda: held(server) >= VOXELS.nbytes)
        while held(server):
            pass
        gate.opened.set()


# --- What is refused


def nrrd(header: str, data: bytes = b"") -> bytes:
    return f"NRRD0004\ntype: uint8\ndimension: 3\n{header}\n\n".encode() + data


def deflated(folder: Path) -> bytes:
    path = write_series(folder)[0]
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)
    return path.read_bytes()


def with_tag(folder: Path, **attributes: object) -> bytes:
    return write_series(folder, **attributes)[0].read_bytes()  # type: ignore[arg-type]


def many_entries() -> bytes:
    """A small zip whose list says that it has hundreds of thousands of files."""
    data = bytearray(zip_of([]))
    data[12:16] = (1 << 30).to_bytes(4, "little")
    return b"PK\x03\x04" + bytes(60) + bytes(data)


def packed_bomb() -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    return packer.compress(bytes(1 << 27)) + packer.flush()


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"text", 422),
        (nrrd("sizes: 9 9 9\nencoding: raw\ndata file: /etc/passwd"), 422),
        (nrrd("sizes: 9 9 9\nencoding: raw\nline skip: 99999999999"), 422),
        (nrrd("sizes: 9 9 9\nencoding: hex"), 422),
        (nrrd("sizes: 9 9 9\nencoding: raw", b"short"), 422),
        (nrrd("sizes: 0 9 9\nencoding: raw"), 422),
        (nrrd("sizes: 60000 60000 60000\nencoding: raw"), 413),
        (nrrd("sizes: 9 9 9\nencoding: gzip", packed_bomb()), 422),
        (nrrd("sizes: 9 9 9\nencoding: gzip", b"damaged"), 422),
        (b"NRRD0004\n" + b"x" * 5000, 422),
        (many_entries(), 422),
        (b"PK\x03\x04damaged", 422),
    ],
)
@pytest.mark.parametrize("path", ["/image", "/pseudolabel/volume"])
def test_a_hostile_file_is_refused_by_name(
    server: RunningServer, path: str, content: bytes, status: int
) -> None:
    answer = post(server, path, content)
    assert answer.status_code == status
    found = error_of(answer)
    assert found["field"].startswith("image")
    assert "/tmp" not in found["message"]


def test_hostile_dicom_is_refused(server: RunningServer, tmp_path: Path) -> None:
    assert "deflated" in error_of(post(server, "/image", deflated(tmp_path / "a")))["message"]
    huge = with_tag(tmp_path / "b", Rows=65535, Columns=65535, NumberOfFrames="9999")
    assert post(server, "/image", huge).status_code == 413
    two = zip_of([*write_series(tmp_path / "c"), *write_series(tmp_path / "d", names="X{}")])
    message = error_of(post(server, "/image", two))["message"]
    assert "2 series" in message
    assert "/tmp" not in message


def test_a_zip_is_refused_by_what_it_unpacks_to(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(1 << 24))
    with running(engine_of(tmp_path), max_queue_bytes=1 << 20) as server:
        answer = post(server, "/image", stream.getvalue())
        assert answer.status_code == 413
        assert "unpacks to 16777216 bytes" in error_of(answer)["message"]


# --- The pages


def test_pages_allow_nothing_of_others_and_are_kept(server: RunningServer) -> None:
    for path in ("/", "/docs"):
        page = httpx.get(server.http + path)
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert page.headers["x-content-type-options"] == "nosniff"
        assert page.headers["referrer-policy"] == "no-referrer"
        assert page.headers["cache-control"] == "no-cache"
        assert not re.search(
            r"<style|style=|<script(?! type=\"module\" src)|\son[a-z]+=", page.text
        )
        for name in re.findall(r'"(page/[^"]+)"', page.text):
            kept = httpx.get(f"{server.http}/{name}").raise_for_status()
            assert "immutable" in kept.headers["cache-control"]
            kind = kept.headers["content-type"].partition(";")[0]
            assert kind in ("text/javascript", "text/css", "image/svg+xml")
            assert kept.headers["x-content-type-options"] == "nosniff"
    assert httpx.get(f"{server.http}/page/other/main.js").status_code == 404


def test_a_class_has_the_colour_of_all_pictures(server: RunningServer) -> None:
    listed = httpx.get(f"{server.http}/templates").json()["classes"]
    assert [c["colour"] for c in listed] == [pictures.hex_colour(n) for n in (1, 2)]
