"""DICOM series as volumes, and segmentations of them, against independent readers."""

from __future__ import annotations

import itertools
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK
from highdicom.seg import segread
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.uid import generate_uid

from support_client import result
from support_dicom import SHIPPED, VOXELS_ZRC, write_series
from vessa_client import ClassResult, files
from vessa_client.results import write_labels


def itk(path: Path) -> SimpleITK.Image:
    """A series as ITK reads it."""
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(path)))
    return reader.Execute()


def in_world(image: files.ImageFile, index: tuple[int, int, int]) -> np.ndarray[Any, Any]:
    """Where a voxel is, in DICOM's axes."""
    assert image.nifti is not None
    place = image.nifti.affine @ [*index, 1]
    return np.array([-place[0], -place[1], place[2]])


angles = st.floats(-40, 40)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    turn=st.tuples(angles, angles, angles),
    order=st.permutations(range(3)),
    sign=st.sampled_from([1, -1]),
    tilt=st.floats(-2, 2),
)
def test_every_voxel_is_where_itk_sees_it(
    tmp_path_factory: pytest.TempPathFactory,
    turn: tuple[float, float, float],
    order: list[int],
    sign: int,
    tilt: float,
) -> None:
    """Any direction of slices, and gantry tilt (slices that are shifted against each other)."""
    folder = tmp_path_factory.mktemp("series")
    x, y, z = np.radians(turn)
    turned = (
        np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
        @ np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
        @ np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    )[:, order]
    row, column = turned[:, 0], sign * turned[:, 1]
    step = 4 * np.cross(row, column) + tilt * column
    write_series(folder, along=(row, column), step=step)
    image = files.read(folder)
    values = {int(v): np.array(i) for i, v in np.ndenumerate(image.pixels)}
    ours = dict(zip(image.pixels.ravel().tolist(), np.ndindex(image.pixels.shape), strict=True))
    assert len(values) > 400
    direction = np.stack([row, column], axis=1)
    for z_, r, c in itertools.product((0, 2, 4), (0, 11), (0, 8)):
        value = int(VOXELS_ZRC[z_, r, c])
        if np.count_nonzero(value == VOXELS_ZRC) > 1:
            continue
        expected = np.array([-20, 30, 7]) + z_ * step + direction @ [c * 0.75, r * 1.5]
        assert np.allclose(in_world(image, ours[value]), expected, atol=1e-3)


def test_values_and_places_are_those_of_itk(tmp_path: Path) -> None:
    write_series(tmp_path, along=((0, 1, 0), (0, 0, -1)), RescaleSlope="2.5", RescaleIntercept="-9")
    image, reference = files.read(tmp_path), itk(tmp_path)
    assert image.axis == 0
    assert image.depth == 5
    for index in np.ndindex(image.pixels.shape):
        place = reference.TransformPhysicalPointToIndex(in_world(image, index).tolist())
        assert image.pixels[index] == pytest.approx(reference[place])


def test_labels_come_out_where_the_image_is(tmp_path: Path) -> None:
    """As NIfTI for ITK, and as a segmentation for highdicom, with its sources."""
    written = write_series(tmp_path / "scan", along=((0, 1, 0), (0, 0, -1)))
    image = files.read(tmp_path / "scan")
    planes = [plane.astype(int) for plane in image.slices()]
    labels = [
        ((plane > 3000) + (plane > 3500).astype(np.uint8)).astype(np.uint8) for plane in planes
    ]
    target = files.output_path(tmp_path, tmp_path / "scan", "_pseudo")
    assert target.name == "scan_pseudo.nii.gz"
    files.write_labels(target, labels, image)
    scan, found = itk(tmp_path / "scan"), SimpleITK.ReadImage(str(target))
    for z, r, c in np.ndindex(VOXELS_ZRC.shape):
        place = scan.TransformIndexToPhysicalPoint((c, r, z))
        value = scan[c, r, z]
        assert found[found.TransformPhysicalPointToIndex(place)] == (value > 3000) + (value > 3500)
    seg = tmp_path / "scan_pseudo.dcm"
    files.write_segmentation(seg, labels, image, ["liver", "bright spot"], model="nano")
    read = segread(seg)
    assert {s.SegmentLabel for s in read.SegmentSequence} == {"liver", "bright spot"}
    assert read.get_segment_description(1).segmented_property_type.value == "10200004"
    sources = {str(pydicom.dcmread(f).SOPInstanceUID): f for f in written}
    masks = read.get_pixels_by_source_instance(
        list(sources), combine_segments=True, ignore_spatial_locations=True
    )
    for path, mask in zip(sources.values(), masks, strict=True):
        plane = pydicom.dcmread(path).pixel_array
        assert np.array_equal(mask, (plane > 3000).astype(int) + (plane > 3500))


def test_a_zip_and_a_folder_are_the_same(tmp_path: Path) -> None:
    written = write_series(tmp_path / "a")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("README.txt", "not DICOM")
        for file in written:
            archive.write(file, f"deep/{file.name}")
    one, other = files.read(tmp_path / "a"), files.read(tmp_path / "b.zip")
    assert np.array_equal(one.pixels, other.pixels)
    assert one.same_geometry(other)


