"""``POST /pseudolabel/volume``: geometry goes out as it came in; what is too much is refused."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from support import Gate, RunningServer, engine_of, gate_of, hang_up, picture, running
from support_files import nifti, png
from support_process import server_process
from vessa_client import AnyArray, VessaClient, VolumeRequest

PATH = "/pseudolabel/volume"
JSON = {"Accept": "application/json"}
VOXELS = np.stack([picture(seed)[0] for seed in range(7)], axis=-1)
AFFINE = np.array([[1.2, 0, 0, -30], [0, 1.5, 0, 12], [0, 0, 6.0, 5], [0, 0, 0, 1.0]])
TURN = np.radians(10)
ROTATION = np.eye(4)
ROTATION[:2, :2] = [[np.cos(TURN), -np.sin(TURN)], [np.sin(TURN), np.cos(TURN)]]
OBLIQUE = ROTATION @ AFFINE
ORIENTATIONS = ("RAS", "LPS", "SAR", "AIL", "PSR")
ZEROS = gzip.compress(bytes(1 << 26))


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return gate_of(tmp_path)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running(engine_of(tmp_path_factory.mktemp("volumes"))) as started:
        yield started


def post(
    server: RunningServer,
    content: bytes,
    data: dict[str, str] | None = None,
    headers: dict[str, str] | None = None,
) -> httpx.Response:
    return httpx.post(
        server.http + PATH, files={"image": content}, data=data, headers=headers, timeout=60
    )


def labels_of(answer: httpx.Response) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_bytes(answer.raise_for_status().content)


def error_of(answer: httpx.Response) -> dict[str, str]:
    found: dict[str, str] = answer.json()["error"]
    return found


def stored(orientation: str, affine: AnyArray = AFFINE) -> nib.Nifti1Image:
    """The volume with its axes in other directions: the same voxels in the same places."""
    image = nib.Nifti1Image(VOXELS.astype(np.int16), affine)
    order = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt(orientation)
    )
    return image.as_reoriented(order)


# --- Geometry


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("affine", [AFFINE, OBLIQUE], ids=["straight", "oblique"])
def test_labels_lie_where_the_image_does(
    server: RunningServer, tmp_path: Path, orientation: str, affine: AnyArray
) -> None:
    image = stored(orientation, affine)
    image.set_qform(image.affine, code=1)
    image.set_sform(image.affine, code=4)
    image.header.set_xyzt_units("mm")
    labels = labels_of(post(server, bytes(image.to_bytes())))
    assert labels.shape == image.shape
    assert labels.get_data_dtype() == np.uint8
    assert np.allclose(labels.affine, image.affine)
    for code in ("qform_code", "sform_code", "xyzt_units"):
        assert labels.header[code] == image.header[code]
    # The labels of the volume as it is without the turn, in the world of another library.
    upright = labels_of(post(server, bytes(stored("RAS", affine).to_bytes())))
    names = [tmp_path / f"{name}.nii" for name in ("image", "labels", "upright")]
    for name, content in zip(names, (image, labels, upright), strict=True):
        nib.save(content, name)
    found, turned, expected = (SimpleITK.ReadImage(str(name)) for name in names)
    assert np.allclose(found.GetOrigin(), turned.GetOrigin())
    assert np.allclose(found.GetDirection(), turned.GetDirection())
    there = SimpleITK.Resample(
        turned, expected, SimpleITK.Transform(), SimpleITK.sitkNearestNeighbor
    )
    voxels = SimpleITK.GetArrayFromImage(expected)
    assert voxels.any()
    assert np.array_equal(SimpleITK.GetArrayFromImage(there), voxels)


def test_answers_are_those_of_the_same_volume_over_grpc(server: RunningServer) -> None:
    slices = tuple(np.ascontiguousarray(VOXELS[..., z]) for z in range(VOXELS.shape[2]))
    with VessaClient(server.grpc) as client:
        results: Any = sorted(
            client.segment_volume(VolumeRequest(slices=slices)), key=lambda r: r.slice_index
        )
    expected = np.stack([result.labels for result in results], axis=-1)
    data = nifti(VOXELS, AFFINE)
    assert np.array_equal(labels_of(post(server, data)).dataobj, expected)
    packed = post(server, gzip.compress(data), {"class_names": "disc,bar"})
    assert np.array_equal(labels_of(packed).dataobj, expected)
    summary = post(server, data, headers=JSON).raise_for_status().json()
    assert summary["shape"] == [60, 52, 7]
    assert summary["axis"] == 2
    assert [c["class_name"] for c in summary["classes"]] == ["disc", "bar"]
    for label, found in enumerate(summary["classes"], start=1):
        assert found["voxels"] == int((expected == label).sum())
        shown = [
            result.classes[label - 1].predicted_iou
            for result in results
            if (result.labels == label).any()
        ]
        assert found["predicted_iou"] == pytest.approx(np.mean(shown or [0.0]), abs=1e-6)
    for z, found in enumerate(summary["slices"]):
        assert found["pixels"] == [int((expected[..., z] == c).sum()) for c in (1, 2)]
    assert summary["volume_ref"] == results[0].volume_sha256


def test_the_axis_may_be_chosen(server: RunningServer) -> None:
    cube = nifti(np.repeat(VOXELS, 6, axis=2)[..., :40])
    for axis in range(3):
        summary = post(server, cube, {"axis": str(axis)}, headers=JSON).json()
        assert summary["axis"] == axis
        assert len(summary["slices"]) == (60, 52, 40)[axis]


# --- What is refused


def with_field(data: bytes, form: str, at: int, value: float) -> bytes:
    return data[:at] + struct.pack(form, value) + data[at + struct.calcsize(form) :]


WHOLE = nifti(VOXELS, AFFINE)
HUGE = with_field(with_field(WHOLE, "<h", 42, 32767), "<h", 44, 32767)
WRONG: dict[str, tuple[bytes, dict[str, str], int, str]] = {
    "a picture": (png(VOXELS[..., 0]), {}, 422, "image"),
    "two frames": (nifti(np.stack([VOXELS] * 2, axis=-1)), {}, 422, "image"),
    "colours": (nifti(np.zeros((20, 20, 4, 1, 3), np.uint8)), {}, 422, "image"),
    "cut off": (WHOLE[:9000], {}, 422, "image"),
    "cut off and packed": (gzip.compress(WHOLE)[:-900], {}, 422, "image"),
    "followed by zeros": (gzip.compress(WHOLE) + ZEROS, {}, 422, "image"),
    "announced larger": (HUGE, {}, 413, "image"),
    "announced larger, packed": (gzip.compress(HUGE) + ZEROS, {}, 413, "image"),
    "affine of NaN": (with_field(WHOLE, "<f", 280, float("nan")), {}, 422, "image"),
    "a slice of NaN": (nifti(np.where(VOXELS > 300, 0, np.nan)), {}, 422, "image"),
    "tiny": (nifti(VOXELS[:5]), {}, 422, "image"),
    "axis": (WHOLE, {"axis": "3"}, 422, "axis"),
    "class": (WHOLE, {"class_names": "liver"}, 404, "class_names"),
    "unknown field": (WHOLE, {"student_mask": "x"}, 422, "student_mask"),
    "top_k": (WHOLE, {"top_k": "999"}, 422, "options.top_k"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_volume_is_refused_by_name(server: RunningServer, name: str) -> None:
    content, data, status, field = WRONG[name]
    answer = post(server, content, data)
    assert answer.status_code == status
    assert error_of(answer)["field"] == field
    assert "expected" in error_of(answer)["message"]


def test_the_slice_that_is_wrong_is_named(server: RunningServer) -> None:
    voxels = VOXELS.astype(np.float32)
    voxels[..., 4] = np.nan
    assert error_of(post(server, nifti(voxels)))["message"].startswith("slice 4: image: has NaN")


def test_no_image_and_no_form_are_refused(server: RunningServer) -> None:
    url = server.http + PATH
    assert error_of(httpx.post(url, files={"other": b"x"}))["field"] == "other"
    assert error_of(httpx.post(url, files={"text": (None, "x")}))["field"] == "image"
    assert error_of(httpx.post(url, json={}))["field"] == "image"


def test_memory_stays_flat_whatever_a_small_file_unpacks_to(tmp_path: Path) -> None:
    """Masks, slices and volumes that are followed by 1.3 GB of zeros, or announce them."""
    voxels = nifti(VOXELS[..., :1])
    far = with_field(voxels, "<f", 108, 1e9)
    bombs = [gzip.compress(voxels) + ZEROS * 20, gzip.compress(far) + ZEROS * 20]
    volume = gzip.compress(WHOLE) + ZEROS * 20
    with server_process(tmp_path) as server:
        good = {"image": png(VOXELS[..., 0])}
        url = f"{server.http}/pseudolabel"
        httpx.post(url, files=good).raise_for_status()
        before = server.resident
        for bomb in bombs:
            for files in ({"image": bomb}, {**good, "student_mask": bomb}):
                assert httpx.post(url, files=files, timeout=60).status_code == 422
        answer = httpx.post(f"{url}/volume", files={"image": volume}, timeout=60)
        assert answer.status_code == 422
        assert server.resident - before < 100 << 20


# --- Limits, deadlines, and those who go away


def depth(server: RunningServer) -> int:
    text = httpx.get(f"{server.http}/metrics").text
    names = ("vessa_queue_depth ", "vessa_volume_bytes ")
    return int(sum(float(x.split()[1]) for x in text.splitlines() if x.startswith(names)))


def test_a_volume_over_the_limits_is_refused(gate: Gate) -> None:
    most = 2 * VOXELS.nbytes
    with running(gate, max_queue_bytes=most) as server, ThreadPoolExecutor() as pool:
        large = post(server, nifti(np.repeat(VOXELS, 3, axis=2)))
        assert large.status_code == 413
        first = pool.submit(post, server, WHOLE)
        while not depth(server):
            pass
        second = post(server, nifti(np.repeat(VOXELS, 2, axis=2)))
        assert second.status_code == 429
        assert second.headers["retry-after"] == "1"
        gate.opened.set()
        assert first.result(60).status_code == 200
    with running(engine_of(gate.bank.folder.parent), max_request_pixels=5000) as server:
        answer = post(server, WHOLE)
        assert answer.status_code == 413
        assert "VESSA_MAX_REQUEST_PIXELS" in error_of(answer)["message"]


def test_a_deadline_ends_it(gate: Gate) -> None:
    with running(gate) as server:
        answer = post(server, WHOLE, headers={"X-Request-Timeout": "0.4"})
        assert answer.status_code == 504
        assert error_of(answer)["code"] == "DEADLINE_EXCEEDED"
        while depth(server):
            pass
        gate.opened.set()


def test_who_goes_away_is_forgotten(gate: Gate) -> None:
    request = httpx.Request("POST", f"http://x{PATH}", files={"image": WHOLE})
    with running(gate) as server:
        hang_up(server, request, lambda: depth(server) >= VOXELS.nbytes)
        while depth(server):
            pass
        gate.opened.set()
        assert post(server, WHOLE).status_code == 200
