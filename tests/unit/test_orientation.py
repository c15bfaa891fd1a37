"""Volumes are read with axes to the right, front and up, and labels go back as the file lies."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from vessa_client import files

AFFINE = np.diag([1.0, 1.0, 4.0, 1.0])
AFFINE[:3, 3] = [3, -2, 7]
VOXELS = np.random.default_rng(0).integers(0, 200, (7, 9, 5)).astype(np.int16)
ORIENTATIONS = [
    np.array([[axis, sign] for axis, sign in zip(order, signs, strict=True)], dtype=float)
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=lambda o: str(o.astype(int).tolist()))
def test_any_orientation_is_read_as_one_and_written_as_it_was(
    tmp_path: Path, orientation: np.ndarray[tuple[int, int], np.dtype[np.float64]]
) -> None:
    stored = nib.Nifti1Image(VOXELS, AFFINE).as_reoriented(orientation)
    nib.save(stored, tmp_path / "scan.nii.gz")
    read = files.read(tmp_path / "scan.nii.gz")
    assert np.array_equal(read.pixels, VOXELS)
    assert read.axis == 2
    labels = [(slice_.astype(np.int16) > 100).astype(np.uint8) for slice_ in read.slices()]
    files.write_labels(tmp_path / "labels.nii.gz", labels, read)
    written = nib.load(tmp_path / "labels.nii.gz")
    assert np.array_equal(np.asarray(written.dataobj), np.asarray(stored.dataobj) > 100)
    assert np.allclose(written.affine, stored.affine)
    # The same in world coordinates, for an independent library.
    scan, found = (SimpleITK.ReadImage(str(tmp_path / f)) for f in ("scan.nii.gz", "labels.nii.gz"))
    assert np.allclose(scan.GetDirection(), found.GetDirection())
    assert np.allclose(scan.GetOrigin(), found.GetOrigin())


def test_labels_in_another_orientation_are_those_of_the_same_places(tmp_path: Path) -> None:
    flipped = nib.Nifti1Image(VOXELS, AFFINE).as_reoriented(ORIENTATIONS[-1])
    nib.save(nib.Nifti1Image(VOXELS, AFFINE), tmp_path / "scan.nii.gz")
    nib.save(flipped, tmp_path / "labels.nii.gz")
    image = files.read(tmp_path / "scan.nii.gz")
    labels = files.read(tmp_path / "labels.nii.gz", labels=True)
    image.check_same_space(labels)
    assert np.array_equal(labels.pixels, image.pixels)


@pytest.mark.parametrize("change", ["shifted", "other spacing", "other size", "picture"])
def test_labels_that_lie_elsewhere_are_refused(tmp_path: Path, change: str) -> None:
    affine, voxels = AFFINE.copy(), VOXELS
    if change == "shifted":
        affine[0, 3] += 5
    elif change == "other spacing":
        affine[2, 2] = 2
    elif change == "other size":
        voxels = VOXELS[:6]
    nib.save(nib.Nifti1Image(VOXELS, AFFINE), tmp_path / "scan.nii.gz")
    nib.save(nib.Nifti1Image(voxels, affine), tmp_path / "labels.nii.gz")
    image = files.read(tmp_path / "scan.nii.gz")
    if change == "picture":
        files.write_picture(tmp_path / "scan.png", VOXELS[..., 0].astype(np.uint8))
        image = files.read(tmp_path / "scan.png")
    with pytest.raises(files.FileError, match=r"labels\.nii\.gz"):
        image.check_same_space(files.read(tmp_path / "labels.nii.gz", labels=True))


@pytest.mark.parametrize(
    ("shape", "zooms", "axis"),
    [
        ((216, 256, 9), (1.5, 1.5, 10.0), 2),
        ((216, 256, 3), (1.5, 1.5, 0.9), 2),
        ((512, 512, 600), (0.7, 0.7, 0.5), 2),
        ((20, 256, 256), (6.0, 1.0, 1.0), 0),
        ((256, 20, 256), (1.0, 6.0, 1.0), 1),
        ((36, 48, 40), (1.0, 1.0, 1.0), 2),
        ((48, 36, 50), (1.0, 1.0, 1.0), 2),
        ((12, 256, 256), (1.0, 1.0, 1.0), 0),
        ((64, 48, 1), (0.5, 1.0, 1.0), 2),
    ],
)
def test_volumes_are_sliced_as_they_were_acquired(
    shape: tuple[int, ...], zooms: tuple[float, ...], axis: int
) -> None:
    assert files.slice_axis(shape, zooms) == axis


def test_two_affines_that_turn_a_file_differently_are_refused(tmp_path: Path) -> None:
    image = nib.Nifti1Image(VOXELS, AFFINE)
    image.set_sform(AFFINE, 1)
    image.set_qform(np.diag([-1.0, 1.0, 4.0, 1.0]), 1)
    nib.save(image, tmp_path / "scan.nii.gz")
    with pytest.raises(files.FileError, match="sform says RAS, qform LAS"):
        files.read(tmp_path / "scan.nii.gz")
    image.set_qform(np.diag([-1.0, 1.0, 4.0, 1.0]), 0)  # one that does not count
    nib.save(image, tmp_path / "scan.nii.gz")
    assert np.array_equal(files.read(tmp_path / "scan.nii.gz").pixels, VOXELS)


@pytest.mark.parametrize("dtype", ["int64", "uint64", ">i2", ">f4", "float64", "uint8"])
def test_any_numbers_are_read(tmp_path: Path, dtype: str) -> None:
    nib.save(nib.Nifti1Image(VOXELS.astype(dtype), AFFINE, dtype=dtype), tmp_path / "scan.nii.gz")
    assert np.array_equal(files.read(tmp_path / "scan.nii.gz").pixels, VOXELS)
    labels = nib.Nifti1Image((VOXELS % 3).astype(dtype), AFFINE, dtype=dtype)
    nib.save(labels, tmp_path / "labels.nii.gz")
    assert np.array_equal(files.read(tmp_path / "labels.nii.gz", labels=True).pixels, VOXELS % 3)


def test_colours_of_a_volume_are_kept_and_complex_numbers_refused(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 255, (*VOXELS.shape, 3), dtype=np.uint8)
    rgb = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    stored = nib.Nifti1Image(colours.view(rgb)[..., 0], AFFINE @ np.diag([-1, 1, 1, 1]))
    nib.save(stored, tmp_path / "scan.nii")
    image = files.read(tmp_path / "scan.nii")
    assert np.array_equal(image.pixels, colours[::-1])
    assert image.slice(2).shape == (7, 9, 3)
    files.write_labels(
        tmp_path / "l.nii", [s[..., 0].astype(np.uint8) for s in image.slices()], image
    )
    assert np.array_equal(np.asarray(nib.load(tmp_path / "l.nii").dataobj), colours[..., 0])
    with pytest.raises(files.FileError, match="colours, expected labels"):
        files.read(tmp_path / "scan.nii", labels=True)
    nib.save(nib.Nifti1Image(VOXELS.astype(np.complex64), AFFINE), tmp_path / "c.nii")
    with pytest.raises(files.FileError, match="complex64, expected numbers or colours"):
        files.read(tmp_path / "c.nii")
