"""What a training leaves for people to look at."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from ssl_trainer.cli import app
from ssl_trainer.config import parse, to_dict
from ssl_trainer.data import frame
from ssl_trainer.data.batches import UnlabelledBatch
from ssl_trainer.data.cases import find
from ssl_trainer.data.slices import Slice
from ssl_trainer.evaluation import report
from ssl_trainer.evaluation.metrics import foreground_dice
from ssl_trainer.methods import quality
from ssl_trainer.training.trainer import Trainer
from trainer_support import small_config, write_case, write_dataset
from vessa_client import UInt8Array, files, pictures
from vessa_common.training_log import answered, read_log


def test_a_run_ends_with_a_report_that_shows_its_pictures(tmp_path: Path) -> None:
    config = small_config(write_dataset(tmp_path / "data"))
    run = tmp_path / "run"
    Trainer(config, run).run()
    result = CliRunner().invoke(app, ["report", str(run)])
    assert result.exit_code == 0, result.output
    text = (run / "report.md").read_text()
    assert "1 labelled, 2 unlabelled, 1 for validation" in text
    assert "| disc |" in text
    assert "| bar |" in text
    pictures = [line.split("(")[1].rstrip(")") for line in text.splitlines() if line[:1] == "!"]
    assert len(pictures) == 3
    for name in pictures:
        pixels = np.asarray(Image.open(run / name).convert("RGB"))
        assert min(pixels.shape[:2]) > 100
        assert pixels.std() > 5, f"{name} is empty"


def test_a_run_without_validation_cases_shows_unlabelled_slices(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data")
    for file in (root / "val").iterdir():
        file.unlink()
    run = tmp_path / "run"
    Trainer(small_config(root), run).run()
    assert CliRunner().invoke(app, ["report", str(run)]).exit_code == 0
    text = (run / "report.md").read_text()
    assert "| Dice |" not in text
    assert (run / "gallery.png").is_file()


@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(0, 9), st.floats(0, 1)), max_size=12),
)
def test_answers_are_counted_over_the_whole_log(windows: list[tuple[int, int, float]]) -> None:
    """Against a list of updates, each of them with all of its answers or not."""
    log: list[dict[str, float]] = []
    complete: list[bool] = []
    for length, asked, share in windows:
        came = round(share * asked)
        complete += [came == asked] * length
        counts = {"assistant/requested": asked, "assistant/received": came} if asked else {}
        log.append({"step": len(complete), **counts})
    found = answered(log)
    assert found.requested == sum(asked for _, asked, _ in windows)
    assert found.received == sum(round(share * asked) for _, asked, share in windows)
    missing = {step for first, last in found.gaps for step in range(first, last + 1)}
    assert missing == {step for step, whole in enumerate(complete, start=1) if not whole}
    ends = [end for gap in found.gaps for end in gap]
    assert ends == sorted(ends)
    assert not any(last + 1 == first for (_, last), (first, _) in pairwise(found.gaps))


@pytest.mark.parametrize(
    ("received", "words"),
    [
        ([10, 10, 10], "answered 100 % of 30 requests"),
        ([10, 0, 10], "answered 66.6 % of 30 requests, not all in updates 11-20"),
        ([9, 10, 0], "answered 63.3 % of 30 requests, not all in updates 1-10, 21-30"),
    ],
)
def test_a_report_says_how_much_vessa_answered(
    tmp_path: Path, received: list[int], words: str
) -> None:
    config = small_config(write_dataset(tmp_path / "data"), steps=1)
    run = tmp_path / "run"
    Trainer(config, run).run()
    lines = [
        {"step": 10 * i, "assistant/requested": 10, "assistant/received": count}
        for i, count in enumerate(received, start=1)
    ]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    content = to_dict(config)
    for bank, named in (("", "the default bank"), ("heart", "bank heart")):
        content["assistant"] |= {"server": "here:1", "bank": bank}
        (run / "config.yaml").write_text(yaml.safe_dump(content))
        assert CliRunner().invoke(app, ["report", str(run)]).exit_code == 0
        assert f"- VESSA: at here:1, {named}, {words}\n" in (run / "report.md").read_text()


@pytest.mark.parametrize("line", [b"\0\0\n", b"\n", b'{"loss": 1}\n', b"\xff\n", b"3\n"])
def test_a_damaged_log_is_named_with_its_line(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "log.jsonl").write_bytes(b'{"step": 1}\n' + line + b'{"step": 2}\n{"st')
    with pytest.raises(ValueError, match=r"log\.jsonl: line 2 is damaged"):
        read_log(tmp_path / "log.jsonl")


def test_the_gallery_shows_slices_from_the_best_to_the_worst(tmp_path: Path) -> None:
    config = small_config(write_dataset(tmp_path / "data"), steps=1)
    cases, asked = find(config.data).val, list[str]()
    assert cases

    def predict(image: files.ImageFile) -> list[UInt8Array]:
        """The first slice is right, in the others more and more is missing."""
        asked.append(image.stem)
        truth = next(c for c in cases if c.image == image.path).read_labels(image, 2)
        assert truth is not None
        found = [truth.slice(i).astype(np.uint8) for i in range(image.depth)]
        rows = np.arange(len(found[0]))[:, None]
        return [np.where(rows < len(rows) // (i + 1), m, 0) for i, m in enumerate(found)]

    rows = [row for case in cases for row in report._shown(case, config, predict)]
    assert rows[0].dice == 1
    assert rows[0].dice > rows[1].dice > rows[2].dice
    asked.clear()
    picture = report._gallery(cases, config, predict)
    assert len(asked) == 2 * len(cases)
    best = report._pictured(rows[0])
    below = picture[len(pictures.legend(config.data.classes)) :]
    assert np.array_equal(below[: len(best), : best.shape[1]], best)


def test_labels_of_unlabelled_cases_are_left_alone(tmp_path: Path) -> None:
    """Even damaged ones, where there is nothing to validate on."""
    root = write_dataset(tmp_path / "data")
    for file in (root / "val").iterdir():
        file.unlink()
    (root / "train" / "p1_frame01_gt.nii.gz").write_bytes(b"no labels")
    Trainer(small_config(root, steps=1), tmp_path / "run").run()
    result = CliRunner().invoke(app, ["report", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output


def test_only_slices_that_vessa_answered_count_for_it() -> None:
    truth = np.zeros((16, 16), dtype=np.uint8)
    truth[4:12, 4:12] = 1
    item = Slice("s", truth, truth, "s")
    grids = torch.stack([frame.grid(frame.theta(truth.shape), 16)] * 2)
    batch = UnlabelledBatch((item, item), grids, torch.zeros(2, 1, 16, 16))
    right, nothing = torch.from_numpy(truth).long(), torch.zeros(16, 16, dtype=torch.long)
    labels = torch.stack([right, nothing])
    scores = quality.watch(batch, labels, labels, [True, False])
    assert scores["quality/vessa"] == 1.0
    assert scores["quality/teacher"] == pytest.approx(2 / 3)
    assert "quality/vessa" not in quality.watch(batch, labels, labels, [False, False])


def test_watching_the_quality_does_not_change_the_training(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data")
    write_case(root / "train", "p1_frame01", 1, labelled=True)
    config = replace(small_config(root), validate_every=1)  # so that every update is logged
    content = to_dict(config)
    content["data"]["watch_quality"] = True
    students, logs = {}, {}
    for name, plain in (("plain", to_dict(config)), ("watched", content)):
        trainer = Trainer(parse(plain), tmp_path / name)
        scalars = [trainer.train_step() for _ in range(4)]
        students[name], logs[name] = trainer.student.state_dict(), scalars
    for name, tensor in students["plain"].items():
        assert torch.equal(tensor, students["watched"][name]), name
    watched = [s["quality/teacher"] for s in logs["watched"] if "quality/teacher" in s]
    assert watched
    assert all(0 <= score <= 1 for score in watched)
    assert not any("quality" in key for scalars in logs["plain"] for key in scalars)


def test_quality_is_the_dice_of_the_structures_that_are_there() -> None:
    truth = torch.zeros(2, 8, 8, dtype=torch.long)
    truth[0, :4], truth[1, :, :2] = 1, 2
    predicted = truth.clone()
    predicted[0, :2] = 2
    ones = 2 * 16 / (16 + 32)
    twos = 2 * 16 / (32 + 16)
    assert foreground_dice(predicted, truth) == (ones + twos) / 2
    assert foreground_dice(predicted, torch.zeros_like(truth)) is None
