"""The `vessa` command against a real server."""

from __future__ import annotations

import csv
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import nibabel as nib
import numpy as np
import pytest
from grpc_health.v1.health import HealthServicer
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from PIL import Image
from typer.testing import CliRunner, Result

from support import RunningServer, engine_of, free_port, picture, running
from trainer_support import AFFINE, write_case
from vessa_client import VessaClient, files
from vessa_client.cli import app


def vessa(*arguments: object, server: str | None = None) -> Result:
    extra = ["--server", server] if server else []
    result = CliRunner().invoke(app, [*map(str, arguments), *extra], env={"COLUMNS": "200"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def picture_size(file: Path) -> tuple[int, int]:
    with Image.open(file) as opened:
        return opened.size


def test_templates_can_be_added_listed_and_removed(tmp_path: Path) -> None:
    write_case(tmp_path, "p0", 0, labelled=True)
    with running(engine_of(tmp_path / "s", templates=0)) as server:
        result = vessa(
            "templates", "add", tmp_path / "p0.nii.gz", "-c", "disc: Bright.", "-c", "bar",
            server=server.grpc,
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        assert "3 added" in result.output
        listed = vessa("templates", "list", server=server.grpc).output
        assert "p0 slice 1" in listed
        assert "Bright." in listed
        with VessaClient(server.grpc) as client:
            first = client.list_templates().templates[0].template_id
        assert vessa("templates", "remove", first[:10], server=server.grpc).exit_code == 0
        again = vessa("templates", "remove", first, server=server.grpc)
        assert again.exit_code == 1
        assert "expected exactly one" in again.output


def test_segment_writes_labels_and_a_picture(server: RunningServer, tmp_path: Path) -> None:
    write_case(tmp_path / "in", "p0", 0, labelled=True)
    out = tmp_path / "out"
    result = vessa("segment", tmp_path / "in" / "p0.nii.gz", "-o", out, server=server.grpc)
    assert result.exit_code == 0, result.output
    assert "disc" in result.output
    labels = nib.load(out / "p0_pseudo.nii.gz")
    assert labels.shape == (44, 48, 3)
    assert np.allclose(labels.affine, AFFINE)
    assert picture_size(out / "p0_pseudo_overlay.png") == (48, 44)
    Image.fromarray(picture(1)[0]).save(tmp_path / "one.png")
    Image.fromarray(picture(1)[1]).save(tmp_path / "student.png")
    result = vessa(
        "segment", tmp_path / "one.png", "-o", out, "-c", "disc", "-c", "bar",
        "--student-mask", tmp_path / "student.png", "--explain",
        server=server.grpc,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert picture_size(out / "one_pseudo.png") == (52, 60)


def test_label_does_a_folder_and_goes_on_where_it_stopped(
    server: RunningServer, tmp_path: Path
) -> None:
    folder, out = tmp_path / "in", tmp_path / "in" / "out"
    for index in range(3):
        write_case(folder / "deep", f"p{index}", index, labelled=index == 0)
    Image.fromarray(picture(9)[0]).save(folder / "nine.png")
    (folder / "broken.png").write_bytes(b"x")
    result = vessa("label", folder, "-o", out, server=server.grpc)
    assert result.exit_code == 1, "one file is broken"
    assert "4 labelled, 0 there already, 1 failed" in result.output
    assert "broken.png" in result.output
    target = out / "deep" / "p1_pseudo.nii.gz"
    labels = nib.load(target)
    assert np.allclose(labels.affine, AFFINE)
    assert nib.load(out / "deep" / "p1_confidence.nii.gz").shape == labels.shape
    assert (out / "previews" / "deep" / "p1.png").is_file()
    with (out / "summary.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 4 * 2
    (folder / "broken.png").unlink()
    stamp = target.stat().st_mtime_ns
    (out / "deep" / "p2_pseudo.nii.gz").unlink()
    result = vessa("label", folder, "-o", out, server=server.grpc)
    assert result.exit_code == 0
    assert "1 labelled, 3 there already, 0 failed" in result.output
    assert target.stat().st_mtime_ns == stamp
    with (out / "summary.csv").open() as stream:
        again = list(csv.DictReader(stream))
    assert sorted(map(str, again)) == sorted(map(str, rows)), "no row is lost or doubled"
    with VessaClient(server.grpc) as client:
        assert client.info().num_templates == 3


def test_info_and_health(server: RunningServer) -> None:
    shown = vessa("info", server=server.grpc).output
    assert "tiny" in shown
    assert "disc, bar" in shown
    assert vessa("health", server=server.grpc).exit_code == 0
    nobody = f"127.0.0.1:{free_port()}"
    assert vessa("health", server=nobody).exit_code == 1
    assert "start one with `vessa-server serve`" in vessa("info", server=nobody).output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("segment", "missing.png"), "no such file"),
        (("segment", "missing[red].png"), "missing[red].png: no such file"),
        (("segment", "text.png"), "cannot be read"),
        (("label", "nowhere", "-o", "out"), "no such folder"),
        (("label", "empty", "-o", "out"), "no images"),
        (("templates", "add", "good.png"), "--class"),
        (("templates", "add", "good.png", "-c", "x"), "NAME_gt"),
        (("templates", "add", "good.png", "small.png", "-c", "x"), "expected the image's"),
        (("templates", "add", "good.png", "zero.png", "-c", "x"), "no pixel is labelled"),
        (("templates", "add", "good.png", "colour.png", "-c", "x"), "colour picture"),
        (
            ("templates", "add", "good.png", "both.png", "-c", "x"),
            "both.png has labels 1, 2, named are 1",
        ),
        (("segment", "good.png", "-c", "liver"), "expected one of disc, bar"),
        (("segment", "good.png", "--student-mask", "small.png"), "expected"),
    ],
)
def test_errors_are_one_line_with_the_fix(
    server: RunningServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("text")
    image, labels = picture(0)
    Image.fromarray(image).save("good.png")
    Image.fromarray(labels[1:]).save("small.png")
    Image.fromarray(labels * 0).save("zero.png")
    Image.fromarray(labels).save("both.png")
    Image.fromarray(np.repeat(labels[..., None], 3, 2)).save("colour.png")
    result = vessa(*arguments, server=server.grpc)
    assert result.exit_code == 1
    assert words in result.output.replace("\n", " ")
    assert "Traceback" not in result.output


def test_an_absent_server_is_told() -> None:
    from vessa_client import ClientOptions, RetryPolicy, UnavailableError

    options = ClientOptions(retry=RetryPolicy(attempts=2, initial_seconds=0.01))
    with (
        VessaClient(f"127.0.0.1:{free_port()}", options) as client,
        pytest.raises(UnavailableError),
    ):
        client.info()


def test_slicing_follows_the_thickest_slices(tmp_path: Path) -> None:
    volume = np.zeros((5, 40, 30), np.uint8)
    nib.save(nib.Nifti1Image(volume, np.diag([1, 1, 1, 1])), tmp_path / "short.nii.gz")
    nib.save(nib.Nifti1Image(volume, np.diag([1, 6.0, 1, 1])), tmp_path / "thick.nii.gz")
    assert files.read(tmp_path / "short.nii.gz").axis == 0
    assert files.read(tmp_path / "thick.nii.gz").axis == 1
    assert files.read(tmp_path / "thick.nii.gz", axis=2).depth == 30


def test_a_server_behind_tls(tmp_path: Path) -> None:
    """``VESSA_ROOT_CERTIFICATES`` makes the command speak TLS, and trust who signed it only."""
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    for name in ("own", "other"):
        written = ["-keyout", str(tmp_path / f"{name}.key"), "-out", str(tmp_path / f"{name}.pem")]
        command = ["openssl", "req", "-x509", "-nodes", "-newkey", "rsa:2048", "-days", "2"]
        subprocess.run([*command, *names, *written], check=True, capture_output=True)
    key, chain = ((tmp_path / f"own.{kind}").read_bytes() for kind in ("key", "pem"))
    proxy = grpc.server(ThreadPoolExecutor(1))
    health = HealthServicer()
    health.set("", HealthCheckResponse.SERVING)
    add_HealthServicer_to_server(health, proxy)
    credentials = grpc.ssl_server_credentials([(key, chain)])
    address = f"localhost:{proxy.add_secure_port('localhost:0', credentials)}"
    proxy.start()
    try:
        codes = [
            CliRunner().invoke(app, ["health", "--server", address], env=environment).exit_code
            for environment in (
                {"VESSA_ROOT_CERTIFICATES": str(tmp_path / "own.pem")},
                {"VESSA_ROOT_CERTIFICATES": str(tmp_path / "other.pem")},
                {"VESSA_ROOT_CERTIFICATES": str(tmp_path / "missing.pem")},
                {},
            )
        ]
    finally:
        proxy.stop(None)
    assert codes == [0, 1, 1, 1]
