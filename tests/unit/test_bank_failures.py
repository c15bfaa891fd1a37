"""The bank when processes die, disks are full, and others delete or hold the lock."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from support import CLASSES, picture
from vessa_client import NotFoundError, TemplateInfo
from vessa_server.bank import BankError, BankFullError, TemplateBank, TemplateEntry, folders
from vessa_server.bank.lock import exclusive

HOUR_NS = 3600 * 10**9


@pytest.fixture
def bank(tmp_path: Path) -> TemplateBank:
    """A bank of three templates."""
    opened = TemplateBank(tmp_path / "bank")
    for seed in range(3):
        opened.add(*picture(seed), CLASSES, name=f"picture {seed}")
    return opened


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def hidden(bank: TemplateBank) -> list[str]:
    return [f.name for f in (bank.folder / "templates").iterdir() if f.name.startswith(".")]


# --- Processes that die

KILLED_AT_INDEX = """
import os, signal, sys
from pathlib import Path
import numpy as np
from vessa_client import ClassDefinition
from vessa_server.bank import TemplateBank

bank, replace = TemplateBank(Path(sys.argv[1])), os.replace

def killed(source, target):
    if Path(target).name == "index.json":
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

os.replace = killed
if sys.argv[2] == "add":
    image = np.arange(400, dtype=np.uint16).reshape(20, 20)
    bank.add(image, (image > 200).astype(np.uint8), [ClassDefinition(name="disc")])
else:
    bank.delete(bank.snapshot().templates[0].template_id)
