from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from support import CLASSES, picture
from vessa_client import AnyArray, ClassDefinition, InvalidRequestError, NotFoundError
from vessa_server.bank import BankError, TemplateBank


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


def test_a_new_description_is_a_new_version(bank: TemplateBank) -> None:
    bank.add(*picture(0), CLASSES)
    before = bank.snapshot()
    bank.add(*picture(0), [ClassDefinition(name="disc", description="Other."), CLASSES[1]])
    after = bank.snapshot()
    assert after.version != before.version
    assert after.classes[0].description == "Other."
    bank.add(*picture(1), [ClassDefinition(name="disc"), CLASSES[1]])
    assert bank.snapshot().classes[0].description == "Other."


def test_delete_removes_files_and_classes(bank: TemplateBank) -> None:
    info, _ = bank.add(*picture(0), CLASSES)
    bank.delete(info.template_id)
    assert bank.snapshot().templates == ()
    assert bank.snapshot().classes == ()
    assert list((bank.folder / "templates").iterdir()) == []
    with pytest.raises(NotFoundError, match="no template"):
        bank.delete(info.template_id)


def test_only_present_classes_belong_to_a_template(bank: TemplateBank) -> None:
    image, labels = picture(0)
    info, _ = bank.add(image, np.where(labels == 2, 2, 0), CLASSES)
    assert info.class_names == ("bar",)
    assert np.array_equal(bank.load(info).mask("bar"), labels == 2)


def test_a_crash_before_the_index_leaves_the_old_state(bank: TemplateBank) -> None:
    bank.add(*picture(0), CLASSES)
    before = bank.snapshot()
    crashed = TemplateBank(bank.folder)

    def crash(*_: object) -> str:
        raise KeyboardInterrupt

    crashed._write_index = crash  # type: ignore[method-assign, assignment]
    with pytest.raises(KeyboardInterrupt):
        crashed.add(*picture(1), CLASSES)
    reopened = TemplateBank(bank.folder)
    assert reopened.snapshot() == before
    _, created = reopened.add(*picture(1), CLASSES)
    assert created
    assert len(reopened.snapshot().templates) == 2


def test_a_damaged_index_is_told_and_not_overwritten(bank: TemplateBank) -> None:
    bank.add(*picture(0), CLASSES)
    index = bank.folder / "index.json"
    index.write_text(index.read_text()[:50])
    with pytest.raises(BankError, match="damaged"):
        TemplateBank(bank.folder)
    with pytest.raises(BankError, match="damaged"):
        bank.add(*picture(1), CLASSES)
    assert len(index.read_text()) == 50


def test_damaged_pixels_are_told(bank: TemplateBank) -> None:
    info, _ = bank.add(*picture(0), CLASSES)
    file = bank.folder / "templates" / info.template_id / "image.png"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(BankError, match="cannot be read"):
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
        (np.repeat(IMAGE[..., None], 3, 2).astype(float), LABELS, CLASSES, "image", "uint8"),
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
