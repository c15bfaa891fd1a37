"""Windows over every transport: what is seen of images and templates, and what commands choose."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from support import CLASSES, RunningServer, engine_of, picture, running
from vessa_client import (
    AnyArray,
    InvalidRequestError,
    SegmentationRequest,
    SegmentationResult,
    UInt8Array,
    VessaClient,
    VolumeRequest,
)
from vessa_client.cli import app
from vessa_server.model.vessa import Vessa

AFFINE = np.diag([1.0, 1.0, 8.0, 1.0])
WINDOW = (-160.0, 240.0)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model: Vessa) -> Iterator[RunningServer]:
    with running(engine_of(tmp_path_factory.mktemp("server"), model=model, templates=0)) as own:
        with VessaClient(own.grpc) as client:
            for seed in range(3):
                image, labels = hounsfield(seed)
                client.add_template(image, labels, CLASSES, name=f"p{seed}", window=WINDOW)
        yield own


def hounsfield(seed: int) -> tuple[AnyArray, UInt8Array]:
    """A picture in Hounsfield units, with air and metal that percentiles would follow."""
    shade, labels = picture(seed)
    image = (shade.astype(np.int16) - 110).astype(np.int16)
    image[:4], image[4:6] = -1024, 3000
    return image, labels


def seen(image: AnyArray) -> AnyArray:
    """What a window leaves of an image, by the definition."""
    unit = np.clip((image.astype(np.float64) - WINDOW[0]) / (WINDOW[1] - WINDOW[0]), 0, 1)
    return unit.astype(np.float32)


def same(one: SegmentationResult, other: SegmentationResult) -> bool:
    return np.array_equal(one.confidence, other.confidence) and np.array_equal(
        one.labels, other.labels
    )


def test_an_image_in_a_window_is_answered_as_what_the_window_shows(server: RunningServer) -> None:
    image, _ = hounsfield(7)
    with VessaClient(server.grpc) as client:
        found = client.segment(SegmentationRequest(image=image, window=WINDOW))
        shown = client.segment(SegmentationRequest(image=seen(image), window=(0.0, 1.0)))
        plain = client.segment(SegmentationRequest(image=image))
        # The same image in another window is none that was answered already.
        again = client.segment(SegmentationRequest(image=image, window=WINDOW))
        other = client.segment(SegmentationRequest(image=image, window=(-1024.0, 3000.0)))
        assert found.image_sha256 == plain.image_sha256
    assert same(found, shown)
    assert same(found, again)
    assert not same(found, plain)
    assert not same(found, other)
    assert again.image_features_cached
    assert not other.image_features_cached


def test_a_template_is_seen_in_its_own_window(server: RunningServer) -> None:
    image, _ = hounsfield(7)
    with VessaClient(server.grpc) as client:
        for seed in range(3):
            pixels, labels = hounsfield(seed)
            named = {"name": f"p{seed}", "bank": "shown"}
            client.add_template(seen(pixels), labels, CLASSES, window=(0.0, 1.0), **named)
        asked = SegmentationRequest(image=image, window=WINDOW)
        found = client.segment(asked)
        shown = client.segment(SegmentationRequest(image=image, window=WINDOW, bank="shown"))
        assert {t.window for t in client.list_templates().templates} == {WINDOW}
        one = client.list_templates().templates[0]
        assert client.get_template(one.template_id).info.window == WINDOW
    assert same(found, shown)


def test_a_volume_and_its_slices_have_the_window_of_the_request(server: RunningServer) -> None:
    slices = tuple(hounsfield(seed)[0] for seed in (7, 8, 9))
    with VessaClient(server.grpc) as client:
        answers = client.segment_volume(VolumeRequest(slices=slices, window=WINDOW))
        found = sorted(map(answered, answers), key=lambda a: a.slice_index)
        shown = tuple(map(seen, slices))
        answers = client.segment_volume(VolumeRequest(slices=shown, window=(0.0, 1.0)))
        expected = sorted(map(answered, answers), key=lambda a: a.slice_index)
    assert all(map(same, found, expected))


def answered(item: SegmentationResult | Exception) -> SegmentationResult:
    assert isinstance(item, SegmentationResult), item
    return item


def test_a_wrong_window_is_refused_by_name(server: RunningServer) -> None:
    image, labels = hounsfield(0)
    with VessaClient(server.grpc) as client:
        with pytest.raises(InvalidRequestError, match=r"window: 3\.\.1") as caught:
            client.segment(SegmentationRequest(image=image, window=(3.0, 1.0)))
        assert caught.value.field == "window"
        with pytest.raises(InvalidRequestError, match="window"):
            list(client.segment_volume(VolumeRequest(slices=(image,), window=(np.nan, 1.0))))
        with pytest.raises(InvalidRequestError, match="window"):
            client.add_template(image, labels, CLASSES, window=(1.0, 1.0))
        with pytest.raises(InvalidRequestError, match="window: 'soft', expected a pair"):
            client.segment(SegmentationRequest(image=image, window="soft"))  # type: ignore[arg-type]


def test_rest_takes_windows_and_sees_ct_in_that_of_the_bank(
    server: RunningServer, tmp_path: Path
) -> None:
    write(tmp_path / "scan.nii.gz", range(7, 10))
    content = (tmp_path / "scan.nii.gz").read_bytes()
    with httpx.Client(base_url=server.http, timeout=60) as http:

        def labels(**fields: str) -> bytes:
            response = http.post(
                "/pseudolabel/volume",
                files={"image": ("scan.nii.gz", content)},
                data=fields,
                headers={"Accept": "application/x-nifti"},
            )
            assert response.status_code == 200, response.text
            return response.content

        assert labels() == labels(window="-160,240") != labels(window="-1024,3000")
        listed = http.get("/templates").json()["templates"]
        assert [t["window"] for t in listed] == [list(WINDOW)] * 3
        for window in ("soft", "1", "2,1", "1,2,3"):
            refused = http.post(
                "/pseudolabel/volume",
                files={"image": ("scan.nii.gz", content)},
                data={"window": window},
            )
            assert refused.status_code == 422
            assert refused.json()["error"]["field"] == "window"


def vessa(server: RunningServer, *words: object) -> Result:
    return CliRunner().invoke(app, [*map(str, words), "--server", server.grpc])


def write(path: Path, seeds: range) -> None:
    """A scan in Hounsfield units, and its labels beside it."""
    pixels, labels = (np.stack(p, axis=2) for p in zip(*map(hounsfield, seeds), strict=True))
    nib.save(nib.Nifti1Image(pixels, AFFINE), path)
    nib.save(nib.Nifti1Image(labels, AFFINE), path.with_name("scan_gt.nii.gz"))


def test_commands_see_ct_in_one_window_and_say_it(
    server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "scan.nii.gz", range(2))
    scan, names = tmp_path / "scan.nii.gz", ("-c", "disc", "-c", "bar")
    added = vessa(server, "templates", "add", scan, *names, "--bank", "ct")
    assert "Window -160..240." in added.stdout, added.output
    lung = vessa(server, "templates", "add", scan, *names, "--bank", "ct", "--window", "lung")
    assert "the bank has it otherwise (window -160..240)" in lung.stderr
    words = ("--bank", "ct", "--window", "lung", "--replace")
    assert "2 added, 2 replaced" in vessa(server, "templates", "add", scan, *names, *words).stdout
    segmented = vessa(server, "segment", scan, "-o", tmp_path / "out", "--bank", "ct")
    assert "Window  -1350..150" in segmented.stdout, segmented.output
    information = json.loads(vessa(server, "info", "--bank", "ct", "--json").stdout)
    assert information["windows"] == [[-1350.0, 150.0]]
    labelled = ("label", tmp_path, "-o", tmp_path / "many", "--bank", "ct")
    done = vessa(server, *labelled)
    assert done.exit_code == 0, done.output
    stale = vessa(server, *labelled, "--window", "bone")
    assert "other options; --overwrite makes them anew" in stale.stderr
    monkeypatch.chdir(tmp_path)
    assert vessa(server, "bank", "use", "ct", "--window", "brain").exit_code == 0
    segmented = CliRunner().invoke(app, ["segment", str(scan)])
    assert "Window  0..80" in segmented.stdout, segmented.output
    wrong = vessa(server, "segment", scan, "--window", "liver")
    assert (wrong.exit_code, "expected soft, lung" in wrong.stderr) == (1, True)


def test_a_bank_of_ct_goes_out_and_comes_back_with_its_windows(
    server: RunningServer, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert vessa(server, "bank", "export", out).exit_code == 0
    words = ("--label-names", out / "dataset.json", "--bank", "back")
    result = vessa(server, "templates", "add", out, *words)
    assert result.exit_code == 0, result.output
    with VessaClient(server.grpc) as client:
        before, after = (client.list_templates(bank=name).templates for name in ("", "back"))
    assert {t.template_id for t in after} == {t.template_id for t in before}
    (out / "dataset.json").write_text('{"labels": {"disc": 1}, "windows": {"p0": [1]}}')
    damaged = vessa(server, "templates", "add", out, *words)
    assert "dataset.json" in damaged.stderr
    assert damaged.exit_code == 1
