"""Label values and their classes, and which label file an image has."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from vessa_client import annotated, files

ITK_SNAP = """\
################################################
# ITK-SnAP Label Description File
# File format:
# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL
################################################
    0     0    0    0        0  0  0    "Clear Label"
    1   255    0    0        1  1  1    "liver"
    7     0  255    0      0.5  1  1    "tumour: large"
"""


def test_labels_are_named_in_order_or_by_value() -> None:
    plain = annotated.parse(["liver", " tumour: dark = lesion "])
    assert plain.names == ("liver", "tumour")
    assert plain.classes[1].description == "dark = lesion"
    assert plain.values == (1, 2)
    chosen = annotated.parse(["7=tumour: dark", "2=liver"])
    assert (chosen.names, chosen.values) == (("tumour", "liver"), (7, 2))


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["3=a", "b"], "some have a value"),
        (["3=a", "3=b"], "a value is there twice"),
        (["a", "a: another"], "a name is there twice"),
        (["a", ": dark"], "one has no name"),
        (["0=a"], r"expected 1\.\.255"),
        (["256=a"], r"expected 1\.\.255"),
    ],
)
def test_contradictions_are_refused(texts: list[str], said: str) -> None:
    with pytest.raises(files.FileError, match=said):
        annotated.parse(texts)


def test_values_go_in_as_numbers_and_come_out_as_values() -> None:
    scheme = annotated.parse(["7=tumour", "2=liver"])
    stored = np.array([[0, 2, 7], [7, 9, 2]], np.uint8)
    numbers = scheme.to_numbers(stored, "x")
    assert numbers.tolist() == [[0, 2, 1], [1, 0, 2]]
    assert scheme.to_values(numbers).tolist() == [[0, 2, 7], [7, 0, 2]]


def test_values_without_a_class_are_refused_where_none_was_chosen() -> None:
    scheme = annotated.parse(["liver"])
    with pytest.raises(files.FileError, match=r"x has labels 1, 3, named are 1.*-c 3=NAME"):
        scheme.to_numbers(np.array([[1, 3]], np.uint8), "x")


def test_a_mask_of_255_is_one_structure() -> None:
    mask = np.array([[0, 255]], np.uint8)
    assert annotated.parse(["lung"]).to_numbers(mask, "x").tolist() == [[0, 1]]
    with pytest.raises(files.FileError, match="has labels 255"):
        annotated.parse(["lung", "heart"]).to_numbers(mask, "x")


def test_names_come_from_files_of_others(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text(ITK_SNAP)
    nnunet = {"labels": {"background": 0, "liver": 1, "whole": [1, 2], "tumour": 7}}
    (tmp_path / "dataset.json").write_text(json.dumps(nnunet))
    (tmp_path / "msd.json").write_text(json.dumps({"labels": {"0": "bg", "1": "liver", "7": "t"}}))
    found = annotated.read_scheme(tmp_path / "labels.txt")
    assert (found.names, found.values) == (("liver", "tumour  large"), (1, 7))
    assert annotated.read_scheme(tmp_path / "dataset.json").names == ("liver", "tumour")
    assert annotated.read_scheme(tmp_path / "msd.json").values == (1, 7)
    for content in ("", "{}", "{"):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(files.FileError, match=r"x\.json"):
            annotated.read_scheme(tmp_path / "x.json")


def test_pairs_are_found_beside_and_in_a_folder(tmp_path: Path) -> None:
    for folder, names in {
        "beside": ("a", "a_seg", "b", "c"),
        "imagesTr": ("p1_0000", "p2_0000"),
        "labelsTr": ("p1", "p2"),
    }.items():
        (tmp_path / folder).mkdir()
        for name in names:
            nib.save(
                nib.Nifti1Image(np.ones((4, 4, 2)), np.eye(4)), tmp_path / folder / f"{name}.nii"
            )
    beside = annotated.find_pairs(tmp_path / "beside", None, "_seg")
    assert [(i.name, o.name) for i, o in beside] == [("a.nii", "a_seg.nii")]
    apart = annotated.find_pairs(tmp_path / "imagesTr", tmp_path / "labelsTr", "_gt")
    assert [(i.name, o.name) for i, o in apart] == [
        ("p1_0000.nii", "p1.nii"),
        ("p2_0000.nii", "p2.nii"),
    ]
    with pytest.raises(files.FileError, match="no label file"):
        annotated.find_pairs(tmp_path / "beside", None, "_other")
