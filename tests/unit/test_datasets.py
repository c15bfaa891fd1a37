"""Data sets of other programs: what they document is what is written, and nothing moves."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import nrrd  # type: ignore[import-untyped]
import numpy as np
import pytest
import SimpleITK
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from typer.testing import CliRunner, Result

from support_client import result
from support_dicom import VOXELS_ZRC, write_series
from vessa_client import AnyArray, ClassResult, UInt8Array, files
from vessa_client.annotated import parse
from vessa_client.cli import app
from vessa_client.datasets import coco
from vessa_client.records import Records, Settings
from vessa_client.results import Results

# Oblique, from left to right, and with slices apart.
TURN = 0.2
AFFINE = np.array(
    [
        [-1.5 * np.cos(TURN), 1.5 * np.sin(TURN), 0, 12],
        [1.5 * np.sin(TURN), 1.5 * np.cos(TURN), 0, -30],
        [0, 0, 5, 7],
        [0, 0, 0, 1],
    ]
)
SHAPE = (9, 7, 4)
CT = ("--channel", "CT")
# pycocotools 2.0 of the mask in the test below.
DISC = (
    "01`:6^F6K4XOI9d0O1O1O1O100O100O10000O10000000000001O00001O001O001O1O1O1O2CEI=3EM>ME3h0"
    "0000000000000"
)


def vessa(*words: object) -> Result:
    return CliRunner().invoke(app, ["export", *map(str, words)])


def exported(*words: object) -> str:
    result = vessa(*words)
    assert result.exit_code == 0, result.output
    return result.stdout.replace("\n", "")


def values(seed: int, shape: tuple[int, ...] = SHAPE) -> AnyArray:
    return np.random.default_rng(seed).integers(-1000, 1000, shape).astype(np.int16)


def labels_of(shape: tuple[int, ...] = SHAPE, *, most: int = 2) -> UInt8Array:
    labels = np.zeros(shape, np.uint8)
    labels[1:3, 2:5] = 1
    labels[4:6, 1:3] = most
    return labels


def scan(path: Path, seed: int, labels: AnyArray | None = None) -> Path:
    """Writes a NIfTI volume, and its labels beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values(seed), AFFINE), path)
    if labels is not None:
        own = path.with_name(path.name.replace(".nii", "_gt.nii"))
        nib.save(nib.Nifti1Image(labels, AFFINE), own)
    return path


