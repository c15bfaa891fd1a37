"""NRRD, in and out, against ITK in world coordinates."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import nrrd  # type: ignore[import-untyped]
import numpy as np
import pytest
import SimpleITK

from vessa_client import files

VOXELS_ZYX = np.random.default_rng(0).integers(0, 3000, (5, 8, 6)).astype(np.int16)


def write(path: Path, turn: int = 0) -> SimpleITK.Image:
    image = SimpleITK.GetImageFromArray(VOXELS_ZYX)
    image.SetSpacing((0.75, 1.5, 4.0))
    image.SetOrigin((-20.0, 30.0, 7.0))
    signs = [(1, 1, 1), (-1, 1, -1), (1, -1, -1)][turn % 3]
    order = list(itertools.permutations(range(3)))[turn % 6]
    direction = (np.eye(3) * signs)[:, order]
    if np.linalg.det(direction) < 0:
        direction[:, 0] *= -1
    image.SetDirection(direction.ravel().tolist())
    SimpleITK.WriteImage(image, str(path))
    return image


@pytest.mark.parametrize("turn", range(6))
def test_voxels_and_labels_are_where_itk_has_them(tmp_path: Path, turn: int) -> None:
    reference = write(tmp_path / "scan.nrrd", turn)
    image = files.read(tmp_path / "scan.nrrd")
    assert image.nifti is not None
    for index in itertools.product(*[(0, n // 2, n - 1) for n in image.pixels.shape]):
        right, front, up, _ = image.nifti.affine @ [*index, 1]
        place = reference.TransformPhysicalPointToIndex((-right, -front, up))
        assert image.pixels[index] == reference[place]
    target = files.output_path(tmp_path, image.path, "_pseudo")
    assert target.name == "scan_pseudo.nrrd"
    files.write_labels(
        target, [(s.astype(int) > 1500).astype(np.uint8) for s in image.slices()], image
    )
    found = SimpleITK.ReadImage(str(target))
    assert np.allclose(found.GetDirection(), reference.GetDirection())
    assert np.allclose(found.GetOrigin(), reference.GetOrigin())
    assert np.allclose(found.GetSpacing(), reference.GetSpacing())
    assert np.array_equal(SimpleITK.GetArrayFromImage(found), VOXELS_ZYX > 1500)


def header(**changes: Any) -> dict[str, Any]:
    plain = {"space": "RAS", "space directions": np.eye(3), "space origin": np.zeros(3)}
    return {**plain, **changes}


def test_several_volumes_are_chosen_by_frame(tmp_path: Path) -> None:
    voxels = np.stack([VOXELS_ZYX, VOXELS_ZYX + 1])
    directions = np.vstack([np.full(3, np.nan), np.eye(3)])
    kinds = ["list", "domain", "domain", "domain"]
    nrrd.write(
        str(tmp_path / "film.nrrd"),
        voxels,
        header(**{"space directions": directions, "kinds": kinds}),
    )
    with pytest.raises(files.FileError, match=r"2 frames, choose one with --frame 0\.\.1"):
        files.read(tmp_path / "film.nrrd")
    one, two = (files.read(tmp_path / "film.nrrd", channel=k).pixels for k in range(2))
    assert np.array_equal(two, one + 1)
    with pytest.raises(files.FileError, match="2 frames or channels, expected more than 2"):
        files.read(tmp_path / "film.nrrd", channel=2)


@pytest.mark.parametrize(
    "content", [b"", b"NRRD0004\n", b"NRRD0004\ntype: short\ndimension: 3\nsizes: 9 9 9\n\nxx"]
)
def test_damaged_files_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "scan.nrrd").write_bytes(content)
    with pytest.raises(files.FileError, match=r"scan\.nrrd"):
        files.read(tmp_path / "scan.nrrd")


def test_a_space_that_is_not_known_is_refused(tmp_path: Path) -> None:
    nrrd.write(str(tmp_path / "scan.nrrd"), VOXELS_ZYX, header(space="scanner-xyz"))
    with pytest.raises(files.FileError, match="space scanner-xyz, expected"):
        files.read(tmp_path / "scan.nrrd")