"""


def test_a_process_that_dies_while_adding_leaves_the_old_state(bank: TemplateBank) -> None:
    before = bank.snapshot()
    assert run_python(KILLED_AT_INDEX, bank.folder, "add").returncode == -signal.SIGKILL
    assert TemplateBank(bank.folder).snapshot() == bank.snapshot() == before
    image = np.arange(400, dtype=np.uint16).reshape(20, 20)
    info, created = bank.add(image, (image > 200).astype(np.uint8), CLASSES[:1])
    assert created
    assert np.array_equal(bank.load(info).image, image)


def test_a_process_that_dies_while_deleting_leaves_the_old_state(bank: TemplateBank) -> None:
    before = bank.snapshot()
    assert run_python(KILLED_AT_INDEX, bank.folder, "delete").returncode == -signal.SIGKILL
    assert len(hidden(bank)) == 1
    assert bank.snapshot() == before
    assert bank.load(before.templates[0]).info == before.templates[0]
    reopened = TemplateBank(bank.folder)
    assert reopened.snapshot() == before
    assert hidden(bank) == []
    assert reopened.load(before.templates[0]).info == before.templates[0]


def test_only_leftovers_of_the_bank_itself_are_removed(bank: TemplateBank) -> None:
    parent = bank.folder / "templates"
    kept = ("0123456789abcdef", "notes", ".deleted-by-me", ".hidden")
    for name in (*kept, ".new-abc"):
        (parent / name).mkdir()
        (parent / name / "file").write_text("x")
    for template in bank.snapshot().templates:
        bank.delete(template.template_id)
    TemplateBank(bank.folder)
    assert all((parent / name / "file").exists() for name in kept)
    assert not (parent / ".new-abc").exists()


# --- Deleting while others read


def age(bank: TemplateBank) -> None:
    """Make deleted templates ones that were deleted an hour ago."""
    for name in hidden(bank):
        stem, _, deleted_ns = name.rpartition("-")
        folder = bank.folder / "templates" / name
        folder.rename(folder.with_name(f"{stem}-{int(deleted_ns) - HOUR_NS}"))


def test_a_snapshots_templates_are_read_after_their_deletion(bank: TemplateBank) -> None:
    other = TemplateBank(bank.folder)
    snapshot = other.snapshot()
    for info in snapshot.templates:
        bank.delete(info.template_id)
    assert bank.snapshot().templates == ()
    for info in snapshot.templates:
        assert np.array_equal(other.load(info).labels, bank.load(info).labels)
    bank.add(*picture(9), CLASSES)
    TemplateBank(bank.folder)
    assert other.load(snapshot.templates[0]).info == snapshot.templates[0]


@pytest.mark.parametrize("occasion", ["change", "open"])
def test_deleted_templates_leave_the_disk_in_the_end(bank: TemplateBank, occasion: str) -> None:
    info = bank.snapshot().templates[0]
    bank.delete(info.template_id)
    age(bank)
    if occasion == "change":
        bank.add(*picture(9), CLASSES)
    else:
        TemplateBank(bank.folder)
    assert hidden(bank) == []
    with pytest.raises(BankError, match="cannot be read"):
        bank.load(info)


def test_deleted_templates_leave_the_disk_without_another_change(
    bank: TemplateBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "KEEP_DELETED_SECONDS", 0.0)
    bank.delete(bank.snapshot().templates[0].template_id)
    assert hidden(bank) != []
    bank.snapshot()
    assert hidden(bank) == []


def test_a_template_that_is_added_again_after_its_deletion_stays(bank: TemplateBank) -> None:
    info = bank.snapshot().templates[0]
    bank.delete(info.template_id)
    again, created = bank.add(*picture(0), CLASSES)
    assert (again.template_id, created) == (info.template_id, True)
    age(bank)
    TemplateBank(bank.folder)
    assert hidden(bank) == []
    assert np.array_equal(bank.load(info).image, picture(0)[0])


def test_reading_goes_on_while_templates_come_and_go(bank: TemplateBank) -> None:
    failures: list[Exception] = []
    loaded: list[TemplateInfo] = []
    stop = threading.Event()

    def read() -> None:
        own = TemplateBank(bank.folder)
        while not stop.is_set():
            try:
                loaded.extend(own.load(info).info for info in own.snapshot().templates)
            except Exception as error:
                failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for seed in range(10):
        info, _ = bank.add(*picture(seed % 4), CLASSES)
        bank.delete(info.template_id)
    stop.set()
    for reader in readers:
        reader.join()
    assert failures == []
    assert loaded


# --- Full and read-only disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small disk is not permitted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def noisy(seed: int, side: int) -> TemplateEntry:
    image = np.random.default_rng(seed).integers(0, 255, (side, side), dtype=np.uint8)
    return TemplateEntry(image=image, labels=np.ones_like(image), classes=CLASSES[:1])


def files_of(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.name != ".lock"}


def test_a_full_disk_is_told_at_once_and_nothing_stays(small_disk: Path) -> None:
    bank = TemplateBank(small_disk / "bank")
    bank.add_many([noisy(0, 300)])
    before, files = bank.snapshot(), files_of(bank.folder)
    with pytest.raises(BankFullError, match=r"disk of .* is full .*nothing was added"):
        bank.add_many([noisy(1, 300), noisy(2, 300), noisy(3, 2000)])
    assert bank.snapshot() == TemplateBank(bank.folder).snapshot() == before
    assert files_of(bank.folder) == files
    bank.add_many([noisy(1, 300)])
    assert len(bank.snapshot().templates) == 2


LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
from vessa_client import ClassDefinition
from vessa_server.bank import BankFullError, TemplateBank, TemplateEntry

bank = TemplateBank(Path(sys.argv[1]))
classes = [ClassDefinition(name=sys.argv[3])]
image = np.random.default_rng(0).integers(0, 255, (100, 100), dtype=np.uint8)
labels = np.ones((100, 100), dtype=np.uint8)
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    bank.add(image, labels, classes)
except BankFullError as error:
    print(error)
"""


@pytest.mark.parametrize("limit", [0, 500, 5000])
def test_files_that_cannot_grow_leave_the_bank_as_it_was(bank: TemplateBank, limit: int) -> None:
    before, files = bank.snapshot(), files_of(bank.folder)
    result = run_python(LIMITED, bank.folder, limit, "disc")
    assert "nothing was added" in result.stdout, result.stderr
    assert TemplateBank(bank.folder).snapshot() == bank.snapshot() == before
    assert files_of(bank.folder) == files


