from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from support import CLASSES, picture
from vessa_client import InvalidRequestError, NotFoundError
from vessa_server.bank import BankError, Banks, TemplateBank


@pytest.fixture
def banks(tmp_path: Path) -> Banks:
    return Banks(tmp_path / "bank")


def test_banks_do_not_share_templates(banks: Banks) -> None:
    banks.get("").add(*picture(0), CLASSES)
    liver = banks.create("liver-ct")
    assert liver.snapshot().templates == ()
    info, created = liver.add(*picture(1), CLASSES)
    assert created
    assert info.template_id not in {t.template_id for t in banks.get("").snapshot().templates}
    assert len(banks.get("").snapshot().templates) == 1
    assert liver.folder == banks.folder / "banks" / "liver-ct"


def test_the_folder_itself_is_the_default_bank(tmp_path: Path) -> None:
    info, _ = TemplateBank(tmp_path).add(*picture(0), CLASSES)
    banks = Banks(tmp_path)
    assert banks.get("").snapshot().templates == (info,)
    assert banks.names() == ()


def test_a_bank_is_one_object_and_survives_reopening(banks: Banks) -> None:
    created = banks.create("b")
    assert created is banks.create("b") is banks.get("b") is banks.get("b", create=True)
    info, _ = created.add(*picture(0), CLASSES)
    banks.get("a.1_2", create=True)
    again = Banks(banks.folder)
    assert again.names() == banks.names() == ("a.1_2", "b")
    assert again.get("b").snapshot().templates == (info,)


def test_an_unknown_bank_is_told_with_those_that_are_known(banks: Banks) -> None:
    banks.create("heart")
    with pytest.raises(
        NotFoundError, match=r"no bank 'hart'.*'heart'.*adding a template"
    ) as caught:
        banks.get("hart")
    assert caught.value.field == "bank"
    assert banks.names() == ("heart",)


@pytest.mark.parametrize(
    "name",
    ["..", ".", "../x", "a/b", "/etc", "A", "ä", "-a", ".a", "a b", "a\n", "a\0", "a" * 65, " "],
)
@pytest.mark.parametrize("create", [False, True])
def test_what_cannot_be_a_name_is_refused(banks: Banks, name: str, create: bool) -> None:
    before = sorted(banks.folder.parent.rglob("*"))
    with pytest.raises(InvalidRequestError, match="expected 1 to 64 of a-z") as caught:
        banks.get(name, create=create)
    assert caught.value.field == "bank"
    assert sorted(banks.folder.parent.rglob("*")) == before


def test_the_longest_name_is_taken(banks: Banks) -> None:
    assert banks.create("a" * 64).snapshot().templates == ()


def test_a_bank_that_was_removed_is_unknown_and_can_be_made_again(banks: Banks) -> None:
    banks.create("b").add(*picture(0), CLASSES)
    shutil.rmtree(banks.folder / "banks" / "b")
    with pytest.raises(NotFoundError, match="default bank; adding"):
        banks.get("b")
    assert banks.create("b").snapshot().templates == ()


def test_a_damaged_bank_harms_no_other(banks: Banks) -> None:
    banks.create("bad").add(*picture(0), CLASSES)
    (banks.folder / "banks" / "bad" / "index.json").write_text("{")
    again = Banks(banks.folder)
    with pytest.raises(BankError, match="damaged"):
        again.get("bad")
    assert again.create("good").add(*picture(0), CLASSES)[1]
    assert again.get("").snapshot().templates == ()


def test_files_beside_the_banks_are_no_banks(banks: Banks) -> None:
    banks.create("b")
    (banks.folder / "banks" / "readme.txt").write_text("x")
    (banks.folder / "banks" / ".hidden").mkdir()
    assert banks.names() == ("b",)