def drawing(path: Path, pixels: AnyArray, labels: AnyArray | None = None) -> Path:
    """Writes a picture, and its labels beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    if labels is not None:
        Image.fromarray(labels).save(path.with_name(f"{path.stem}_gt.png"))
    return path


def described(folder: Path) -> dict[str, Any]:
    """What ``dataset.json`` says, after a check of all that nnU-Net documents of its format."""
    assert re.fullmatch(r"Dataset\d{3}_\w+", folder.name)
    facts: dict[str, Any] = json.loads((folder / "dataset.json").read_text())
    ending = facts["file_ending"]
    assert list(facts["channel_names"]) == [str(i) for i in range(len(facts["channel_names"]))]
    assert facts["labels"]["background"] == 0
    assert sorted(facts["labels"].values()) == list(range(len(facts["labels"])))
    read: Any = SimpleITK.ReadImage
    own = {f.name for f in (folder / "labelsTr").iterdir()}
    assert {f.name for f in (folder / "imagesTr").iterdir()} == {
        f"{name.removesuffix(ending)}_0000{ending}" for name in own
    }
    assert len(own) == facts["numTraining"]
    for name in own:
        labels = read(str(folder / "labelsTr" / name))
        image = read(str(folder / "imagesTr" / f"{name.removesuffix(ending)}_0000{ending}"))
        assert labels.GetSize() == image.GetSize()
        assert labels.GetNumberOfComponentsPerPixel() == 1
        for where in ("Spacing", "Origin", "Direction"):
            assert np.allclose(getattr(labels, f"Get{where}")(), getattr(image, f"Get{where}")())
        found = np.unique(SimpleITK.GetArrayFromImage(labels))
        assert set(found.tolist()) <= set(facts["labels"].values())
    for file in (folder / "imagesTs").glob("*"):
        assert file.name.endswith(f"_0000{ending}")
    return facts


def test_volumes_stay_where_they_are_for_nnunet(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "raw" / "Dataset501_Heart"
    labels = labels_of(most=7)
    scan(source / "a" / "scan.nii.gz", 1, labels)
    scan(source / "b" / "scan.nii", 2, labels)
    scan(source / "b" / "ü [x] .1.nii.gz", 3)
    lps = np.diag([-1.0, -1, 1, 1]) @ AFFINE
    header = {
        "space": "left-posterior-superior",
        "space directions": lps[:3, :3].T,
        "space origin": lps[:3, 3],
    }
    nrrd.write(str(source / "c.nrrd"), values(4).astype(np.float64) / 8, header)
    # Labels lie where the image does, but are stored in another order.
    turned = nib.Nifti1Image(labels, AFFINE).as_reoriented(np.array([[2, -1], [0, 1], [1, 1]]))
    nib.save(turned, source / "c_gt.nii.gz")
    said = exported("nnunet", source, "-c", "7=wall", "-c", "1=cavity", *CT, "-o", out)
    assert f"3 with labels, 1 without (in imagesTs): {out}" in said
    facts = described(out)
    assert facts["labels"] == {"background": 0, "wall": 1, "cavity": 2}
    assert facts["channel_names"] == {"0": "CT"}
    assert [f.name for f in (out / "imagesTs").iterdir()] == ["b_ü_x_1_0000.nii.gz"]
    expected = np.select([labels == 7, labels == 1], [1, 2])
    for name, voxels in (
        ("a_scan", values(1)),
        ("b_scan", values(2)),
        ("c", values(4).astype(float) / 8),
    ):
        image = nib.load(out / "imagesTr" / f"{name}_0000.nii.gz")
        assert np.array_equal(image.get_fdata(), voxels)
        assert np.allclose(image.affine, AFFINE, atol=1e-5)
        found = nib.load(out / "labelsTr" / f"{name}.nii.gz")
        assert np.array_equal(found.get_fdata(), expected)
    assert facts["sources"]["b_scan"] == str(source / "b" / "scan.nii")
    assert [f.name for f in out.parent.iterdir()] == [out.name]


def test_stored_scales_and_frames_are_kept_for_nnunet(tmp_path: Path) -> None:
    film = np.stack([values(1), values(2)], axis=3)
    image = nib.Nifti1Image(film, AFFINE)
    image.header.set_slope_inter(0.5, -3)
    nib.save(image, tmp_path / "film.nii")
    nib.save(nib.Nifti1Image(labels_of(), AFFINE), tmp_path / "film_gt.nii")
    words = ("nnunet", tmp_path / "film.nii", "-c", "a", "-c", "b", *CT)
    out = tmp_path / "Dataset001_Film"
    assert "along the fourth with --frame" in vessa(*words, "-o", out).stderr
    exported(*words, "--frame", 1, "-o", out)
    described(out)
    found = nib.load(out / "imagesTr" / "film_0000.nii.gz").get_fdata()
    assert np.allclose(found, nib.load(tmp_path / "film.nii").get_fdata()[..., 1])


def test_dicom_says_its_channel_and_becomes_nifti(tmp_path: Path) -> None:
    for name in ("p1", "p2"):
        write_series(tmp_path / "in" / name, Modality="CT", RescaleSlope=1, RescaleIntercept=-1024)
    series = files.read(tmp_path / "in" / "p1")
    slices = [labels_of(plane.shape, most=1) for plane in series.slices()]
    files.write_labels(tmp_path / "labels" / "p1_gt.nii.gz", slices, series)
    out = tmp_path / "Dataset002_CT"
    exported("nnunet", tmp_path / "in", tmp_path / "labels", "-c", "organ", "-o", out)
    assert described(out)["channel_names"] == {"0": "CT"}
    reader: Any = SimpleITK.ImageSeriesReader()
    for part, name in (("Tr", "p1"), ("Ts", "p2")):
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "in" / name)))
        original = reader.Execute()
        found: Any = SimpleITK.ReadImage(str(out / f"images{part}" / f"{name}_0000.nii.gz"))
        assert np.array_equal(SimpleITK.GetArrayFromImage(found), VOXELS_ZRC - 1024.0)
        for where in ("Spacing", "Origin", "Direction"):
            expected = getattr(original, f"Get{where}")()
            assert np.allclose(getattr(found, f"Get{where}")(), expected, atol=1e-4)
    write_series(tmp_path / "in" / "p3")
    out = tmp_path / "Dataset003_CT"
    said = vessa("nnunet", tmp_path / "in", tmp_path / "labels", "-c", "organ", "-o", out).stderr
    assert "p3: is MR, but" in said
    assert not out.exists()


@pytest.mark.parametrize("kind", ["uint8", "uint16", "RGB"])
def test_pictures_are_png_for_nnunet(tmp_path: Path, kind: str) -> None:
    shape = (6, 8, 3) if kind == "RGB" else (6, 8)
    pixels = (values(1, shape) % 251).astype(np.uint16 if kind == "uint16" else np.uint8)
    pixels = pixels * 200 if kind == "uint16" else pixels
    drawing(tmp_path / "in" / "p.tif", pixels, labels_of((6, 8), most=1) * 255)
    out = tmp_path / "Dataset003_Cells"
    exported("nnunet", tmp_path / "in", "-c", "cell", "-o", out)
    facts = described(out)
    assert facts["file_ending"] == ".png"
    assert list(facts["channel_names"].values()) == (["R", "G", "B"] if kind == "RGB" else ["grey"])
    found = np.asarray(Image.open(out / "imagesTr" / "p_0000.png"))
    assert found.dtype == pixels.dtype
    assert np.array_equal(found, pixels)


def _elsewhere(folder: Path) -> None:
    nib.save(nib.Nifti1Image(labels_of(), AFFINE + np.eye(4)), folder / "z_gt.nii.gz")


def _mixed(folder: Path) -> None:
    drawing(folder / "y.png", np.zeros((9, 7), np.uint8))


def _unnamed(folder: Path) -> None:
    scan(folder / "z.nii.gz", 2, labels_of(most=3))


def _damaged(folder: Path) -> None:
    whole = (folder / "z.nii.gz").read_bytes()
    (folder / "z.nii.gz").write_bytes(whole[: len(whole) // 2])


def _nan(folder: Path) -> None:
    nib.save(nib.Nifti1Image(np.full(SHAPE, np.nan, np.float32), AFFINE), folder / "z.nii.gz")


def _colours(folder: Path) -> None:
    rgb = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(rgb, AFFINE), folder / "z.nii.gz")


@pytest.mark.parametrize(
    ("spoil", "program", "said"),
    [
        (_elsewhere, "nnunet monai coco", "z_gt.nii.gz: 9 x 7 x 4 voxels.*resample the labels"),
        (_unnamed, "nnunet coco", "--class: .*z_gt.nii.gz has labels 1, 3, named are 1, 2"),
        (_unnamed, "monai", "--class: .*z_gt.nii.gz has labels 3 that are not.*-c 3=NAME"),
        (_damaged, "nnunet monai coco", "z.nii.gz: cannot be read"),
        (_nan, "nnunet monai coco", "z.nii.gz: has NaN or infinite values"),
        (_mixed, "nnunet", "y.png: a grey picture, but .*a.nii.gz is a volume; .*folder of its"),
        (_colours, "nnunet", "z.nii.gz: a volume of colours"),
    ],
)
def test_an_export_is_whole_or_names_the_file(
    tmp_path: Path, spoil: Any, program: str, said: str
) -> None:
    source, out = tmp_path / "in", tmp_path / "raw" / "Dataset004_X"
    for name in ("a", "z"):
        scan(source / f"{name}.nii.gz", 1, labels_of())
    spoil(source)
    for word in program.split():
        more = CT if word == "nnunet" else ()
        result = vessa(word, source, "-c", "a", "-c", "b", *more, "-o", out)
        assert result.exit_code == 1, result.output
        (line,) = (one for one in result.stderr.splitlines() if one.startswith("Error"))
        assert re.search(said, line), line
        assert not out.parent.exists() or not list(out.parent.iterdir())


def test_wrong_options_say_how_to_mend_them(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "Dataset005_X"
    scan(source / "a.nii.gz", 1, labels_of())
    words = ("nnunet", source, "-c", "one", "-c", "two", *CT, "-o")
    assert "such as heart/Dataset501_Heart" in vessa(*words, "heart").stderr
    missing = vessa("nnunet", tmp_path / "no", "-c", "one", *CT, "-o", out).stderr
    assert "no: no such file or folder" in missing
    assert "--class: missing" in vessa("nnunet", source, *CT, "-o", out).stderr
    ignored = vessa("nnunet", source, "-c", "ignore", "-c", "two", *CT, "-o", out).stderr
    assert "--class: 'ignore' means something else to nnU-Net" in ignored
    unsaid = vessa("nnunet", source, "-c", "one", "-c", "two", "-o", out).stderr
    assert re.search("--channel: missing, and .*a.nii.gz does not say.*CT for Hounsfield", unsaid)
    no_records = vessa(*words, out, "--least-iou", 0.5).stderr
    assert "--least-iou: no labelled.json in" in no_records
    assert vessa(*words, out, "--least-iou", 2).exit_code == 2
    assert "no label file (NAME_seg)" in vessa(*words, out, "--labels-suffix", "_seg").stderr
    assert not out.exists()
    exported(*words, out)
    again = vessa(*words, out).stderr
    assert "is there already, expected a new folder" in again
    # Two scans of one name in two folders, and one label file for both.
    for name in ("p1", "p2"):
        scan(tmp_path / "two" / name / "a.nii.gz", 1)
    shared = vessa("nnunet", tmp_path / "two", source, *words[2:], tmp_path / "Dataset6_").stderr
    assert re.search("a_gt.nii.gz: is the label file of both .*p1.* and .*p2", shared)


def labelled(folder: Path, out: Path, ious: dict[str, float], names: list[str]) -> None:
    """What ``vessa label`` leaves of volumes that were answered with these predicted IoU."""
    scheme = parse(names)
    settings = Settings((), (), "", "b", "d", "1")
    records = Records(out, {})
    results = Results(folder, out, scheme, settings, overwrite=False, records=records, templates=())
    for name, iou in ious.items():
        image = files.read(folder / name)
        answers = [
            result(
                labels_of(plane.shape),
                np.zeros(plane.shape, np.uint8),
                tuple(ClassResult(class_name=n, predicted_iou=iou) for n in scheme.names),
                slice_index=index,
            )
            for index, plane in enumerate(image.slices())
        ]
        results.write(image, answers)


def test_pseudo_labels_that_are_not_sure_are_left_out(tmp_path: Path) -> None:
    source, pseudo = tmp_path / "in", tmp_path / "in" / "pseudo"
    for seed, name in enumerate(("deep/a", "b", "edited", "never")):
        scan(source / f"{name}.nii.gz", seed)
    ious = {"deep/a.nii.gz": 0.9, "b.nii.gz": 0.6, "edited.nii.gz": 0.1}
    labelled(source, pseudo, ious, ["2=wall", "5=cavity"])
    one = nib.load(pseudo / "edited_pseudo.nii.gz")
    nib.save(nib.Nifti1Image(np.full(SHAPE, 5, np.uint8), one.affine), one.get_filename())
    words = ("nnunet", source, pseudo, *CT, "-o")
    said = exported(*words, tmp_path / "Dataset001_All")
    assert "3 with labels, 1 without (in imagesTs)" in said
    facts = described(tmp_path / "Dataset001_All")
    assert facts["labels"] == {"background": 0, "wall": 1, "cavity": 2}
    found = nib.load(tmp_path / "Dataset001_All" / "labelsTr" / "deep_a.nii.gz").get_fdata()
    stored = nib.load(pseudo / "deep" / "a_pseudo.nii.gz").get_fdata()
    assert np.array_equal(found, np.select([stored == 2, stored == 5], [1, 2]))
    assert np.unique(found).tolist() == [0, 1, 2]
    said = exported(*words, tmp_path / "Dataset002_Sure", "--least-iou", 0.7)
    assert "2 with labels, 2 without (in imagesTs, 1 of these not sure enough)" in said
    names = {f.name for f in (tmp_path / "Dataset002_Sure" / "labelsTr").iterdir()}
    assert names == {"deep_a.nii.gz", "edited.nii.gz"}
    # Names are those that the labels were made with.
    swapped = vessa(*words, tmp_path / "Dataset003_X", "-c", "2=cavity", "-c", "5=wall").stderr
    assert "--class: 2=cavity, 5=wall, but the pseudo-labels of" in swapped
    assert "are 2=wall, 5=cavity; leave --class out" in swapped
    exported(*words, tmp_path / "Dataset003_Wall", "-c", "2=wall")
    assert described(tmp_path / "Dataset003_Wall")["labels"] == {"background": 0, "wall": 1}


def test_a_threshold_that_leaves_nothing_says_what_is_there(tmp_path: Path) -> None:
    source, pseudo = scan(tmp_path / "in" / "a.nii.gz", 1).parent, tmp_path / "pseudo"
    labelled(source, pseudo, {"a.nii.gz": 0.5}, ["a", "b"])
    out = tmp_path / "list.json"
    none = vessa("monai", source, pseudo, "--least-iou", 0.9, "-o", out)
    assert "0.9 leaves none of 1 pseudo-labels, the surest has 0.500" in none.stderr
    other = scan(tmp_path / "other" / "x.nii.gz", 1).parent
    assert "no pseudo-label of any of 1 images" in vessa("monai", other, pseudo, "-o", out).stderr
    assert not out.exists()


def test_monai_loads_what_its_datalist_names(tmp_path: Path) -> None:
    from monai.data import load_decathlon_datalist
    from monai.transforms import LoadImaged

    source, out = tmp_path / "in [ü]", tmp_path / "lists" / "datalist.json"
    labels = labels_of(most=4)
    scan(source / "a" / "scan 1.nii.gz", 1, labels)
    scan(source / "b" / "scan 1.nii.gz", 2)
    exported("monai", source, "-c", "4=wall", "-c", "1=cavity", "-o", out)
    (pair,) = load_decathlon_datalist(out, True, "training")
    (alone,) = load_decathlon_datalist(out, True, "testing")
    loaded = LoadImaged(["image", "label"])(pair)
    assert np.array_equal(loaded["image"], values(1))
    assert np.array_equal(loaded["label"], labels)
    assert np.allclose(loaded["image"].affine, loaded["label"].affine)
    assert np.array_equal(LoadImaged(["image"])(alone)["image"], values(2))
    content = json.loads(out.read_text())
    assert content["labels"] == {"0": "background", "1": "cavity", "4": "wall"}
    assert content["training"][0]["image"] == "../in [ü]/a/scan 1.nii.gz"
    again = vessa("monai", source, "-c", "4=wall", "-c", "1=cavity", "-o", out)
    assert "is there already, expected a new file" in again.stderr


def decoded(segmentation: dict[str, Any]) -> AnyArray:
    """A mask of COCO's compressed run lengths, by a reading of the format apart from ours."""
    lengths: list[int] = []
    digits: list[int] = []
    for character in segmentation["counts"]:
        digits.append(ord(character) - 48)
        if digits[-1] < 32:
            value = sum((digit % 32) * 32**place for place, digit in enumerate(digits))
            if digits[-1] & 16:
                value -= 32 ** len(digits)
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            digits = []
    height, width = segmentation["size"]
    flat = np.repeat(np.arange(len(lengths)) % 2, lengths)
    return flat.reshape(width, height).T.astype(bool)