def test_an_index_that_cannot_grow_leaves_the_bank_as_it_was(bank: TemplateBank) -> None:
    """The template's files fit the limit, the index with a long list of templates does not."""
    bank.add_many([noisy(seed, 20) for seed in range(100)])
    size = (bank.folder / "index.json").stat().st_size
    before, files = bank.snapshot(), files_of(bank.folder)
    result = run_python(LIMITED, bank.folder, size, "bar")
    assert size > 12_000
    assert "nothing was added" in result.stdout, result.stderr
    assert TemplateBank(bank.folder).snapshot() == bank.snapshot() == before
    assert files_of(bank.folder) == files


DELETE_LIMITED = """
import resource, sys
from pathlib import Path
from vessa_server.bank import BankFullError, TemplateBank

bank = TemplateBank(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
try:
    bank.delete(sys.argv[2])
except BankFullError as error:
    print(error)
"""


def test_a_deletion_that_cannot_be_written_is_taken_back(bank: TemplateBank) -> None:
    info = bank.snapshot().templates[0]
    files = files_of(bank.folder)
    result = run_python(DELETE_LIMITED, bank.folder, info.template_id)
    assert "is full" in result.stdout, result.stderr
    assert files_of(bank.folder) == files
    assert info in bank.snapshot().templates


@pytest.fixture
def read_only(bank: TemplateBank, monkeypatch: pytest.MonkeyPatch) -> Iterator[TemplateBank]:
    """The bank, for a user who may not write to it."""
    monkeypatch.chdir(bank.folder.parent)  # the folders above are closed to other users
    paths = [bank.folder.parent, *files_of(bank.folder), bank.folder, bank.folder / ".lock"]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield bank
    finally:
        if root:
            os.seteuid(0)
        for path in paths:
            path.chmod(0o755)


def test_a_bank_that_may_not_be_written_is_read(read_only: TemplateBank) -> None:
    bank = TemplateBank(Path("bank"))
    assert bank.snapshot() == read_only.last_good
    for info in bank.snapshot().templates:
        assert bank.load(info).info == info
    with pytest.raises(BankError, match="cannot be written"):
        bank.add(*picture(9), CLASSES)
    with pytest.raises(BankError, match="cannot be written"):
        bank.delete(bank.snapshot().templates[0].template_id)
    with pytest.raises(BankError, match="new-bank cannot be written"):
        TemplateBank(Path("new-bank"))


# --- The lock


def test_readers_do_not_wait_for_the_lock_and_writers_not_for_ever(bank: TemplateBank) -> None:
    impatient = TemplateBank(bank.folder, lock_seconds=0.1)
    with exclusive(bank.folder / ".lock", 1):
        opened = TemplateBank(bank.folder)
        for reader in (bank, opened):
            assert len([reader.load(info) for info in reader.snapshot().templates]) == 3
        started = time.monotonic()
        with pytest.raises(BankError, match=r"\.lock is held by another process"):
            impatient.add(*picture(9), CLASSES)
        with pytest.raises(BankError, match=r"\.lock is held by another process"):
            impatient.delete(bank.snapshot().templates[0].template_id)
        assert time.monotonic() - started < 10
    assert impatient.add(*picture(9), CLASSES)[1]


def test_readers_do_not_wait_for_a_writer_of_the_same_bank(bank: TemplateBank) -> None:
    read: list[TemplateInfo] = []

    def add() -> None:
        bank.add(*picture(9), CLASSES)

    with exclusive(bank.folder / ".lock", 1):
        writer = threading.Thread(target=add)
        writer.start()
        read.extend(bank.load(info).info for info in bank.snapshot().templates)
        assert writer.is_alive()
    writer.join()
    assert len(read) == 3
    assert len(bank.snapshot().templates) == 4


def test_a_refused_change_leaves_the_lock_free(bank: TemplateBank) -> None:
    impatient = TemplateBank(bank.folder, lock_seconds=0)
    with pytest.raises(NotFoundError):
        bank.delete("0123456789abcdef")
    assert impatient.add(*picture(9), CLASSES)[1]
