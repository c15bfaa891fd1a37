"""Which files of a folder are images, names of their results, and files that cannot be read."""

from __future__ import annotations

import gzip
import os
from contextlib import suppress
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from vessa_client import files
from vessa_client.files import FileError

ENDINGS = ("_pseudo", "_confidence")


def _touched(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def _names(folder: Path, *outs: Path) -> list[str]:
    found = files.find_inputs(folder, *outs, endings=ENDINGS)
    return [str(file.relative_to(folder)) for file in found]


def test_results_below_the_folder_are_no_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _touched(tmp_path, "a.png", "a_pseudo.png", "deep/b.png", "out/a_pseudo.png", "out/c.png")
    monkeypatch.chdir(tmp_path)
    expected = ["a.png", "a_pseudo.png", "deep/b.png"]
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    for folder in (tmp_path, Path()):
        for out in (Path("out"), tmp_path / "out", Path("deep/../out"), Path("link/out")):
            assert _names(folder, out) == expected


def test_results_among_the_images_are_known_by_their_names(tmp_path: Path) -> None:
    _touched(tmp_path, "in/a.png", "in/a_pseudo.png", "in/a_confidence.png", "in/p/a.png")
    folder = tmp_path / "in"
    for out in (folder, tmp_path / "in" / "." / "..", folder / ".." / "in"):
        assert _names(folder, out, folder / "p") == ["a.png"]
    assert _names(folder, tmp_path / "elsewhere") == [
        "a.png",
        "a_confidence.png",
        "a_pseudo.png",
        "p/a.png",
    ]
    (folder / "a.png").unlink()
    with pytest.raises(files.FileError, match="in: no images"):
        _names(folder, folder, folder / "p")


def test_images_of_one_stem_have_results_of_their_own(tmp_path: Path) -> None:
    names = ["a.png", "a.JPG", "a.nii", "a.nii.gz", "b.png", "b_gt.png", "c.tif", "C.png"]
    _touched(tmp_path, *names)
    out = tmp_path / "out"
    found = {name: files.output_path(out, tmp_path / name, "_seg").name for name in names}
    assert len(set(found.values())) == len(names)
    assert found["a.JPG"] == "a.JPG_seg.png"
    assert found["a.nii"] == "a.nii_seg.nii"
    assert found["b.png"] == "b_seg.png"
    assert files.own_stem(tmp_path / "c.tif") == "c"


def test_a_link_to_the_image_itself_is_no_other_image(tmp_path: Path) -> None:
    """As on file systems that do not tell .png from .PNG."""
    _touched(tmp_path, "a.png")
    (tmp_path / "a.PNG").symlink_to(tmp_path / "a.png")
    assert files.own_stem(tmp_path / "a.png") == "a"


def _broken_header(file: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), file)
    content = bytearray(gzip.decompress(file.read_bytes()))
    content[70:72] = (999).to_bytes(2, "little")  # the code of the datatype
    file.write_bytes(gzip.compress(bytes(content)))


def _broken_packing(file: Path) -> None:
    volume = np.random.default_rng(0).integers(0, 255, (40, 40, 40), np.uint8)
    nib.save(nib.Nifti1Image(volume, np.eye(4)), file)
    content = bytearray(file.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 2000] = bytes(2000)
    file.write_bytes(content)


def _cut_off(file: Path) -> None:
    _broken_packing(file)
    file.write_bytes(file.read_bytes()[:2000])


@pytest.mark.parametrize("damage", [_broken_header, _broken_packing, _cut_off])
def test_whatever_is_wrong_with_a_volume_the_error_names_it(tmp_path: Path, damage: object) -> None:
    assert callable(damage)
    damage(tmp_path / "a.nii.gz")
    with pytest.raises(files.FileError, match=r"a\.nii\.gz: cannot be read \(.+\)"):
        files.read(tmp_path / "a.nii.gz")


def test_the_axis_of_a_volume_with_a_broken_header_is_an_error_that_names_it(
    tmp_path: Path,
) -> None:
    _broken_header(tmp_path / "a.nii.gz")
    with pytest.raises(files.FileError, match=r"a\.nii\.gz: cannot be read"):
        files.acquired_axis(tmp_path / "a.nii.gz")


def test_whatever_is_wrong_with_a_picture_is_one_kind_of_error(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    file = tmp_path / "a.png"
    Image.fromarray(pixels).save(file)
    content = file.read_bytes()
    for position in range(0, len(content), 97):
        file.write_bytes(content[:position] + b"\x00\xff\x00\xff" + content[position + 4 :])
        with suppress(files.FileError):  # and nothing else
            files.read(file)


@pytest.mark.parametrize("order", ["<", ">"])
def test_values_of_a_tiff_are_kept_in_either_byte_order(tmp_path: Path, order: str) -> None:
    values = np.array([[0, 300], [22_300, 65_535]], f"{order}u2")
    mode = "I;16" if order == "<" else "I;16B"
    Image.frombytes(mode, (2, 2), values.tobytes()).save(tmp_path / "a.tif")
    assert np.array_equal(files.read(tmp_path / "a.tif").pixels, values)


def test_of_a_tiff_with_pages_one_is_chosen(tmp_path: Path) -> None:
    film, pages = tmp_path / "film.tif", [np.full((4, 5), value, np.uint16) for value in (7, 8, 9)]
    first, *others = [Image.fromarray(page) for page in pages]
    first.save(film, save_all=True, append_images=others)

    with pytest.raises(FileError, match=r"film\.tif: 3 pages, choose one with --frame 0\.\.2"):
        files.read(film)
    with pytest.raises(FileError, match=r"film\.tif: 3 pages, expected more than 3"):
        files.read(film, channel=3)
    for index, page in enumerate(pages):
        assert np.array_equal(files.read(film, channel=index).pixels, page)


@pytest.mark.skipif(os.getuid() != 0, reason="takes a user who may become another one")
def test_whoever_may_not_write_is_told_who_he_is_and_what_to_do(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir(mode=0o755)
    for folder in (tmp_path, *tmp_path.parents):
        folder.chmod(folder.stat().st_mode | 0o055)
    os.setresuid(1000, 1000, 0)
    try:
        with pytest.raises(FileError, match=r"out: user 1000 may not write .*VESSA_USER"):
            files.check_writable(mine / "out")
    finally:
        os.setresuid(0, 0, 0)
    files.check_writable(mine / "out" / "deep")
    assert not (mine / "out").exists()
