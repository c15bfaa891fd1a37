from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from support import CLASSES, picture
from vessa_client import AnyArray, ClassDefinition, InvalidRequestError, NotFoundError
from vessa_server.bank import BankError, TemplateBank, TemplateEntry


@pytest.fixture
def bank(tmp_path: Path) -> TemplateBank:
    return TemplateBank(tmp_path / "bank")


def test_a_template_survives_reopening(bank: TemplateBank) -> None:
    image, labels = picture(0)
    info, created = bank.add(image, labels, CLASSES, name="first")
    assert created
    again = TemplateBank(bank.folder)
    assert again.snapshot() == bank.snapshot()
    loaded = again.load(again.snapshot().templates[0])
    assert np.array_equal(loaded.image, image)
    assert np.array_equal(loaded.labels, labels)
    assert loaded.labels.flags.writeable
    assert loaded.info == info
    assert (bank.folder / "templates" / info.template_id / "image.png").is_file()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(
    st.sampled_from(["uint8", "uint16", "int16", "float32"]).flatmap(
        lambda dtype: hnp.arrays(
            dtype,
            st.tuples(st.integers(8, 12), st.integers(8, 12)),
            elements=st.integers(0, 120) if dtype == "uint8" else st.integers(0, 30_000),
        )
    )
)
def test_pixels_are_kept_whatever_their_dtype(bank: TemplateBank, image: AnyArray) -> None:
    labels = np.ones(image.shape, dtype=np.uint8)
    info, _ = bank.add(image, labels, CLASSES[:1])
    assert np.array_equal(bank.load(info).image, image)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(
    st.sampled_from(["int32", "uint32", "int64", "uint64", "float64"]),
    st.sampled_from([0, 1 << 20, 10**9, 1 << 62]),
    st.sampled_from([1, 7, 1 << 12, 1 << 30]),
    st.integers(0, 1 << 32),
)
def test_detail_is_kept_or_refused_whatever_lies_below_it(
    bank: TemplateBank, dtype: str, offset: int, scale: int, seed: int
) -> None:
    assume(dtype in ("int64", "uint64", "float64") or offset + 30 * scale < 1 << 31)
    detail = np.random.default_rng(seed).integers(0, 30, (8, 8)) * scale
    image: AnyArray = (detail + offset).astype(dtype)
    span = int(image.max()) - int(image.min())
    labels = np.ones((8, 8), np.uint8)
    # float32 has 24 bits: steps of 64 at 1e9, of more than any detail at 2**62.
    lost = offset == 1 << 62 or (offset == 10**9 and scale < 64)
    if lost and span > 0:
        with pytest.raises(InvalidRequestError, match="expected a range that float32 holds"):
            bank.add(image, labels, CLASSES[:1])
        return
    info, _ = bank.add(image, labels, CLASSES[:1])
    pairs = zip(bank.load(info).image.flat, image.flat, strict=True)
    assert max(abs(Fraction(float(kept)) - int(given)) for kept, given in pairs) * 10**6 <= span


def test_a_flat_image_has_no_detail_to_lose(bank: TemplateBank) -> None:
    image = np.full((8, 8), 1e9 + 1)
    info, _ = bank.add(image, np.ones((8, 8), np.uint8), CLASSES[:1])
    assert np.allclose(bank.load(info).image, image)


def test_version_depends_on_content_and_not_on_order(tmp_path: Path) -> None:
    first, second = picture(1), picture(2)
    one, two = TemplateBank(tmp_path / "1"), TemplateBank(tmp_path / "2")
    empty = one.snapshot().version
    one.add(*first, CLASSES)
    one.add(*second, CLASSES)
    two.add(*second, CLASSES)
    middle = two.snapshot().version
    two.add(*first, CLASSES)
    assert one.snapshot().version == two.snapshot().version
    assert len({empty, middle, one.snapshot().version}) == 3


def test_adding_again_changes_nothing(bank: TemplateBank) -> None:
    info, _ = bank.add(*picture(0), CLASSES)
    before = bank.snapshot()
    again, created = bank.add(*picture(0), CLASSES, name="other name")
    assert not created
    assert again.template_id == info.template_id
    assert bank.snapshot() == before


def test_a_description_changes_with_a_new_template_or_by_itself(bank: TemplateBank) -> None:
    first, _ = bank.add(*picture(0), CLASSES)
    before = bank.snapshot()
    other = (ClassDefinition(name="disc", description="Other."), CLASSES[1])
    again, created = bank.add(*picture(0), other, name="other name")
    assert (again, created) == (first, False)
    assert bank.snapshot() == before

    bank.add(*picture(1), other)
    assert [c.description for c in bank.snapshot().classes] == ["Other.", "Dark bar."]
    bank.add(*picture(2), [ClassDefinition(name="disc"), CLASSES[1]])
    assert [c.description for c in bank.snapshot().classes] == ["Other.", "Dark bar."]

    before = bank.snapshot()
    version = bank.describe("disc", "Third.")
    assert version == bank.snapshot().version != before.version
    assert [c.description for c in bank.snapshot().classes] == ["Third.", "Dark bar."]
    assert bank.snapshot().templates == before.templates
    with pytest.raises(NotFoundError, match="expected one of disc, bar") as caught:
        bank.describe("ring", "A ring.")
    assert caught.value.field == "class_name"


