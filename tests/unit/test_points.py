"""Points and boxes: the answer is as they say, and changes where pixels look alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from support import engine_of, picture
from vessa_client import Box, InvalidRequestError, Point, SegmentationRequest, files, marks
from vessa_server.cases.points import CONTRAST, LEAST_WEIGHT, PRIOR, Marks, spread
from vessa_server.policy import answers
from vessa_server.policy.answers import Floats

NAMES = ("disc", "bar")
UNSURE = np.float32(-1.0)


def followed(
    shape: tuple[int, int],
    image: Floats,
    points: tuple[Point, ...] = (),
    boxes: tuple[Box, ...] = (),
) -> answers.Decision:
    """What becomes of an answer that is background everywhere, and a little unsure."""
    found = Marks.of(points, boxes, NAMES, shape)
    assert found is not None
    nothing = np.full(shape, UNSURE, dtype=np.float32)
    return answers.decide(found.follow(lambda: iter([nothing, nothing]), image))


@settings(max_examples=30, deadline=None)
@given(
    arrays.arrays(np.float32, (1, 4, 5), elements=st.floats(0, 1, width=32)),
    arrays.arrays(bool, (20,)).filter(lambda seeds: 0 < seeds.sum() < 20),
    st.integers(0, 99),
)
def test_changes_are_those_of_the_least_cost(
    image: Floats, seeds: np.ndarray[Any, np.dtype[np.bool_]], seed: int
) -> None:
    """Against the normal equations of the cost, written pixel by pixel."""
    change = np.random.default_rng(seed).uniform(-1, 1, (int(seeds.sum()), 2))
    found = spread(image, seeds, change)
    grey, cells = image[0].astype(float), [(r, c) for r in range(4) for c in range(5)]
    variance = grey.var() or 1.0
    normal = PRIOR * np.eye(20)
    for one, (r, c) in enumerate(cells):
        for other in ((r + 1, c), (r, c + 1)):
            if other in cells:
                two, contrast = cells.index(other), (grey[r, c] - grey[other]) ** 2 / variance
                weight = np.exp(-CONTRAST * contrast) + LEAST_WEIGHT
                normal[[one, two], [one, two]] += weight
                normal[[one, two], [two, one]] -= weight
    expected = np.zeros((20, 2))
    expected[seeds] = change
    pulled = normal[~seeds][:, seeds] @ change
    expected[~seeds] = np.linalg.solve(normal[~seeds][:, ~seeds], -pulled)
    assert np.allclose(found, expected, atol=1e-8)
    assert found.min() >= min(change.min(), 0) - 1e-9
    assert found.max() <= max(change.max(), 0) + 1e-9


def test_a_point_changes_what_looks_alike_and_no_more() -> None:
    image = np.zeros((1, 60, 80), np.float32)
    image[:, :, 40:] = 1.0
    noise = np.random.default_rng(0).normal(0, 0.02, image.shape)
    found = followed((60, 80), image + noise.astype(np.float32), (point(30, 20, "bar"),))
    assert (found.labels_HW[:, 5:38] == 2).mean() > 0.9
    assert not found.labels_HW[:, 41:].any()


def test_background_is_a_class_of_points() -> None:
    image = np.zeros((1, 60, 80), np.float32)
    disc = np.full((60, 80), 2.0, np.float32)
    given = Marks.of((point(30, 20),), (), ("disc",), (60, 80))
    assert given is not None
    labels = answers.decide(given.follow(lambda: iter([disc]), image)).labels_HW
    assert labels[30, 20] == 0
    assert not labels.all()
    assert labels[0, 79] == 1


@pytest.mark.parametrize("shape", [(60, 52), (500, 431), (3, 1000), (1, 1)])
def test_pixels_are_as_points_say_also_beside_each_other(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    image = rng.random((3, *shape)).astype(np.float32)
    places = {
        (int(r), int(c)) for r, c in zip(*(rng.integers(0, n, 40) for n in shape), strict=True)
    }
    names = ("", *NAMES)
    points = [point(r, c, names[i % 3]) for i, (r, c) in enumerate(sorted(places))]
    labels = followed(shape, image, tuple(points)).labels_HW
    assert [names[labels[p.row, p.column]] for p in points] == [p.class_name for p in points]


def test_a_class_is_nowhere_outside_of_its_boxes(tmp_path: Path) -> None:
    image, engine = picture(7)[0], engine_of(tmp_path)
    before = engine.segment(SegmentationRequest(image=image))
    one = Box(top=4, left=6, height=9, width=11, class_name="disc")
    other = Box(top=30, left=6, height=9, width=11, class_name="disc")
    after = engine.segment(SegmentationRequest(image=image, boxes=(one, other)))
    inside = np.zeros(image.shape, bool)
    inside[4:13, 6:17] = inside[30:39, 6:17] = True
    assert not (after.labels[~inside] == 1).any()
    assert (after.labels[4:13, 6:17] == 1).any()
    assert (after.labels[30:39, 6:17] == 1).any()
    again = engine.segment(SegmentationRequest(image=image))
    assert np.array_equal(again.labels, before.labels)  # and not kept as VESSA's own


def test_points_hold_beside_a_students_mask_and_in_probabilities(tmp_path: Path) -> None:
    (image, labels), engine = picture(7), engine_of(tmp_path)
    points = (point(2, 3, "bar"), point(58, 26))
    request = SegmentationRequest(
        image=image, student_mask=labels, points=points, return_probabilities=True
    )
    found = engine.segment(request)
    assert found.labels[2, 3] == 2
    assert found.labels[58, 26] == 0
    assert found.probabilities is not None
    assert found.probabilities[1, 2, 3] == found.confidence[2, 3] == 255
    assert found.probabilities[:, 58, 26].max() == 0


def test_a_point_counts_more_than_a_box(tmp_path: Path) -> None:
    image, engine = picture(7)[0], engine_of(tmp_path)
    box = Box(top=0, left=0, height=20, width=20, class_name="disc")
    points = (point(10, 10), point(30, 40, "disc"), point(50, 8, "disc"), point(50, 8, "bar"))
    found = engine.segment(SegmentationRequest(image=image, points=points, boxes=(box,))).labels
    assert (found[10, 10], found[30, 40], found[50, 8]) == (0, 1, 2)
    mine = (point(3, 3, "disc"), point(16, 16))
    found = engine.segment(SegmentationRequest(image=image, points=mine, boxes=(box,))).labels
    assert (found[3, 3], found[16, 16]) == (1, 0)


def test_the_iou_is_of_the_answer_that_follows(tmp_path: Path) -> None:
    image, engine = picture(7)[0], engine_of(tmp_path)
    discs = tuple(point(row, column, "disc") for row in range(5, 20) for column in range(5, 20))
    found = engine.segment(SegmentationRequest(image=image, points=discs))
    assert min(c.predicted_iou for c in found.classes) > 0.05
    boxes = tuple(Box(top=0, left=0, height=1, width=1, class_name=name) for name in NAMES)
    away = engine.segment(SegmentationRequest(image=image, boxes=boxes, points=(point(0, 0),)))
    assert not away.labels.any()
    assert [c.predicted_iou for c in away.classes] == [0, 0]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"points": [("disc", 60, 0)]},
            "points: row 60, column 0, expected them in an image of 60",
        ),
        ({"points": [("disc", 0, -1)]}, "points: row 0, column -1"),
        ({"points": [("heart", 0, 0)]}, "points: class 'heart', expected disc, which are asked"),
        ({"boxes": [("", 0, 0, 1, 1)]}, "boxes: class '', expected disc, which are asked"),
        ({"boxes": [("disc", 50, 0, 11, 1)]}, "boxes: 11 x 1 pixels from row 50, column 0"),
        ({"boxes": [("disc", 5, 5, 0, 1)]}, "boxes: 0 x 1 pixels"),
        ({"points": [("disc", 0, 0)] * 257}, "points: 257, expected 256 at most"),
        ({"boxes": [("disc", 0, 0, 1, 1)] * 33}, "boxes: 33, expected 32 at most"),
    ],
)
def test_wrong_ones_are_refused_in_words(
    tmp_path: Path, given: dict[str, list[tuple[Any, ...]]], said: str
) -> None:
    points = tuple(point(row, column, name) for name, row, column in given.get("points", []))
    boxes = tuple(
        Box(top=top, left=left, height=height, width=width, class_name=name)
        for name, top, left, height, width in given.get("boxes", [])
    )
    request = SegmentationRequest(
        image=picture(7)[0], class_names=("disc",), points=points, boxes=boxes
    )
    with pytest.raises(InvalidRequestError) as caught:
        engine_of(tmp_path, templates=1).segment(request)
    assert said in str(caught.value)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("codes", ["RAS", "LPI", "SAR", "PIR"])
def test_voxels_are_those_of_the_file_however_it_is_stored(
    tmp_path: Path, codes: str, axis: int
) -> None:
    voxels = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    orientation = nib.orientations.axcodes2ornt(codes)
    affine = nib.orientations.inv_ornt_aff(orientation, (4, 5, 6)) @ np.diag([1.0, 2.0, 3.0, 1.0])
    nib.save(nib.Nifti1Image(voxels, affine), tmp_path / "scan.nii.gz")
    image = files.read(tmp_path / "scan.nii.gz", axis=axis)
    for i, j, k in [(0, 0, 0), (3, 4, 5), (1, 3, 2)]:
        ((index, (found,)),) = marks.points([f"a:b:{i},{j},{k}"], image).items()
        assert image.slice(index)[found.row, found.column] == voxels[i, j, k]
        assert found.class_name == "a:b"
    with pytest.raises(InvalidRequestError, match="inside of the image, 4 x 5 x 6 voxels"):
        marks.points(["a:4,0,0"], image)
    with pytest.raises(InvalidRequestError, match=r"scan\.nii\.gz is a volume, expected a picture"):
        marks.boxes(["a:0,0,1,1"], image)


def test_pixels_of_a_picture_are_written_column_first(tmp_path: Path) -> None:
    files.write_picture(tmp_path / "a.png", picture(3)[0])
    image = files.read(tmp_path / "a.png")
    assert marks.points(["background:51,59"], image) == {0: (point(59, 51),)}
    box = Box(top=2, left=1, height=4, width=3, class_name="disc")
    assert marks.boxes(["disc:1,2,3,4"], image) == {0: (box,)}
    for text in ("disc", "disc:1", "disc:1,2,3", ":1,2", "disc:1,x"):
        with pytest.raises(InvalidRequestError, match=r"--point .*: expected CLASS:X,Y"):
            marks.points([text], image)
    with pytest.raises(InvalidRequestError, match="52 x 60 pixels"):
        marks.points(["disc:52,0"], image)


def point(row: int, column: int, name: str = "") -> Point:
    """Of a class, or of background."""
    return Point(row=row, column=column, class_name=name)
