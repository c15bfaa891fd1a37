"""What the commands ask a server for, against a small real one that notes it."""

# ruff: noqa: N802 (the names of the wire contract)

from __future__ import annotations

import asyncio
import csv
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import unquote

import grpc
import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from support_client import Context, Images, abort, answer, expected_labels, pixels, refusal, serving
from support_dicom import write_series
from vessa.v1 import pseudo_label_pb2 as pb
from vessa.v1 import pseudo_label_pb2_grpc as pb_grpc
from vessa_client import UInt8Array, files, wire
from vessa_client.cli import app

AFFINE = np.diag([1.5, 2.0, 8.0, 1.0])


class Notes(pb_grpc.PseudoLabelServiceServicer):
    """Answers everything, and notes it.

    Attributes:
        calls: number of calls by name.
        requests: of streams.
        headers: of volumes.
        students: slices of volumes that came with a student mask.
        banks: of all calls.
        together: images of a stream that must be in flight before the first is answered.
        refused: images of this width are wrong.
        lasts: images of a stream until the server goes away, for good.
        bank_version: of the bank now.
    """

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.requests: list[pb.SegmentRequest] = []
        self.headers: list[pb.VolumeHeader] = []
        self.students: list[int] = []
        self.banks: list[str] = []
        self.together = 1
        self.refused = -1
        self.lasts = 1000
        self.images = Images()
        self.bank_version = "b"  # as its answers have it

    async def SegmentStream(
        self, request_iterator: AsyncIterator[pb.SegmentRequest], context: Context
    ) -> AsyncIterator[pb.SegmentResponse]:
        self.calls["SegmentStream"] += 1
        held = [await asyncio.wait_for(anext(request_iterator), 10) for _ in range(self.together)]
        while held:
            message = held.pop()
            self.requests.append(message)
            self.banks.append(message.bank)
            if len(self.requests) > self.lasts:
                await abort(context, grpc.StatusCode.UNAUTHENTICATED)
            image = self.images.pixels(message.image)
            if image.shape[1] == self.refused:
                yield refusal(message.request_id, code="INVALID_ARGUMENT", message="too narrow")
            else:
                yield answer(image, message.request_id)
            if not held and (following := await anext(request_iterator, None)) is not None:
                held.append(following)

    async def SegmentVolume(
        self, request_iterator: AsyncIterator[pb.SegmentVolumeRequest], context: Context
    ) -> AsyncIterator[pb.SegmentResponse]:
        self.calls["SegmentVolume"] += 1
        parts = [part async for part in request_iterator]
        header, slices = parts[0].header, [part.slice for part in parts[1:]]
        self.headers.append(header)
        self.banks.append(header.bank)
        self.students = [part.index for part in slices if part.HasField("student_mask")]
        images = [pixels(part.image) for part in slices]
        if images[0].shape[1] == self.refused:
            await abort(context, grpc.StatusCode.INVALID_ARGUMENT, field="volume")
        digest = wire.volume_digest(map(wire.image_digest, images))
        for index in reversed(range(len(images))):
            yield answer(images[index], header.request_id, index=index, volume=digest)

    async def GetServerInfo(
        self, request: pb.GetServerInfoRequest, context: Context
    ) -> pb.GetServerInfoResponse:
        self.banks.append(request.bank)
        return pb.GetServerInfoResponse(
            model_name="nano",
            model_digest="d",
            bank_version=self.bank_version,
            runtime="triton",
            device="cuda:0",
            dtype="bfloat16",
            device_memory_bytes=3 << 30,
            bank="cardiac",
            banks=["cardiac", "brain"],
            classes=[pb.ClassDefinition(name="heart [left]")],
            policy_version="policy-7",
            policy_rules=["rule one", "rule two"],
            limits=pb.Limits(max_request_pixels=500_000_000),
        )

    async def ListTemplates(
        self, request: pb.ListTemplatesRequest, context: Context
    ) -> pb.ListTemplatesResponse:
        self.banks.append(request.bank)
        heart = pb.ClassDefinition(name="heart [left]", description="seen [/] from the front")
        template = pb.Template(template_id="abc", name="scan [/b]", class_names=[heart.name])
        return pb.ListTemplatesResponse(templates=[template], classes=[heart])

    async def AddTemplate(
        self, request: pb.AddTemplateRequest, context: Context
    ) -> pb.AddTemplateResponse:
        self.banks.append(request.bank)
        return pb.AddTemplateResponse(created=True)

    async def DeleteTemplate(
        self, request: pb.DeleteTemplateRequest, context: Context
    ) -> pb.DeleteTemplateResponse:
        self.banks.append(request.bank)
        return pb.DeleteTemplateResponse()