def test_delete_removes_templates_and_classes(bank: TemplateBank) -> None:
    info, _ = bank.add(*picture(0), CLASSES)
    version = bank.delete(info.template_id)
    assert bank.snapshot().templates == ()
    assert bank.snapshot().classes == ()
    assert bank.snapshot().version == version
    folders = [folder.name for folder in (bank.folder / "templates").iterdir()]
    assert all(folder.startswith(".deleted-") for folder in folders)
    with pytest.raises(NotFoundError, match="no template"):
        bank.delete(info.template_id)


def test_only_present_classes_belong_to_a_template(bank: TemplateBank) -> None:
    image, labels = picture(0)
    info, _ = bank.add(image, np.where(labels == 2, 2, 0), CLASSES)
    assert info.class_names == ("bar",)
    assert np.array_equal(bank.load(info).mask("bar"), labels == 2)


def test_a_class_that_no_template_shows_is_not_listed(bank: TemplateBank) -> None:
    image, labels = picture(0)
    bank.add(image, np.where(labels == 2, 2, 0), CLASSES)
    assert [c.name for c in bank.snapshot().classes] == ["bar"]
    with pytest.raises(NotFoundError, match="expected one of bar"):
        bank.describe("disc", "Bright.")
    bank.add(image, labels, [ClassDefinition(name=c.name) for c in CLASSES])
    assert bank.snapshot().classes == CLASSES


def test_several_templates_are_added_at_once(bank: TemplateBank) -> None:
    first, _ = bank.add(*picture(1), CLASSES, name="old")
    entries = [
        TemplateEntry(image=image, labels=labels, classes=CLASSES, name=f"slice {seed}")
        for seed in (0, 1, 2, 2)
        for image, labels in [picture(seed)]
    ]
    results = bank.add_many(entries)
    assert [created for _, created in results] == [True, False, True, False]
    assert results[1][0] == first
    assert [t.name for t in bank.snapshot().templates] == ["old", "slice 0", "slice 2"]
    for info, _ in results:
        assert bank.load(info).info == info


def test_one_wrong_template_among_several_adds_none(bank: TemplateBank) -> None:
    before = bank.snapshot()
    good = TemplateEntry(image=IMAGE, labels=LABELS, classes=CLASSES)
    wrong = dataclasses.replace(good, labels=np.zeros_like(LABELS))
    with pytest.raises(InvalidRequestError, match=r"entries\[1\]\.label_map: no pixel") as caught:
        bank.add_many([good, wrong])
    assert caught.value.field == "entries[1].label_map"
    assert bank.snapshot() == before


def test_a_snapshot_reads_the_index_only_when_it_changed(bank: TemplateBank) -> None:
    bank.add(*picture(0), CLASSES)
    index = bank.folder / "index.json"
    os.utime(index, (0, 0))  # longer ago than the steps of any file system's clock
    assert bank.snapshot() is bank.snapshot()
    TemplateBank(bank.folder).add(*picture(1), CLASSES)
    assert len(bank.snapshot().templates) == 2


