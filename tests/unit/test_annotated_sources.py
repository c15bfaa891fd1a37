"""What the one-shot benchmark reads, draws and counts."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from annotated_sources import OLDER, Source, choose, dice, mean_of_classes, renumber
from vessa_client import files

CLASSES = 3
label_maps = arrays.arrays(np.uint8, (2, 3, 3), elements=st.integers(0, CLASSES))
shown_classes = st.lists(st.frozensets(st.integers(1, 4), min_size=1), min_size=3, max_size=12)


@settings(max_examples=200, deadline=None)
@given(label_maps, label_maps)
def test_dice_is_that_of_counted_voxels(
    predicted: npt.NDArray[np.uint8], truth: npt.NDArray[np.uint8]
) -> None:
    pairs = list(zip(predicted.ravel().tolist(), truth.ravel().tolist(), strict=True))
    expected: list[float | None] = []
    for label in range(1, CLASSES + 1):
        hits = sum(p == label and t == label for p, t in pairs)
        misses = sum((p == label) != (t == label) for p, t in pairs)
        expected.append(2 * hits / (2 * hits + misses) if hits + misses else None)
    found = dice(predicted, truth, CLASSES)
    assert [value is None for value in found] == [value is None for value in expected]
    counted = [value for value in expected if value is not None]
    assert [value for value in found if value is not None] == pytest.approx(counted, abs=5e-5)
    mean = mean_of_classes(found)
    if counted:
        assert mean == pytest.approx(sum(counted) / len(counted), abs=5e-5)
    else:
        assert mean is None


def test_a_class_of_only_the_truth_or_only_the_answer_counts_as_0_and_one_of_neither_not() -> None:
    truth = np.array([[1, 1, 2, 0]], np.uint8)
    predicted = np.array([[1, 1, 0, 3]], np.uint8)
    assert dice(predicted, truth, 4) == [1.0, 0.0, 0.0, None]
    assert mean_of_classes([1.0, 0.0, 0.0, None]) == pytest.approx(1 / 3)
    assert mean_of_classes([None, None]) is None


@settings(max_examples=100, deadline=None)
@given(shown_classes, st.integers(0, 100))
def test_templates_are_different_images_and_the_same_for_a_seed(
    shown: list[frozenset[int]], seed: int
) -> None:
    chosen = choose(shown, 3, seed)
    assert len(set(chosen)) == 3
    assert set(chosen) <= set(range(len(shown)))
    assert chosen == choose(shown, 3, seed)


@pytest.mark.parametrize("seed", range(5))
def test_templates_show_every_class_where_three_images_can(seed: int) -> None:
    """One set of three in 120 does."""
    shown = [frozenset({1})] * 7 + [frozenset({1, 2}), frozenset({3}), frozenset({4})]
    assert set(choose(shown, 3, seed)) == {7, 8, 9}


def test_where_three_images_cannot_show_every_class_they_show_as_many_as_they_can() -> None:
    shown = [frozenset({index}) for index in (1, 1, 1, 2, 3, 4, 5)]
    chosen = choose(shown, 3, 0)
    assert len(frozenset[int]().union(*(shown[index] for index in chosen))) == 3


def test_other_seeds_draw_other_templates() -> None:
    assert len({tuple(choose([frozenset({1})] * 50, 3, seed)) for seed in range(5)}) == 5


def _picture(folder: Path, name: str, values: npt.NDArray[np.uint8]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros_like(values)).save(folder / f"{name}.png")
    Image.fromarray(values).save(folder / f"{name}_gt.png")


def test_classes_and_label_values_are_those_of_the_note(tmp_path: Path) -> None:
    note = {"classes": {"2": "liver", "7": "kidneys"}}
    _picture(tmp_path / "test", "a", np.array([[0, 2, 7, 5]], np.uint8))
    (tmp_path / "meta.json").write_text(json.dumps(note))
    source = Source.of(tmp_path)
    assert (source.values, source.names) == ((2, 7), ("liver", "kidneys"))
    (item,) = source.items("test")
    assert item.labels_ZHW.tolist() == [[[0, 1, 2, 0]]]
    assert item.shown() == {1, 2}


def test_sources_without_a_note_are_in_the_table(tmp_path: Path) -> None:
    source = Source.of(tmp_path / "chest_xray")
    assert source.names == OLDER["chest_xray"]
    assert source.values == (1, 2, 3)
    with pytest.raises(files.FileError, match=r"pics: expected `meta\.json`"):
        Source.of(tmp_path / "pics")


@pytest.mark.parametrize("name", ["drive", "isbi_em"])
def test_every_value_of_a_source_with_one_class_is_that_class(tmp_path: Path, name: str) -> None:
    _picture(tmp_path / name / "test", "a", np.array([[0, 1, 255, 0]], np.uint8))
    (item,) = Source.of(tmp_path / name).items("test")
    assert item.labels_ZHW.tolist() == [[[0, 1, 1, 0]]]


def test_volumes_are_sliced_along_the_last_axis(tmp_path: Path) -> None:
    folder = tmp_path / "left_atrium" / "test"
    folder.mkdir(parents=True)
    labels = np.zeros((2, 3, 5), np.uint8)
    labels[1, 2, 4] = 1
    for name, pixels in (("a", np.zeros_like(labels)), ("a_gt", labels)):
        nib.save(nib.Nifti1Image(pixels, np.eye(4)), folder / f"{name}.nii.gz")
    (item,) = Source.of(tmp_path / "left_atrium").items("test")
    assert item.labels_ZHW.shape == (item.image.depth, 2, 3) == (5, 2, 3)
    assert item.labels_ZHW[4, 1, 2] == item.labels_ZHW.sum() == 1


def test_an_image_without_labels_is_told(tmp_path: Path) -> None:
    _picture(tmp_path / "drive" / "test", "a", np.zeros((2, 2), np.uint8))
    (tmp_path / "drive" / "test" / "a_gt.png").unlink()
    with pytest.raises(files.FileError, match="no label file"):
        Source.of(tmp_path / "drive").items("test")


def test_labels_of_a_template_without_some_class_are_those_of_the_source() -> None:
    """A bank numbers the classes that a template shows; a source all of its own."""
    names, labels = OLDER["chest_xray"], np.array([[0, 1, 2]], np.uint8)
    assert renumber(labels, ["left lung", "heart"], names).tolist() == [[0, 2, 3]]
    assert renumber(labels, ["heart", "right lung"], names).tolist() == [[0, 3, 1]]
