"""The bank when its index is lost or damaged, and how it is rebuilt."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support import CLASSES, picture
from vessa_server.bank import BankError, TemplateBank


@pytest.fixture
def bank(tmp_path: Path) -> TemplateBank:
    """A bank of three templates, with one description that was changed."""
    opened = TemplateBank(tmp_path / "bank")
    for seed in range(3):
        opened.add(*picture(seed), CLASSES, name=f"picture {seed}")
    opened.describe("disc", "Round and bright.")
    return opened


def make_older(bank: TemplateBank) -> None:
    """Make a bank what older versions wrote: no records, no checksum."""
    for record in bank.folder.glob("templates/*/template.json"):
        record.unlink()
    index = bank.folder / "index.json"
    content = json.loads(index.read_text())
    del content["sha256"]
    index.write_text(json.dumps(content))


def test_a_bank_without_its_index_is_refused_and_keeps_its_templates(bank: TemplateBank) -> None:
    templates = bank.snapshot().templates
    (bank.folder / "index.json").unlink()
    with pytest.raises(BankError, match=r"missing.*restore index\.json.*python -m"):
        TemplateBank(bank.folder)
    for change in (
        lambda: bank.add(*picture(5), CLASSES),
        lambda: bank.delete(templates[0].template_id),
        bank.snapshot,
    ):
        with pytest.raises(BankError, match=r"index\.json"):
            change()
    for info in templates:
        assert bank.load(info).info == info


def test_the_command_in_the_error_rebuilds_the_bank(bank: TemplateBank) -> None:
    before = bank.snapshot()
    (bank.folder / "index.json").unlink()
    with pytest.raises(BankError) as caught:
        TemplateBank(bank.folder)
    command = str(caught.value).split("`")[1].split()
    assert command[0] == "python"
    result = subprocess.run(
        [sys.executable, *command[1:]], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "3 templates of disc, bar" in result.stdout
    assert TemplateBank(bank.folder).snapshot() == before
    assert bank.snapshot() == before


def test_a_damaged_index_is_rebuilt_and_kept_beside_the_new_one(bank: TemplateBank) -> None:
    before = bank.snapshot()
    index = bank.folder / "index.json"
    damaged = index.read_text()[:200]
    index.write_text(damaged)
    assert TemplateBank.rebuild(bank.folder) == before == bank.snapshot()
    assert (bank.folder / "index.json.replaced").read_text() == damaged


def test_opening_an_older_bank_makes_it_one_that_can_be_rebuilt(bank: TemplateBank) -> None:
    before = bank.snapshot()
    make_older(bank)
    assert TemplateBank(bank.folder).snapshot() == before
    (bank.folder / "index.json").unlink()
    assert TemplateBank.rebuild(bank.folder) == before


def test_class_names_of_an_older_bank_are_not_invented(bank: TemplateBank) -> None:
    before = bank.snapshot()
    make_older(bank)
    (bank.folder / "index.json").unlink()
    for wrong in ((), ("disc",), ("disc", "ring")):
        with pytest.raises(BankError, match="nothing was changed") as caught:
            TemplateBank.rebuild(bank.folder, wrong)
        assert all(t.template_id in str(caught.value) for t in before.templates)
        assert not (bank.folder / "index.json").exists()
    rebuilt = TemplateBank.rebuild(bank.folder, ("ring", "bar", "disc"))
    assert {(t.template_id, t.class_names) for t in rebuilt.templates} == {
        (t.template_id, t.class_names) for t in before.templates
    }


def test_names_that_other_templates_record_are_tried(bank: TemplateBank) -> None:
    before = bank.snapshot()
    (bank.folder / "templates" / before.templates[1].template_id / "template.json").unlink()
    (bank.folder / "index.json").unlink()
    rebuilt = TemplateBank.rebuild(bank.folder)
    assert {t.template_id for t in rebuilt.templates} == {t.template_id for t in before.templates}
    assert rebuilt.classes == before.classes


def test_windows_come_back_also_of_templates_without_a_record(bank: TemplateBank) -> None:
    for seed, window in ((5, (-160.0, 240.0)), (6, (-160.0, 240.0)), (7, (0.1, 0.7))):
        info, _ = bank.add(*picture(seed), CLASSES, window=window)
        if seed == 6:
            (bank.folder / "templates" / info.template_id / "template.json").unlink()
    before = {t.template_id: t.window for t in bank.snapshot().templates}
    (bank.folder / "index.json").unlink()
    rebuilt = TemplateBank.rebuild(bank.folder)
    assert {t.template_id: t.window for t in rebuilt.templates} == before


def test_a_template_with_damaged_pixels_is_named_by_the_rebuild(bank: TemplateBank) -> None:
    info = bank.snapshot().templates[1]
    labels = bank.folder / "templates" / info.template_id / "labels.png"
    labels.write_bytes(labels.read_bytes()[:40])
    index = (bank.folder / "index.json").read_bytes()
    with pytest.raises(BankError, match=info.template_id) as caught:
        TemplateBank.rebuild(bank.folder)
    assert bank.snapshot().templates[0].template_id not in str(caught.value)
    assert (bank.folder / "index.json").read_bytes() == index


def test_a_folder_that_is_no_bank_is_not_made_one(tmp_path: Path) -> None:
    with pytest.raises(BankError, match="has no templates"):
        TemplateBank.rebuild(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_bank_whose_folder_vanished_is_not_an_empty_one(bank: TemplateBank) -> None:
    shutil.rmtree(bank.folder)
    with pytest.raises(BankError, match="gone"):
        bank.snapshot()
    with pytest.raises(BankError, match="gone"):
        bank.add(*picture(5), CLASSES)
    assert not bank.folder.exists()
    assert len(bank.last_good.templates) == 3