@given(st.data())
def test_run_lengths_are_read_again(data: st.DataObject) -> None:
    mask = data.draw(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=40)))
    assert np.array_equal(decoded(coco.run_lengths(mask)), mask)


def test_run_lengths_are_those_of_pycocotools() -> None:
    disc = np.hypot(*np.ogrid[-20:20, -25:25]) < 17.3
    disc[30:, 10:] = True
    disc[0, 0] = True
    assert coco.run_lengths(disc)["counts"] == DISC


def test_coco_has_a_mask_of_each_class_of_each_picture(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "coco"
    grey = (values(1, (6, 8)) % 251).astype(np.uint8)
    drawing(source / "a" / "p.png", grey, labels_of((6, 8)))
    rgb = (values(2, (6, 8, 3)) % 251).astype(np.uint8)
    drawing(source / "b" / "p.png", rgb, np.zeros((6, 8), np.uint8))
    drawing(source / "never.png", grey)
    volume = labels_of()
    volume[..., 2] = 0
    scan(source / "v.nii.gz", 3, volume)
    said = exported("coco", source, "-c", "wall", "-c", "cavity", "--axis", 2, "-o", out)
    assert "3 with labels, 1 without (left out)" in said
    content = json.loads((out / "annotations.json").read_text())
    assert [(c["id"], c["name"]) for c in content["categories"]] == [(1, "wall"), (2, "cavity")]
    images = {image["id"]: image for image in content["images"]}
    sources = {image["file_name"]: image for image in content["images"]}
    assert list(sources) == ["a_p.png", "b_p.png", "v_0000.png", "v_0001.png", "v_0003.png"]
    assert {f.name for f in (out / "images").iterdir()} == set(sources)
    for name, pixels in (("a_p.png", grey), ("b_p.png", rgb)):
        assert np.array_equal(np.asarray(Image.open(out / "images" / name)), pixels)
    seen: dict[str, list[int]] = {name: [] for name in sources}
    for found in content["annotations"]:
        image = images[found["image_id"]]
        source_file = files.read(Path(image["source"]), axis=2)
        own = files.find_label(source_file.path)
        assert own is not None
        plane = files.read(own, axis=2, labels=True).slice(image["slice"])
        expected = plane == found["category_id"]
        assert np.array_equal(decoded(found["segmentation"]), expected)
        assert found["area"] == expected.sum()
        left, top, width, height = found["bbox"]
        assert expected[top : top + height, left : left + width].sum() == expected.sum()
        assert expected[top].any()
        assert expected[:, left].any()
        assert expected[:, left + width - 1].any()
        assert expected[top + height - 1].any()
        assert (image["height"], image["width"]) == expected.shape
        written = files.read(out / "images" / image["file_name"]).pixels
        assert written.shape[:2] == expected.shape
        seen[image["file_name"]].append(found["category_id"])
    assert seen == {name: [] if name == "b_p.png" else [1, 2] for name in sources}


@pytest.mark.parametrize("there", [False, True])
def test_a_new_folder_is_whole_or_not_there(tmp_path: Path, there: bool) -> None:
    out = tmp_path / "out"
    if there:
        out.mkdir()
    before = sorted(tmp_path.rglob("*"))

    def stopped() -> None:
        with files.new_folder(out) as folder:
            files.write_text(folder / "a.txt", "")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert sorted(tmp_path.rglob("*")) == before
    with files.new_folder(out) as folder:
        files.write_text(folder / "deep" / "a.txt", "")
        files.write_text(folder / "b.txt", "")
        assert not (out / "b.txt").exists()
    assert sorted(tmp_path.rglob("*")) == [out, out / "b.txt", out / "deep", out / "deep" / "a.txt"]
    assert out.stat().st_mode & 0o777 == (out / "deep").stat().st_mode & 0o777
    with pytest.raises(files.FileError, match="is there already"), files.new_folder(out):
        pass


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.TIFF"])
def test_a_picture_is_of_the_form_that_its_name_says(tmp_path: Path, name: str) -> None:
    pixels = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
    files.write_picture(tmp_path / name, pixels)
    with Image.open(tmp_path / name) as written:
        assert written.format == ("PNG" if name == "x.png" else "TIFF")
        assert np.array_equal(np.asarray(written), pixels)
    with pytest.raises(files.FileError, match=r"expected a name that ends in \.png"):
        files.write_picture(tmp_path / "x.jpg", pixels)
