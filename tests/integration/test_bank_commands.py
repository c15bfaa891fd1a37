"""Commands around a bank: what to expect of it, banks by name, a project's file, in and out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from support import CLASSES, RunningServer, engine_of, picture, running
from vessa_client import (
    SegmentationResult,
    UInt8Array,
    VessaClient,
    VolumeRequest,
    checking,
    files,
)
from vessa_client.cli import app
from vessa_server.model.vessa import Vessa

NAMES = ("disc", "bar")
AFFINE = np.diag([1.0, 1.0, 8.0, 1.0])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model: Vessa) -> Iterator[RunningServer]:
    with running(engine_of(tmp_path_factory.mktemp("server"), model=model, templates=0)) as own:
        yield own


@pytest.fixture
def bank(request: pytest.FixtureRequest) -> str:
    """A name that no other test has."""
    return str(request.node.name)[-60:].strip("_")


def vessa(server: RunningServer, *words: object) -> Result:
    return CliRunner().invoke(app, [*map(str, words), "--server", server.grpc])


def add(client: VessaClient, bank: str, scan: str, seeds: range, *, only: int = 0) -> None:
    """Slices of a scan; ``only`` one class is annotated."""
    for index, seed in enumerate(seeds):
        image, labels = picture(seed)
        labels = np.where(labels == only, labels, 0).astype(np.uint8) if only else labels
        client.add_template(image, labels, CLASSES, name=f"{scan} slice {index}", bank=bank)


def volume(path: Path, seeds: range) -> UInt8Array:
    """Writes a scan with labels beside it, and returns these."""
    pixels, labels = (np.stack(parts, axis=2) for parts in zip(*map(picture, seeds), strict=True))
    for data, suffix in ((pixels, ""), (labels, "_gt")):
        nib.save(nib.Nifti1Image(data, AFFINE), path / f"scan{suffix}.nii.gz")
    return labels


def test_each_scan_is_segmented_by_the_others_alone(server: RunningServer, bank: str) -> None:
    with VessaClient(server.grpc) as client:
        for scan, seeds in (("a", range(2)), ("b", range(10, 12)), ("c", range(20, 21))):
            add(client, bank, scan, seeds)
        add(client, bank, "only bar", range(30, 32), only=2)
    result = vessa(server, "check", "--json", "--bank", bank)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert {one["scan"] for one in found["scans"]} == {"a", "b", "c", "only bar"}
    assert [one["mean"] for one in found["scans"]] == sorted(s["mean"] for s in found["scans"])
    assert sorted(found["by_others"]) == ["1", "3"]
    with VessaClient(server.grpc) as client:
        for one in found["scans"]:
            expected = _held_out(client, bank, one["scan"])
            assert one["dice"] == pytest.approx(expected)
    means = [one["dice"].get("bar") for one in found["scans"]]
    assert found["classes"]["bar"] == pytest.approx(np.mean(means))


def _held_out(client: VessaClient, bank: str, scan: str) -> dict[str, float]:
    """The same by plain counting: Dice of each class that the scan shows."""
    templates = client.list_templates(bank=bank).templates
    own = [t for t in templates if t.name.startswith(f"{scan} slice")]
    contents = [client.get_template(t.template_id, bank=bank) for t in own]
    request = VolumeRequest(
        slices=tuple(content.image for content in contents),
        class_names=NAMES,
        template_ids=tuple(t.template_id for t in templates if t not in own),
        bank=bank,
    )
    results = [r for r in client.segment_volume(request) if isinstance(r, SegmentationResult)]
    answers = {result.slice_index: result.labels for result in results}
    dice = {}
    for value, name in enumerate(NAMES, start=1):
        counted = np.zeros(3, int)  # both, truth, answer
        for index, content in enumerate(contents):
            shown = content.info.class_names
            truth = content.labels == (shown.index(name) + 1 if name in shown else 99)
            found = answers[index] == value
            counted += [np.count_nonzero(pixels) for pixels in (truth & found, truth, found)]
        if counted[1]:
            dice[name] = float(2 * counted[0] / (counted[1] + counted[2]))
    return dice


def test_a_class_that_one_scan_shows_cannot_be_checked_and_is_said(
    server: RunningServer, bank: str, tmp_path: Path
) -> None:
    with VessaClient(server.grpc) as client:
        add(client, bank, "<b>a</b>", range(2))
        add(client, bank, "b", range(10, 12), only=2)
    result = vessa(server, "check", "--out", tmp_path / "check", "--bank", bank)
    assert result.exit_code == 0, result.output
    assert "Only one scan shows disc: annotate another that does." in result.stdout
    assert "Two scans tell little" in result.stdout
    page = (tmp_path / "check" / "index.html").read_text()
    assert "&lt;b&gt;a" in page
    assert "<b>" not in page
    found = json.loads((tmp_path / "check" / "check.json").read_text())
    first = next(one for one in found["scans"] if one["scan"] == "<b>a</b>")
    assert first["dice"]["disc"] is None
    assert first["mean"] == pytest.approx(first["dice"]["bar"] / 2)
    for number in (1, 2):
        assert files.read(tmp_path / "check" / "pictures" / f"{number}.png").slice(0).shape[1] > 100


def test_scans_of_one_patient_are_held_out_together(server: RunningServer, bank: str) -> None:
    with VessaClient(server.grpc) as client:
        for scan, first in (("p1_systole", 0), ("p1_diastole", 10), ("p2", 20)):
            add(client, bank, scan, range(first, first + 1))
    result = vessa(server, "check", "--json", "--bank", bank, "--patient", r"(p\d+)(_.*)?")
    assert {one["scan"] for one in json.loads(result.stdout)["scans"]} == {"p1", "p2"}
    result = vessa(server, "check", "--bank", bank, "--patient", "(")
    assert result.exit_code == 1
    assert "--patient: '(' is no regular expression" in result.stderr


def test_one_scan_cannot_be_checked(server: RunningServer, bank: str) -> None:
    with VessaClient(server.grpc) as client:
        add(client, bank, "a", range(2))
    result = vessa(server, "check", "--bank", bank)
    assert result.exit_code == 1
    assert "1 annotated scans, expected two or more" in result.stderr


@pytest.mark.parametrize("others", range(1, 8))
def test_few_scans_and_all_of_them_are_compared(others: int) -> None:
    tried = checking.counts(others)
    assert tried == sorted(set(tried))
    assert (tried[0], tried[-1]) == (1, others)


def test_corrected_labels_are_told_and_replace_the_old_ones(
    server: RunningServer, bank: str, tmp_path: Path
) -> None:
    truth = volume(tmp_path, range(3))
    command = ("templates", "add", tmp_path / "scan.nii.gz")
    classes = ("-c", "disc", "-c", "bar", "--bank", bank)
    assert "3 added, 0 there already" in vessa(server, *command, *classes).stdout
    assert "0 added, 3 there already" in vessa(server, *command, *classes).stdout
    label_file = tmp_path / "scan_gt.nii.gz"
    truth[30, 25, 1] = 1 - (truth[30, 25, 1] == 1)
    nib.save(nib.Nifti1Image(truth, AFFINE), label_file)
    refused = vessa(server, *command, *classes)
    assert refused.exit_code == 1
    assert "scan slice 1: the bank has other labels of it (disc by 1 pixels); --replace" in refused.stderr
    with VessaClient(server.grpc) as client:
        assert len(client.list_templates(bank=bank).templates) == 3
        assert "1 added, 1 replaced, 2" in vessa(server, *command, *classes, "--replace").stdout
        (one,) = [t for t in client.list_templates(bank=bank).templates if t.name == "scan slice 1"]
        content = client.get_template(one.template_id, bank=bank)
    assert np.array_equal(content.labels, files.read(label_file, labels=True).slice(1))


def test_another_structure_of_the_same_image_is_added_beside(
    server: RunningServer, bank: str, tmp_path: Path
) -> None:
    image, labels = picture(0)
    for value, name in enumerate(NAMES, start=1):
        Image.fromarray(image).save(tmp_path / "scan.png")
        Image.fromarray((labels == value).astype(np.uint8)).save(tmp_path / "scan_gt.png")
        words = (tmp_path / "scan.png", "-c", name, "--bank", bank)
        result = vessa(server, "templates", "add", *words)
        assert "1 added, 0 there already" in result.stdout, result.output


def test_templates_are_removed_by_scan_or_all_of_them(server: RunningServer, bank: str) -> None:
    with VessaClient(server.grpc) as client:
        add(client, bank, "a", range(2))
        add(client, bank, "b", range(10, 12))
        remove = ("templates", "remove", "--bank", bank)
        assert "give ids, --name SCAN, or --all" in vessa(server, *remove).stderr
        wrong = vessa(server, *remove, "--name", "c")
        assert "no scan 'c', expected one of a, b" in wrong.stderr
        assert f"2 removed; bank '{bank}' has 2" in vessa(server, *remove, "--name", "a").stdout
        assert {t.name[0] for t in client.list_templates(bank=bank).templates} == {"b"}
        assert "2 removed" in vessa(server, *remove, "--all").stdout
        assert not client.list_templates(bank=bank).templates


def test_a_bank_goes_out_and_comes_back_as_it_was(
    server: RunningServer, bank: str, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    with VessaClient(server.grpc) as client:
        add(client, bank, "a/b: c", range(2))
        add(client, bank, "same", range(10, 11))
        add(client, bank, "same", range(11, 12), only=2)
        _, labels = picture(12)
        for kind in ("uint16", "int16", "float32"):
            image = np.asarray(rng.normal(900, 100, labels.shape), kind)
            client.add_template(image, labels, CLASSES, name=kind, bank=bank)
        out = tmp_path / "out"
        result = vessa(server, "bank", "export", out, "--bank", bank)
        assert result.exit_code == 0, result.output
        again = vessa(server, "bank", "export", out, "--bank", bank)
        assert "is there already, expected a new folder" in again.stderr
        back = f"{bank[:50]}-back"
        words = ("--label-names", out / "dataset.json", "--bank", back)
        result = vessa(server, "templates", "add", out, *words)
        assert result.exit_code == 0, result.output
        before, after = (client.list_templates(bank=name) for name in (bank, back))
        assert after.classes == before.classes
        assert {t.template_id for t in after.templates} == {t.template_id for t in before.templates}


def test_damaged_templates_are_named(server: RunningServer, bank: str) -> None:
    with VessaClient(server.grpc) as client:
        add(client, bank, "a", range(2))
        (info, _) = client.list_templates(bank=bank).templates
    assert "2 of 2 templates" in vessa(server, "bank", "verify", "--bank", bank).stdout
    folder = server.engine.banks.get(bank).folder / "templates" / info.template_id
    (file,) = folder.glob("image.*")
    file.write_bytes(file.read_bytes()[:50])
    result = vessa(server, "bank", "verify", "--bank", bank)
    assert result.exit_code == 1
    assert info.template_id in result.stderr
    assert "1 of 2 templates" in result.stdout


def test_a_project_names_bank_server_and_classes(
    server: RunningServer, bank: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path)
    unknown = vessa(server, "bank", "use", bank)
    assert "--create makes it" in unknown.stderr
    made = vessa(server, "bank", "use", bank, "--create", "-c", "disc: Bright.", "-c", "bar")
    assert made.exit_code == 0, made.output
    volume(tmp_path, range(2))
    monkeypatch.chdir(tmp_path / "below")
    result = CliRunner().invoke(app, ["templates", "add", "../scan.nii.gz"])
    assert f"2 added, 0 there already; bank '{bank}' has 2" in result.stdout, result.output
    with VessaClient(server.grpc) as client:
        assert client.list_templates(bank=bank).classes[0].description == "Bright."
    listed = CliRunner().invoke(app, ["bank", "list"], env={"COLUMNS": "200"})
    assert bank in listed.stdout
    there = vessa(server, "bank", "use", bank, "--create")
    assert "is there already" in there.stderr
    # Flags win over the project; so does a file of names over its classes.
    names = tmp_path / "names.json"
    names.write_text('{"labels": {"background": 0, "disc": 1, "bar": 2}}')
    words = ["templates", "add", "../scan.nii.gz", "--label-names", str(names)]
    result = CliRunner().invoke(app, words)
    assert "0 added, 2 there already" in result.stdout, result.output
    assert "--class: missing" in CliRunner().invoke(app, [*words, "-c", "disc"]).stderr
    result = CliRunner().invoke(app, ["templates", "list", "--bank", "nowhere"])
    assert "no bank 'nowhere'" in result.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("bank = ", "vessa.toml: "),
        ("bnak = 'a'", "bnak, expected bank and server"),
        ("bank = 3", "bank, expected bank"),
        ("classes = 'a'", "classes, expected"),
        ("classes = [1]", "classes (a list of texts)"),
    ],
)
def test_a_wrong_project_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str
) -> None:
    (tmp_path / "vessa.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["info"])
    assert result.exit_code == 1
    assert words in result.stderr
    assert "Traceback" not in result.output