@pytest.fixture
def servicer() -> Notes:
    return Notes()


@pytest.fixture
def target(servicer: Notes) -> Iterator[str]:
    with serving(servicer) as address:
        yield address


def vessa(target: str, *arguments: object, **environment: str) -> Result:
    result = CliRunner().invoke(
        app,
        [*map(str, arguments)],
        env={"COLUMNS": "200", "VESSA_SERVER": target, **environment},
    )
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def scene(seed: int, shape: tuple[int, ...] = (20, 24)) -> UInt8Array:
    return np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)


def write_volume(path: Path, seed: int) -> UInt8Array:
    """A volume of three slices along its last axis."""
    volume = scene(seed, (20, 24, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(volume, AFFINE), path)
    return volume


def write_picture(path: Path, seed: int, shape: tuple[int, ...] = (20, 24)) -> UInt8Array:
    image = scene(seed, shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return image


def read_volume(path: Path) -> UInt8Array:
    image = nib.load(path)
    assert np.allclose(image.affine, AFFINE)
    values: UInt8Array = np.asanyarray(image.dataobj).astype(np.uint8)
    return values


def read_picture(path: Path) -> UInt8Array:
    with Image.open(path) as opened:
        return np.asarray(opened)


def test_a_volume_is_segmented_by_one_call(servicer: Notes, target: str, tmp_path: Path) -> None:
    volume = write_volume(tmp_path / "v.nii.gz", 0)
    nib.save(nib.Nifti1Image(volume % 2, AFFINE), tmp_path / "student.nii.gz")
    result = vessa(
        target, "segment", tmp_path / "v.nii.gz", "-o", tmp_path, "-c", "disc", "--text", "words",
        "--student-mask", tmp_path / "student.nii.gz",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert np.array_equal(read_volume(tmp_path / "v_pseudo.nii.gz"), expected_labels(volume))
    assert servicer.calls == {"SegmentVolume": 1}
    (header,) = servicer.headers
    assert (header.num_slices, header.text, [*header.class_names]) == (3, "words", ["disc"])
    assert header.options.priority == pb.PRIORITY_INTERACTIVE
    assert servicer.students == [0, 1, 2]


def test_series_are_labelled_as_nifti_and_as_segmentations(target: str, tmp_path: Path) -> None:
    write_series(tmp_path / "in" / "p1")
    write_series(tmp_path / "in" / "p2", PatientID="2")
    result = vessa(target, "label", tmp_path / "in", "-o", tmp_path / "out", "-c", "9=disc")
    assert result.exit_code == 0, result.output
    names = sorted(str(f.relative_to(tmp_path / "out")) for f in (tmp_path / "out").glob("p?_*"))
    assert names == [
        f"{name}_{what}" for name in ("p1", "p2") for what in
        ("confidence.nii.gz", "pseudo.dcm", "pseudo.nii.gz")
    ]  # fmt: skip
    image = files.read(tmp_path / "in" / "p1")
    labels = files.read(tmp_path / "out" / "p1_pseudo.nii.gz", labels=True)
    image.check_same_space(labels)
    for plane, found in zip(image.slices(), labels.slices(), strict=True):
        assert np.array_equal(found, 9 * expected_labels(plane.astype(np.uint8)))
    made = pydicom.dcmread(tmp_path / "out" / "p2_pseudo.dcm")
    assert made.Modality == "SEG"
    assert made.PatientID == "2"
    assert made.SegmentSequence[0].SegmentLabel == "disc"
    # Results are no images, also where they lie among the series.
    again = vessa(target, "label", tmp_path / "in" / "p1", "-o", tmp_path / "in" / "p1")
    assert again.exit_code == 0, again.output
    again = vessa(target, "label", tmp_path / "in" / "p1", "-o", tmp_path / "in" / "p1")
    assert "0 labelled, 1 there already" in again.output


def test_slices_alone_and_pictures_are_no_volumes(
    servicer: Notes, target: str, tmp_path: Path
) -> None:
    volume = write_volume(tmp_path / "v.nii.gz", 0)
    image = write_picture(tmp_path / "one.png", 1)
    for name in ("v.nii.gz", "one.png"):
        result = vessa(target, "segment", tmp_path / name, "-o", tmp_path, "--alone")
        assert result.exit_code == 0, result.output
    assert np.array_equal(read_volume(tmp_path / "v_pseudo.nii.gz"), expected_labels(volume))
    assert np.array_equal(read_picture(tmp_path / "one_pseudo.png"), expected_labels(image))
    assert servicer.calls == {"SegmentStream": 2}
    assert {r.options.priority for r in servicer.requests} == {pb.PRIORITY_INTERACTIVE}


def test_a_folder_is_labelled_with_volumes_whole_and_pictures_in_flight(
    servicer: Notes, target: str, tmp_path: Path
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    volumes = {i: write_volume(folder / f"v{i}.nii.gz", i) for i in range(2)}
    images = {i: write_picture(folder / "deep" / f"p{i}.png", i) for i in range(6)}
    write_picture(folder / "narrow.png", 9, (20, 7))
    (folder / "broken.png").write_bytes(b"x")
    servicer.together, servicer.refused = 4, 7
    result = vessa(target, "label", folder, "-o", out, "--in-flight", 4)
    assert result.exit_code == 1
    assert "8 labelled, 0 there already, 2 failed" in result.output
    assert "narrow.png: too narrow" in result.output.replace("\n", "")
    assert "broken.png" in result.output
    assert servicer.calls == {"SegmentStream": 1, "SegmentVolume": 2}
    for i, volume in volumes.items():
        labels = read_volume(out / f"v{i}_pseudo.nii.gz")
        assert np.array_equal(labels, expected_labels(volume))
        assert np.array_equal(read_volume(out / f"v{i}_confidence.nii.gz"), volume)
    for i, image in images.items():
        labels = read_picture(out / "deep" / f"p{i}_pseudo.png")
        assert np.array_equal(labels, expected_labels(image))
    assert {r.options.priority for r in servicer.requests} == {pb.PRIORITY_BULK}
    assert {h.options.priority for h in servicer.headers} == {pb.PRIORITY_BULK}
    with (out / "summary.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == 8


def test_what_was_labelled_goes_out_with_its_classes(target: str, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    volume = write_volume(folder / "deep" / "v.nii.gz", 0)
    assert vessa(target, "label", folder, "-o", out, "-c", "3=disc").exit_code == 0
    raw = tmp_path / "Dataset001_Disc"
    words = ("export", "nnunet", folder, out, "--channel", "MRI", "--least-iou", 0.5, "-o", raw)
    result = CliRunner().invoke(app, [*map(str, words)])
    assert result.exit_code == 0, result.output
    assert json.loads((raw / "dataset.json").read_text())["labels"] == {"background": 0, "disc": 1}
    labels = read_volume(raw / "labelsTr" / "deep_v.nii.gz")
    assert np.array_equal(labels, expected_labels(volume))


def test_volumes_alone_share_the_stream_and_are_written_whole(
    servicer: Notes, target: str, tmp_path: Path
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    volumes = {i: write_volume(folder / f"v{i}.nii.gz", i) for i in range(3)}
    servicer.together = 7
    result = vessa(target, "label", folder, "-o", out, "--alone")
    assert result.exit_code == 0, result.output
    assert servicer.calls == {"SegmentStream": 1}
    for i, volume in volumes.items():
        labels = read_volume(out / f"v{i}_pseudo.nii.gz")
        assert np.array_equal(labels, expected_labels(volume))


def test_labelling_goes_on_where_the_server_left_it(
    servicer: Notes, target: str, tmp_path: Path
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    images = [write_picture(folder / f"p{i}.png", i) for i in range(5)]
    servicer.lasts = 2
    result = vessa(target, "label", folder, "-o", out)
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    assert len(list(out.glob("*_pseudo.png"))) == 2
    servicer.lasts = 1000
    servicer.requests.clear()
    result = vessa(target, "label", folder, "-o", out)
    assert result.exit_code == 0, result.output
    assert "3 labelled, 2 there already, 0 failed" in result.output
    assert len(servicer.requests) == 3
    for i, image in enumerate(images):
        assert np.array_equal(read_picture(out / f"p{i}_pseudo.png"), expected_labels(image))


def test_stale_label_maps_are_told_and_edited_ones_kept(
    servicer: Notes, target: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for number, name in enumerate(("a", "b", "c")):
        write_volume(tmp_path / "in" / f"{name}.nii.gz", number)
    call = ("label", tmp_path / "in", "-o", out)
    assert vessa(target, *call, "-c", "disc").exit_code == 0
    said = vessa(target, *call, "-c", "disc").output
    assert "0 labelled, 3 there already" in said
    assert "Warning" not in said
    # Other templates since.
    servicer.bank_version = "b2"
    edited = nib.load(out / "b_pseudo.nii.gz")
    mine = np.zeros((20, 24, 3), np.uint8)
    mine[3:5, 4, 1] = 1
    nib.save(nib.Nifti1Image(mine, edited.affine), out / "b_pseudo.nii.gz")
    picture = (out / "previews" / "b.png").read_bytes()
    said = " ".join(vessa(target, *call, "-c", "disc").output.split())
    assert "2 of those there already: other templates; --overwrite makes them anew" in said
    assert "1 of those there already: edited since" in said
    assert "b.nii.gz,disc,1,2,\n" in (out / "summary.csv").read_text().replace("\r", "")
    page = (out / "index.html").read_text()
    assert page.index("<h2>a.nii.gz") < page.index("<h2>b.nii.gz")  # somebody has looked at it
    assert "edited, 2 voxels" in page
    assert (out / "previews" / "b.png").read_bytes() != picture
    said = vessa(target, *call, "-c", "disc", "--overwrite").output
    assert "2 labelled, 1 there already" in said
    assert read_volume(out / "b_pseudo.nii.gz").sum() == 2
    # Other classes: label 1 would be two things in one folder.
    servicer.bank_version = "b"
    result = vessa(target, *call, "-c", "ring")
    assert result.exit_code == 1
    assert "has classes 1=disc, now 1=ring; give another --out, or --overwrite" in result.output
    assert "1 there already" in vessa(target, *call, "-c", "ring", "--overwrite").output
    # What an older version made.
    (out / "labelled.json").unlink()
    said = " ".join(vessa(target, *call, "-c", "disc").output.split())
    assert "3 of those there already: made by nobody knows what" in said


def test_results_of_other_calls_are_no_images(target: str, tmp_path: Path) -> None:
    write_picture(tmp_path / "in" / "a.png", 0)
    inside = vessa(target, "label", tmp_path / "in", "-o", tmp_path / "in" / "one")
    assert "1 labelled" in inside.stdout, inside.output
    again = vessa(target, "label", tmp_path / "in", "-o", tmp_path / "other")
    assert "1 labelled, 0 there already" in again.stdout, again.output


def test_a_place_that_cannot_be_written_is_said_before_anything_is_asked(
    servicer: Notes, target: str, tmp_path: Path
) -> None:
    image = write_picture(tmp_path / "in" / "a.png", 0)
    (tmp_path / "file").touch()
    for words in (("label", tmp_path / "in"), ("segment", tmp_path / "in" / "a.png")):
        result = vessa(target, *words, "-o", tmp_path / "file" / "out")
        assert result.exit_code == 1
        assert "is a file, expected a folder" in " ".join(result.stderr.split())
    assert not servicer.requests
    assert image.any()


def test_the_page_shows_every_image_the_least_sure_first(
    servicer: Notes, target: str, tmp_path: Path
) -> None:
    write_volume(tmp_path / "in" / "p<1>&.nii.gz", 0)
    nib.save(nib.Nifti1Image(np.zeros((20, 24, 3), np.uint8), AFFINE), tmp_path / "in" / "z.nii.gz")
    write_picture(tmp_path / "in" / "deep" / "a.png", 2)
    out = tmp_path / "out"
    assert vessa(target, "label", tmp_path / "in", "-o", out, "-c", "5=disc").exit_code == 0
    page = (out / "index.html").read_text()
    assert page.index(">z.nii.gz") < page.index(">deep/a.png")  # nothing was found in z
    assert "p&lt;1&gt;&amp;.nii.gz, 3 slices" in page
    assert "<1>" not in page
    assert "disc (5): not found" in page
    for source in re.findall(r'<img src="([^"]+)"', page):
        assert read_picture(out / unquote(source)).ndim == 3
    assert len(re.findall("<article>", page)) == 3
    # A table that a spreadsheet has rewritten is made again.
    table = (out / "summary.csv").read_text()
    (out / "summary.csv").write_text("\ufeff" + table.replace(",", ";"))
    assert vessa(target, "label", tmp_path / "in", "-o", out, "-c", "5=disc").exit_code == 0
    assert (out / "summary.csv").read_text() == table
    (out / "labelled.json").write_text("{")
    result = vessa(target, "label", tmp_path / "in", "-o", out)
    assert result.exit_code == 1
    assert "labelled.json: damaged" in result.output


def test_images_of_one_stem_are_labelled_each_also_among_their_labels(
    target: str, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    images = {name: write_picture(folder / f"{name}.png", i) for i, name in enumerate(("a", "[b]"))}
    images["a.tif"] = scene(5, (24, 20))
    Image.fromarray(images["a.tif"]).save(folder / "a.tif")
    images["a.png"] = images.pop("a")
    volume = write_volume(folder / "v.nii.gz", 1)
    for expected in ("4 labelled, 0 there already", "0 labelled, 4 there already"):
        result = vessa(target, "label", folder, "-o", folder)
        assert result.exit_code == 0, result.output
        assert expected in result.output
    for name, image in images.items():
        labels = read_picture(folder / f"{name}_pseudo.png")
        assert np.array_equal(labels, expected_labels(image))
    assert np.array_equal(read_volume(folder / "v_pseudo.nii.gz"), expected_labels(volume))
    previews = {f.name for f in (folder / "previews").iterdir()}
    assert previews == {"a.png.png", "a.tif.png", "[b].png", "v.png"}


def test_names_with_brackets_are_shown_as_they_are(target: str, tmp_path: Path) -> None:
    """They would be markup, and one without a beginning an error."""
    out = tmp_path / "[left]" / "[/b]"
    write_picture(tmp_path / "image.png", 3)
    result = vessa(target, "segment", tmp_path / "image.png", "-o", out)
    assert result.exit_code == 0, result.output
    assert str(out / "image_pseudo.png") in result.output
    for words in (("templates", "list"), ("info",)):
        result = vessa(target, *words)
        assert result.exit_code == 0, result.output
        assert "heart [left]" in result.output
    told = json.loads(vessa(target, "info", "--json").stdout)
    assert (told["model_name"], told["banks"]) == ("nano", ["cardiac", "brain"])
    result = vessa(target, "templates", "list")
    assert "scan [/b]" in result.output
    assert "seen [/] from the front" in result.output


def test_a_wrong_volume_fails_alone(servicer: Notes, target: str, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    write_volume(folder / "good.nii.gz", 0)
    nib.save(nib.Nifti1Image(scene(1, (20, 7, 3)), AFFINE), folder / "bad.nii.gz")
    servicer.refused = 7
    result = vessa(target, "label", folder, "-o", out)
    assert "1 labelled, 0 there already, 1 failed" in result.output
    assert result.exit_code == 1
    again = json.loads(vessa(target, "label", folder, "-o", out, "--json").stdout)
    assert again.items() >= {"labelled": 0, "there_already": 1, "failed": 1}.items()
    assert (out / "good_pseudo.nii.gz").is_file()


@pytest.mark.parametrize("by_option", [True, False])
def test_every_command_names_its_bank(
    servicer: Notes, target: str, tmp_path: Path, by_option: bool
) -> None:
    volume, image = tmp_path / "v.nii.gz", tmp_path / "in" / "one.png"
    write_volume(volume, 0)
    write_picture(image, 1)
    Image.fromarray(scene(1) % 2).save(tmp_path / "in" / "one_gt.png")
    commands = [
        ("segment", volume, "-o", tmp_path),
        ("segment", image, "-o", tmp_path),
        ("label", image.parent, "-o", tmp_path / "out"),
        ("templates", "add", image, "-c", "disc"),
        ("templates", "list"),
        ("templates", "remove", "abc"),
        ("info",),
    ]
    for command in commands:
        if by_option:
            result = vessa(target, *command, "--bank", "brain")
        else:
            result = vessa(target, *command, VESSA_CLIENT_BANK="brain")
        assert result.exit_code == 0, result.output
    assert len(servicer.banks) >= len(commands)
    assert set(servicer.banks) == {"brain"}


def test_info_shows_what_the_server_runs_on(target: str) -> None:
    shown = vessa(target, "info").output
    for words in (
        "triton on cuda:0, bfloat16, 3072 MiB of weights",
        "cardiac, brain",
        "version policy-7, with the rules rule one, rule two",
        "500 million",
    ):
        assert words in shown


def test_a_token_that_cannot_be_sent_is_refused_without_showing_it(target: str) -> None:
    result = vessa(target, "info", VESSA_TOKEN="geheim-ü")
    assert result.exit_code == 2
    assert "character 8" in result.output
    assert "geheim" not in result.output