def test_two_changes_within_one_step_of_the_clock_are_seen(bank: TemplateBank) -> None:
    bank.add(*picture(0), CLASSES)
    index = bank.folder / "index.json"
    bank.describe("disc", "AAAA")
    first = index.read_bytes()
    bank.describe("disc", "BBBB")
    second, stamp = bank.snapshot(), index.stat()
    assert len(first) == stamp.st_size
    index.write_bytes(first)
    os.utime(index, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert bank.snapshot().classes[0].description == "AAAA"
    assert bank.snapshot() != second


def test_a_damaged_index_is_told_and_not_overwritten(bank: TemplateBank) -> None:
    bank.add(*picture(0), CLASSES)
    index = bank.folder / "index.json"
    index.write_text(index.read_text()[:50])
    with pytest.raises(BankError, match="damaged"):
        TemplateBank(bank.folder)
    with pytest.raises(BankError, match="damaged"):
        bank.add(*picture(1), CLASSES)
    assert len(index.read_text()) == 50


def test_an_index_that_fits_no_checksum_is_damaged(bank: TemplateBank) -> None:
    bank.add(*picture(0), CLASSES)
    index = bank.folder / "index.json"
    content = json.loads(index.read_text())
    index.write_text(index.read_text().replace("Bright disc.", "Bright disk."))
    with pytest.raises(BankError, match="damaged"):
        bank.snapshot()
    assert content["sha256"]
    del content["sha256"]  # as older versions wrote it
    index.write_text(json.dumps(content))
    assert bank.snapshot().classes == CLASSES


def test_metrics_have_the_last_good_listing_of_a_damaged_bank(bank: TemplateBank) -> None:
    bank.add(*picture(0), CLASSES)
    good = bank.snapshot()
    (bank.folder / "index.json").write_text("{")
    with pytest.raises(BankError, match="damaged"):
        bank.snapshot()
    assert bank.last_good == good


@pytest.mark.parametrize("file", ["image.png", "labels.png", "image.tiff"])
def test_damaged_pixels_are_told(bank: TemplateBank, file: str) -> None:
    image, labels = picture(0)
    pixels = image.astype(np.float32) if file.endswith("tiff") else image
    info, _ = bank.add(pixels, labels, CLASSES)
    path = bank.folder / "templates" / info.template_id / file
    whole = path.read_bytes()
    for damaged in (whole[:100], whole[:8], b"", b"\x00" + whole[1:]):
        path.write_bytes(damaged)
        with pytest.raises(BankError, match=f"{info.template_id} cannot be read"):
            bank.load(info)
    path.unlink()
    with pytest.raises(BankError, match=f"{info.template_id} cannot be read"):
        bank.load(info)


def test_pixels_of_another_size_are_not_decoded(bank: TemplateBank) -> None:
    info, _ = bank.add(*picture(0), CLASSES)
    other, _ = bank.add(*picture(0, (20, 20)), CLASSES)
    folder = bank.folder / "templates"
    (folder / other.template_id / "image.png").replace(folder / info.template_id / "image.png")
    with pytest.raises(BankError, match=r"is \(20, 20\), expected \(60, 52\)"):
        bank.load(info)


def _add(folder: Path, seeds: list[int]) -> None:
    bank = TemplateBank(folder)
    for seed in seeds:
        bank.add(*picture(seed), CLASSES)


def test_processes_do_not_lose_each_others_templates(bank: TemplateBank) -> None:
    context = multiprocessing.get_context("spawn")
    work = [[0, 1, 2, 3], [4, 5, 6, 7]]
    processes = [context.Process(target=_add, args=(bank.folder, seeds)) for seeds in work]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(bank.snapshot().templates) == 8
    index = json.loads((bank.folder / "index.json").read_text())
    assert index["version"] == bank.snapshot().version


IMAGE, LABELS = picture(0)
MANY_CLASSES = [ClassDefinition(name=f"class {i}") for i in range(254)]
HUGE = np.broadcast_to(np.uint8(1), (8193, 8192))


@pytest.mark.parametrize(
    ("image", "labels", "classes", "field", "words"),
    [
        (IMAGE, LABELS[:-1], CLASSES, "label_map", "expected the image's size"),
        (IMAGE, np.zeros_like(LABELS), CLASSES, "label_map", "no pixel is labelled"),
        (IMAGE, np.zeros((0, 0), np.uint8), CLASSES, "label_map", "expected the image's size"),
        (IMAGE, LABELS.astype(float), CLASSES, "label_map", "integers"),
        (IMAGE, LABELS, CLASSES[:1], "label_map", r"expected 0\.\.1"),
        (IMAGE, LABELS, [], "classes", "one or more"),
        (IMAGE, LABELS, [CLASSES[0], CLASSES[0]], "classes", "different"),
        (IMAGE, LABELS, [*CLASSES, *MANY_CLASSES], "classes", "at most 255"),
        (IMAGE, LABELS, [ClassDefinition(name="a\nb"), CLASSES[1]], "classes.name", "control"),
        (IMAGE, LABELS, [ClassDefinition(name="a\x1b[31m"), CLASSES[1]], "classes.name", "control"),
        (IMAGE, LABELS, [ClassDefinition(name="a" * 81), CLASSES[1]], "classes.name", "at most 80"),
        (
            IMAGE,
            LABELS,
            [ClassDefinition(name="a", description="b\x00"), CLASSES[1]],
            "classes.description",
            "control",
        ),
        (np.repeat(IMAGE[..., None], 3, 2).astype(float), LABELS, CLASSES, "image", "uint8"),
        (np.repeat(IMAGE[..., None], 4, 2), LABELS, CLASSES, "image", r"\(H, W, 3\)"),
        (IMAGE[..., None], LABELS, CLASSES, "image", r"\(H, W, 3\)"),
        (HUGE, HUGE, CLASSES[:1], "image", "at most 67108864 pixels"),
    ],
)
def test_wrong_templates_are_refused(
    bank: TemplateBank,
    image: AnyArray,
    labels: AnyArray,
    classes: list[ClassDefinition],
    field: str,
    words: str,
) -> None:
    before = bank.snapshot()
    with pytest.raises(InvalidRequestError, match=words) as caught:
        bank.add(image, labels, classes)
    assert caught.value.field == field
    assert bank.snapshot() == before


def test_a_garbled_name_or_description_is_refused(bank: TemplateBank) -> None:
    with pytest.raises(InvalidRequestError, match="control characters") as caught:
        bank.add(IMAGE, LABELS, CLASSES, name="a\tb")
    assert caught.value.field == "name"
    bank.add(IMAGE, LABELS, CLASSES)
    before = bank.snapshot()
    for description in ("two\nlines", "half \ud800", "a\u2028b", "x" * 401):
        with pytest.raises(InvalidRequestError) as caught:
            bank.describe("disc", description)
        assert caught.value.field == "description"
    assert bank.snapshot() == before