def test_bright_is_bright(tmp_path: Path) -> None:
    write_series(tmp_path, PhotometricInterpretation="MONOCHROME1", BitsStored=12, HighBit=11)
    pixels = files.read(tmp_path).pixels
    assert np.array_equal(np.sort(pixels.ravel()), np.sort(4095 - VOXELS_ZRC.astype(int).ravel()))


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("missing", r"1 slices are missing between IM\d+ and IM\d+"),
        ("doubled", r"2 images at one place \(.*\): doubled slices"),
        ("mixed", r"2 series: .*one folder for each"),
        ("size", r"slices of several sizes"),
        ("localizer", r"not parallel"),
        ("broken", r"cannot be read|no DICOM"),
        ("short", r"pixels cannot be decoded"),
        ("empty", r"no DICOM"),
    ],
)
def test_what_is_no_volume_is_named(tmp_path: Path, what: str, said: str) -> None:
    written = write_series(tmp_path)
    if what == "missing":
        written[2].unlink()
    elif what == "doubled":
        copy = pydicom.dcmread(written[2])
        copy.SOPInstanceUID = generate_uid()
        copy.save_as(tmp_path / "IM9999")
    elif what == "mixed":
        write_series(tmp_path, names="OTHER{:04d}")
    elif what == "size":
        write_series(
            tmp_path,
            VOXELS_ZRC[:1, :8],
            uid=pydicom.dcmread(written[0]).SeriesInstanceUID,
            names="X{}",
        )
    elif what == "localizer":
        uid = pydicom.dcmread(written[0]).SeriesInstanceUID
        write_series(tmp_path, VOXELS_ZRC[:1], uid=uid, names="X{}", along=((0, 1, 0), (0, 0, -1)))
    elif what == "broken":
        for file in written:
            file.write_bytes(file.read_bytes()[:300])
    elif what == "short":
        written[0].write_bytes(written[0].read_bytes()[:-20])
    else:
        for file in written:
            file.unlink()
        (tmp_path / "x.dcm").write_bytes(b"")
    with pytest.raises(files.FileError, match=said) as caught:
        files.read(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_film_is_read_by_its_frame(tmp_path: Path) -> None:
    """Several images at each place, told apart by their time."""
    uid = generate_uid()
    for time in range(3):
        write_series(
            tmp_path,
            VOXELS_ZRC + time,
            uid=uid,
            names=f"T{time}_{{}}",
            TemporalPositionIdentifier=time + 1,
        )
    with pytest.raises(files.FileError, match=r"3 images at each place.*--frame 0\.\.2"):
        files.read(tmp_path)
    found = [files.read(tmp_path, channel=time).pixels for time in range(3)]
    assert np.array_equal(found[2], found[0] + 2)
    with pytest.raises(files.FileError, match="3 frames or channels, expected more than 3"):
        files.read(tmp_path, channel=3)


@pytest.mark.parametrize("name", ["MR_small_RLE", "MR_small_jp2klossless", "MR_small_bigendian"])
def test_compressed_pixels_are_those_of_the_plain_file(name: str) -> None:
    plain, other = (files.read(SHIPPED / f"{n}.dcm").pixels for n in ("MR_small", name))
    assert np.array_equal(plain, other)


def test_colours_are_kept() -> None:
    image = files.read(SHIPPED / "examples_rgb_color.dcm")
    assert image.slice(0).shape == (240, 320, 3)
    assert np.array_equal(image.slice(0), pydicom.dcmread(image.path).pixel_array)
    film = files.read(SHIPPED / "examples_ybr_color.dcm")
    assert film.depth == 30
    assert film.slice(3).shape == (240, 320, 3)


def test_folders_of_series_and_films_are_found(tmp_path: Path) -> None:
    write_series(tmp_path / "p1")
    write_series(tmp_path / "p2" / "t1", names="1.2.840.{}")
    (tmp_path / "us").mkdir()
    for name in ("a.dcm", "b.dcm"):
        shutil.copy(SHIPPED / "examples_ybr_color.dcm", tmp_path / "us" / name)
    (tmp_path / "us" / "notes.txt").write_text("x")
    found = [str(path.relative_to(tmp_path)) for path in files.find_images(tmp_path)]
    assert found == ["p1", "p2/t1", "us/a.dcm", "us/b.dcm"]
    assert files.find_images(tmp_path / "p1") == [tmp_path / "p1"]


def test_labels_of_a_film_that_no_segmentation_refers_to_are_written(tmp_path: Path) -> None:
    film = files.read(SHIPPED / "examples_ybr_color.dcm")
    labels = np.eye(film.slice(0).shape[0], film.slice(0).shape[1], dtype=np.uint8)
    heart = ClassResult(class_name="heart", predicted_iou=0.9)
    found = [result(labels, labels, (heart,)) for _ in range(film.depth)]
    written, warning = write_labels(tmp_path, film, found, None)
    assert "examples_ybr_color.dcm: no DICOM segmentation can refer to it" in warning
    assert [path.name for path in written] == ["examples_ybr_color_pseudo.nii.gz"]
    assert np.array_equal(files.read(written[0]).slice(7), labels)
