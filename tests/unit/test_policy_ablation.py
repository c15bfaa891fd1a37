"""What the ablation of the policy's rules draws, measures, keeps and computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import acdc
import heart
import policy_ablation
from policy_queries import Query, Task, tasks
from policy_tables import (
    ALL,
    BEFORE,
    DRAWS,
    LEVELS,
    OUTSIDE,
    ROWS,
    STUDENT_ROWS,
    Cell,
    Record,
    changed,
    matrix,
    resampled,
    show,
    summary,
    tables,
)
from student_masks import SUREST, TOLERANCE, corrupted, slice_dice, softened
from support import CLASSES, picture, tiny_model
from vessa_client import UInt8Array
from vessa_server.policy import RULES
from vessa_server.runtime.torch_runtime import TorchRuntime

NAMES = tuple(definition.name for definition in CLASSES)


def query_of(seed: int, *, slices: int = 1) -> Query:
    """A picture, or a volume."""
    images, labels = zip(*(picture(seed + z) for z in range(slices)), strict=True)
    volume = images if slices > 1 else ()
    return Query(f"image{seed}", f"subject{seed}", images, np.stack(labels), volume)


def task_of(*queries: Query, more: int = 0) -> Task:
    """A task of made-up pictures."""
    templates = tuple(picture(100 + n) for n in range(3 + more))
    return Task("made_up", 0, CLASSES, templates[:3], templates[3:], NAMES, queries)


@pytest.fixture(scope="module")
def runtime() -> TorchRuntime:
    return TorchRuntime(tiny_model(), "0" * 64)


def test_every_rule_of_the_policy_is_switched_off_in_a_row() -> None:
    assert {rule for row in (*ROWS, *STUDENT_ROWS) for rule in row.off} == set(RULES)


def test_pictures_that_are_scored_are_of_no_subject_of_a_template(tmp_path: Path) -> None:
    """There is no folder ``test``: it is not read."""
    folder = tmp_path / "us_carotid" / "train"
    folder.mkdir(parents=True)
    (folder.parent / "meta.json").write_text('{"classes": {"7": "carotid lumen"}}')
    for subject in range(12):
        for frame in range(3):
            image, labels = picture(10 * subject + frame)
            name = f"2022{subject:02d}VAS_slice_{frame}"
            Image.fromarray(image).save(folder / f"{name}.png")
            Image.fromarray(7 * (labels == 1).astype(np.uint8)).save(folder / f"{name}_gt.png")
    found = tasks({"us_carotid": folder.parent}, [0, 1, 2], 6)
    pixels = {image.tobytes(): subject for subject, image in by_subject(folder)}
    for task in found:
        seen = {pixels[image.tobytes()] for image, _ in (*task.templates, *task.more)}
        scored = [query.subject for query in task.queries]
        assert not seen & set(scored)
        assert len(task.templates) == 3
        assert {int(labels.max()) for _, labels in task.templates} == {1}
        assert len(scored) == len(set(scored)) == 6, "one of each subject first"
    assert len({frozenset(q.name for q in task.queries) for task in found}) > 1


def by_subject(folder: Path) -> list[tuple[str, UInt8Array]]:
    paths = [path for path in folder.glob("*.png") if "_gt" not in path.name]
    return [(path.name.split("_")[0], np.asarray(Image.open(path))) for path in paths]


def test_acdc_is_scored_on_validation_patients() -> None:
    (task,) = tasks({"acdc": acdc.ROOT / "examples" / "acdc-sample"}, [0], 2)
    subjects = {query.subject for query in task.queries}
    assert len(subjects) == 2
    assert subjects < {"patient028", "patient078", "patient087"}
    assert task.asked == heart.NAMES
    assert all(len(q.slices) == len(q.labels_ZHW) and q.volume for q in task.queries)


def test_a_class_that_no_template_shows_is_not_asked(tmp_path: Path) -> None:
    folder = tmp_path / "blood_cells" / "train"
    folder.mkdir(parents=True)
    for number in range(8):
        image, labels = picture(number)
        Image.fromarray(image).save(folder / f"{number}.png")
        Image.fromarray(np.where(labels == 2, 2, 0).astype(np.uint8)).save(
            folder / f"{number}_gt.png"
        )
    (task,) = tasks({"blood_cells": folder.parent}, [0], 4)
    assert task.asked == ("cytoplasm",)
    assert {int(q.labels_ZHW.max()) for q in task.queries} == {1}


@pytest.mark.parametrize("slices", [1, 3])
def test_each_rule_is_measured_where_it_applies(
    runtime: TorchRuntime, tmp_path: Path, slices: int
) -> None:
    query = query_of(0, slices=slices)
    engine = policy_ablation.new_engine(task_of(query, more=6), runtime, tmp_path)
    cell = policy_ablation.measured(engine, query, NAMES, timed=True)
    for row, dice, passes, spent in zip(ROWS, *cell["alone"].values(), strict=True):
        if row.volumes and slices == 1:
            assert dice is passes is spent is None
        else:
            assert 0 <= dice <= 1, row
            assert passes >= 1, row
            assert spent > 0, row
    assert len(cell["student"]) == 2 * len(LEVELS)
    for mask, found in cell["student"].items():
        assert abs(found["dice"][0] - float(mask.split()[-1])) < 0.2
        for row, dice in zip(STUDENT_ROWS, found["dice"][1:], strict=True):
            assert dice is not None, (mask, row)


def test_many_templates_are_measured_only_where_there_are_more_than_a_request_uses(
    runtime: TorchRuntime, tmp_path: Path
) -> None:
    query = query_of(0)
    engine = policy_ablation.new_engine(task_of(query, more=4), runtime, tmp_path)
    found = policy_ablation.alone(engine, query, NAMES, timed=False)
    assert {row.many for row, dice in zip(ROWS, found["dice"], strict=True) if dice} == {False}


def test_an_engine_that_forgot_its_answers_decodes_again_with_the_features_it_had(
    runtime: TorchRuntime, tmp_path: Path
) -> None:
    query = query_of(0)
    engine = policy_ablation.new_engine(task_of(query), runtime, tmp_path)
    request = query.request(0, NAMES)
    first = engine.segment(request)
    once = engine.passes
    assert once >= 1
    assert not first.image_features_cached
    engine.segment(request)
    assert engine.passes == once
    engine.answers.clear()
    again = engine.segment(request)
    assert engine.passes == 2 * once
    assert again.image_features_cached
    assert np.array_equal(again.labels, first.labels)


def test_a_turned_query_is_turned_whole() -> None:
    query = query_of(0, slices=2)
    turned = query.turned()
    assert np.array_equal(turned.slices[1], np.rot90(query.slices[1]))
    assert np.array_equal(turned.labels_ZHW[1], np.rot90(query.labels_ZHW[1]))
    assert turned.volume[0].shape == query.volume[0].shape[::-1]


def test_what_was_measured_is_not_measured_again_but_for_other_weights(
    runtime: TorchRuntime, tmp_path: Path
) -> None:
    file = tmp_path / "policy_ablation.json"
    task = task_of(query_of(0), query_of(1))

    def measure(minutes: float, weights: str) -> Record:
        record = Record.open(file, "shipped", weights=weights)
        policy_ablation.measure([task], runtime, record, minutes)
        return record

    assert not measure(0, "a").cells("made_up", 0), "no time, no images"
    first = measure(5, "a").cells("made_up", 0)
    assert set(first) == {"image0", "image1"}
    marked = Record.open(file, "shipped", weights="a")
    marked.cells("made_up", 0)["image0"]["subject"] = "kept"
    marked.write()
    assert measure(5, "a").cells("made_up", 0)["image0"]["subject"] == "kept"
    assert len(Record.open(file, "shipped", weights="a").run["sessions"]) == 1
    before = file.read_bytes()
    show(measure(0, "b"))
    assert file.read_bytes() == before, "what was measured before stays until something is"
    assert measure(5, "b").cells("made_up", 0)["image0"]["subject"] == "subject0"
    record = Record.open(file, "shipped", weights="b")
    show(record)
    assert record.run["tables"]["alone"]["made_up"][ALL]["subjects"] == 2
    assert (tmp_path / "policy_ablation_shipped.md").read_text().count("| made_up |") == 3


def cell_of(subject: str, values: list[float | None]) -> Cell:
    costs = {"passes": [1.0] * len(values), "milliseconds": [2.0] * len(values)}
    student = {"dice": [0.3, *[0.5] * len(STUDENT_ROWS)], **costs}
    alone = {"dice": values, **costs}
    masks = {"label map 0.3": student}
    return {"subject": subject, "volume": False, "alone": alone, "student": masks}


def test_changes_are_paired_and_those_of_acdc_do_not_count_outside_of_it() -> None:
    def cells(change: float) -> dict[str, dict[str, Cell]]:
        found: dict[str, dict[str, Cell]] = {}
        for seed in range(3):
            for number in range(4):
                dice = 0.2 * number + 0.05 * seed
                values: list[float | None] = [dice + (change if r.off else 0) for r in ROWS]
                found.setdefault(str(seed), {})[f"i{number}"] = cell_of(f"s{number}", values)
        return found

    found = tables({"acdc": cells(-0.5), "drive": cells(0.1), "isbi_em": cells(0.3)})
    drive, outside = found["alone"]["drive"]["no focus"], found["alone"][OUTSIDE]["no focus"]
    assert drive["mean"] == pytest.approx(0.1)
    assert drive["interval"] == pytest.approx([0.1, 0.1]), "images differ, their changes do not"
    assert drive["sd_of_seeds"] == pytest.approx(0)
    assert outside["mean"] == pytest.approx(0.2)
    assert outside["interval"] == pytest.approx([0.1, 0.3]), "sources are drawn again"
    assert (outside["sources"], outside["subjects"]) == (2, 8)
    assert found["alone"]["drive"][ALL]["sd_of_seeds"] == pytest.approx(0.05)
    assert found["student"]["drive"]["label map"]["0.3"][BEFORE]["mean"] == pytest.approx(0.3)
    assert found["student"]["drive"]["label map"]["0.9"][BEFORE] is None
    assert f"{OUTSIDE}, pictures" not in found["alone"], "there is nothing else"
    assert found["cost"]["pictures"]["no focus"] == {"passes": 1.0, "milliseconds": 2.0}


def test_pictures_and_volumes_are_also_shown_apart() -> None:
    def cells(kind: bool, dice: float) -> dict[str, dict[str, Cell]]:
        return {"0": {"i": cell_of("s", [dice] * len(ROWS)) | {"volume": kind}}}

    found = tables({"drive": cells(False, 0.2), "hippocampus": cells(True, 0.8)})["alone"]
    groups = (OUTSIDE, f"{OUTSIDE}, pictures", f"{OUTSIDE}, volumes")
    assert [found[group][ALL]["mean"] for group in groups] == [0.5, 0.2, 0.8]


def test_a_row_that_does_not_apply_has_no_change() -> None:
    assert changed([0.5, None], 1, 0) is None
    assert changed([None, 0.5], 1, 0) is None
    assert changed([0.5, 0.4], 1, None) == 0.4


def test_a_subject_counts_once_however_many_images_it_has() -> None:
    cells = {"0": {"a1": {"subject": "a"}, "a2": {"subject": "a"}, "b1": {"subject": "b"}}}
    values: dict[str, list[float | None]] = {"a": [0.0, None], "b": [1.0]}
    table_SN = matrix(cells, ["0", "1"], lambda cell: values[str(cell["subject"])])
    assert np.array_equal(table_SN, [[0, np.nan], [1, np.nan]], equal_nan=True)
    found = summary([table_SN])
    assert found is not None
    assert found["mean"] == 0.5
    assert summary([np.full((2, 2), np.nan)]) is None


def test_intervals_cover_the_mean_that_values_were_drawn_around() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(100):
        subjects_S1, seeds_1N = rng.normal(0, 1, (12, 1)), rng.normal(0, 0.3, (1, 3))
        values_SN = 0.5 + subjects_S1 + seeds_1N + rng.normal(0, 0.3, (12, 3))
        values_SN[rng.random((12, 3)) < 0.1] = np.nan
        draws_R = resampled(values_SN, rng)
        assert draws_R.shape == (DRAWS,)
        low, high = np.nanpercentile(draws_R, [2.5, 97.5])
        inside += low < 0.5 < high
    assert 85 <= inside <= 99


@pytest.mark.parametrize("classes", [1, 2, 5])
@pytest.mark.parametrize("level", LEVELS)
def test_corruptions_have_the_level_whatever_the_number_of_classes(
    classes: int, level: float
) -> None:
    labels = np.zeros((80, 90), np.uint8)
    for value in range(1, 1 + classes):
        labels[10 + 10 * value : 22 + 10 * value, 15:60] = value
    item = acdc.AnnotatedSlice("made up", labels, labels)
    (mask,) = corrupted([item], level, 0, classes)
    assert abs(slice_dice(mask.labels, labels, classes) - level) <= TOLERANCE
    assert mask.labels.max() <= classes


def test_soft_masks_are_probabilities_of_about_the_same_labels() -> None:
    labels = np.zeros((60, 60), np.uint8)
    labels[10:40, 10:40], labels[44:47, 5:55] = 1, 2
    soft_CHW = softened(labels, 3)
    assert soft_CHW.shape == (3, 60, 60)
    assert soft_CHW.min() >= 0
    assert soft_CHW.sum(axis=0).max() <= SUREST + 1e-6
    assert not soft_CHW[2].any()
    assert slice_dice(policy_ablation.as_labels(soft_CHW), labels, 3) > 0.95
    assert ((soft_CHW > 0.1) & (soft_CHW < 0.9)).any()
    assert not softened(np.zeros_like(labels), 3).any()
