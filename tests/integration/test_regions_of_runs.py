"""Runs whose student sees regions of interest, with a VESSA server that names them."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner, Result

from ssl_trainer import config as configuration
from ssl_trainer import models
from ssl_trainer.assistant.assistant import Assistant, PseudoLabel, Students
from ssl_trainer.assistant.connection import AssistantError
from ssl_trainer.assistant.pipeline import Pipeline
from ssl_trainer.cli import app
from ssl_trainer.config import AssistantConfig, TrainConfig
from ssl_trainer.data import batches, frame
from ssl_trainer.data.batches import SliceSampler
from ssl_trainer.data.frame import Roi
from ssl_trainer.data.slices import Slice
from ssl_trainer.models import predict_probabilities
from ssl_trainer.regions import find, training
from ssl_trainer.regions.run import LOCATOR_FILE, REGIONS_FILE, load_regions
from ssl_trainer.training.trainer import Trainer, load_student
from support import CLASSES, RunningServer, engine_of, free_port, picture, running
from trainer_support import (
    AFFINE,
    UNET,
    same,
    single_slices,
    small_config,
    stored,
    write_dataset,
)
from vessa_client import SegmentationRequest, SegmentationResult
from vessa_common.processes import Processes
from vessa_server.engine import VessaEngine
from vessa_server.engine_settings import EngineSettings

NAMES = tuple(c.name for c in CLASSES)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The locator's training takes half a minute; where it has to find something it is longer."""
    monkeypatch.setattr(training, "STEPS", 4)


def stopped(config: TrainConfig, out: Path, after: int) -> None:
    def stop(step: int, scalars: dict[str, float]) -> None:
        if step == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trainer(config, out).run(stop)


def test_a_resumed_run_keeps_its_regions_and_is_the_unbroken_one_bit_for_bit(
    tmp_path: Path, server: RunningServer, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_dataset(tmp_path / "data")
    config = small_config(root, steps=8, server=server.grpc, regions=True)
    Trainer(config, tmp_path / "whole").run()
    stopped(config, tmp_path / "run", after=5)  # saved at 4, with prompts under way
    kept = [(tmp_path / "run" / name).read_bytes() for name in (REGIONS_FILE, LOCATOR_FILE)]
    assert capsys.readouterr().out.count("regions.found") == 2
    trainer = Trainer(config, tmp_path / "run")
    trainer.run()
    assert "regions.found" not in capsys.readouterr().out
    assert same(tmp_path / "whole", tmp_path / "run")
    for folder in (tmp_path / "whole", tmp_path / "run"):
        found = [(folder / name).read_bytes() for name in (REGIONS_FILE, LOCATOR_FILE)]
        assert found == kept
    best = [(tmp_path / name / "best.safetensors").read_bytes() for name in ("whole", "run")]
    assert best[0] == best[1]
    assert set(trainer.regions) == {"p0_frame01", "p1_frame01", "p2_frame01"}
    assert trainer.regions == find.from_rows(json.loads(kept[0])["used"])


def test_a_run_that_begins_finds_its_own_regions(tmp_path: Path) -> None:
    """Another one, stopped before its first checkpoint, may have left some in the folder."""
    config = small_config(write_dataset(tmp_path / "data"), regions=True)
    stopped(dataclasses.replace(config, seed=5), tmp_path / "run", after=1)
    left = (tmp_path / "run" / LOCATOR_FILE).read_bytes()
    Trainer(config, tmp_path / "run").run()
    Trainer(config, tmp_path / "new").run()
    assert same(tmp_path / "run", tmp_path / "new")
    found = [(tmp_path / name / LOCATOR_FILE).read_bytes() for name in ("run", "new")]
    assert left != found[0] == found[1]
    stopped(config, tmp_path / "whole", after=1)
    whole = small_config(tmp_path / "data")
    Trainer(whole, tmp_path / "whole").run()
    assert load_student(tmp_path / "whole", whole).locator is None


def _cli(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "200"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_a_run_with_regions_predicts_without_a_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, run = write_dataset(tmp_path / "data"), tmp_path / "run"
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(configuration.to_dict(small_config(root, regions=True))))
    with running(engine_of(tmp_path / "s")) as server:
        result = _cli("train", file, "-o", run, "--server", server.grpc)
    assert result.exit_code == 0, result.output
    # Where there is no terminal, lines say what bars show on one.
    assert f"VESSA: at {server.grpc}, the default bank\n" in result.stdout
    assert "Regions by VESSA ...\nLocator ...\n" in result.stdout
    assert re.search(r"^update 6 of 6, loss 1\.\d+ .*, 0 min left$", result.stdout, re.MULTILINE)
    rows = json.loads((run / REGIONS_FILE).read_text())
    assert set(rows["vessa"]) == {"p1_frame01", "p2_frame01"}
    result = _cli("evaluate", run)
    assert result.exit_code == 0, result.output
    result = _cli("predict", run, root / "train", "-o", tmp_path / "seg")
    assert result.exit_code == 0, result.output
    written = sorted(f.name for f in (tmp_path / "seg").iterdir())
    assert written == [f"p{i}_frame01_seg.nii.gz" for i in range(3)]
    for name in written:
        labels = nib.load(tmp_path / "seg" / name)
        assert labels.shape == (44, 48, 3)
        assert np.allclose(labels.affine, AFFINE)
    (run / LOCATOR_FILE).unlink()
    result = _cli("predict", run, root / "train", "-o", tmp_path / "seg")
    assert result.exit_code == 1
    assert LOCATOR_FILE in result.output


def _write_turned(root: Path, name: str, turns: int) -> None:
    """A volume as those of ``write_dataset``, turned, and larger."""
    slices = [np.rot90(picture(70 + z, (64, 72))[0], -turns) for z in range(3)]
    image = nib.Nifti1Image(np.stack(slices, axis=2), AFFINE)
    nib.save(image, root / "train" / f"{name}_frame01.nii.gz")


def test_a_series_that_the_server_refuses_has_the_locators_region(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_dataset(tmp_path / "data")
    _write_turned(root, "p5", 1)
    engine = engine_of(tmp_path / "s", settings=EngineSettings(max_image_side=60))
    with running(engine) as server:
        config = small_config(root, steps=2, server=server.grpc, regions=True)
        trainer = Trainer(config, tmp_path / "run")
        trainer.run()
    rows = json.loads((tmp_path / "run" / REGIONS_FILE).read_text())
    assert set(rows["vessa"]) == {"p1_frame01", "p2_frame01"}
    assert set(rows["used"]) == {f"p{i}_frame01" for i in (0, 1, 2, 5)}
    printed = capsys.readouterr().out
    assert printed.count("assistant.refused") >= 1
    assert "p5_frame01/0" in printed
    assert "regions.unknown" not in printed


class _Older(VessaEngine):
    """Says nothing of where it looked, as a server of an older contract."""

    def finish(self, *arguments: Any) -> SegmentationResult:
        return dataclasses.replace(super().finish(*arguments), region=None)


def test_of_a_server_that_names_no_regions_a_run_says_so_and_learns_from_its_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, engine = write_dataset(tmp_path / "data"), engine_of(tmp_path / "s")
    engine.__class__ = _Older
    with running(engine) as server:
        config = small_config(root, steps=2, server=server.grpc, regions=True)
        Trainer(config, tmp_path / "run").run()
    printed = capsys.readouterr().out
    assert printed.count("regions.unknown") == 1
    assert "labelled ones only" in printed
    rows = json.loads((tmp_path / "run" / REGIONS_FILE).read_text())
    assert rows["vessa"] == {}
    Trainer(small_config(root, steps=2, regions=True), tmp_path / "alone").run()
    assert rows == json.loads((tmp_path / "alone" / REGIONS_FILE).read_text())
    assert "regions.unknown" not in capsys.readouterr().out


def test_each_series_has_the_region_that_the_server_names(
    tmp_path: Path, server: RunningServer
) -> None:
    slices = single_slices(10)  # more than are asked about at once
    bad = Slice("bad/0", np.full((40, 40), np.nan, np.float32), None, "bad")
    assistant = Assistant(AssistantConfig(server=server.grpc), NAMES)
    advanced: list[int] = []
    found = assistant.regions([*slices[:3], bad, *slices[3:]], lambda: advanced.append(1))
    assistant.close()
    assert len(advanced) == 11
    engine = engine_of(tmp_path / "e")
    assert list(found) == [item.series for item in slices], "in whatever order they came"
    assert found == {
        item.series: engine.segment(SegmentationRequest(image=item.image, class_names=NAMES)).region
        for item in slices
    }


def test_vessa_looks_where_it_is_told_and_searches_elsewhere(
    tmp_path: Path, server: RunningServer
) -> None:
    slices = single_slices(2)
    rois = [Roi(20.0, 30.0, 24.0, 3), None]
    assistant = Assistant(AssistantConfig(server=server.grpc), NAMES)
    assistant.ask(0, slices, None, rois)
    answers = assistant.collect(0)
    assistant.close()
    engine = engine_of(tmp_path / "e")
    for item, roi, answer in zip(slices, rois, answers, strict=True):
        region = None if roi is None else roi.region(item.image.shape)
        request = SegmentationRequest(image=item.image, region=region, class_names=NAMES)
        expected = engine.segment(request)
        assert answer is not None
        assert np.array_equal(answer.labels, expected.labels)
        assert np.array_equal(answer.confidence, expected.confidence)
        if region is not None:
            assert expected.region == region
            inside = np.zeros(item.image.shape, bool)
            inside[region.top :, region.left :][: region.height, : region.width] = True
            assert not answer.labels[~inside].any()


def test_regions_are_waited_for_until_the_server_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    config = AssistantConfig(server=f"127.0.0.1:{port}", wait_seconds=60)
    assistant = Assistant(config, NAMES)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(assistant.regions, single_slices(2))
        while "assistant.waiting" not in capsys.readouterr().out:
            assert not asked.done()
        with running(engine_of(tmp_path), grpc_port=port):
            assert set(asked.result(60)) == {"0", "1"}
    assistant.close()
    patient = dataclasses.replace(config, wait_seconds=0.0)
    assistant = Assistant(patient, NAMES)
    with pytest.raises(AssistantError, match="does not answer"):
        assistant.regions(single_slices(1))
    assistant.close()


def _pipeline(server: str, ahead: int, steps: int = 10) -> Pipeline:
    """Of five slices and a teacher of random weights; each has a region that is turned."""
    config = small_config(Path(), steps=steps, server=server)
    assistant = dataclasses.replace(config.assistant, ahead=ahead, feedback_start=0.3)
    config = dataclasses.replace(config, assistant=assistant, accumulate=2)
    slices = single_slices(5)
    torch.manual_seed(0)
    teacher = models.build(UNET, 2).eval()
    sampler = SliceSampler(len(slices), config.unlabelled_batch, seed=0)
    pipeline = Pipeline(config, sampler, Processes(), teacher)
    regions = {str(i): Roi(20.0 + i, 30.0, 24.0 + i, i % 4) for i in range(4)}
    pipeline.store = stored(slices, 32, regions)
    return pipeline


@pytest.mark.parametrize("ahead", [1, 3, 20])
def test_updates_are_asked_about_ahead_and_again_where_a_run_goes_on(
    server: RunningServer, ahead: int
) -> None:
    whole, first, second = (_pipeline(server.grpc, ahead) for _ in range(3))
    answers: dict[int, dict[int, list[PseudoLabel | None]]] = {}
    whole.ask_ahead(0)
    for step in range(10):
        assert list(whole.prompts) == list(range(step, min(step + ahead, 10)))
        assert [maps is not None for maps in whole.prompts.values()] == [
            number >= 3 for number in whole.prompts
        ]
        answers[step] = whole.collect(step)
        assert list(answers[step]) == [2 * step, 2 * step + 1], "two batches an update"
        whole.ask_ahead(step + 1)
    whole.close()
    first.ask_ahead(0)
    for step in range(4):
        first.collect(step)
        first.ask_ahead(step + 1)
    under_way = first.gathered()
    assert set(under_way) == set(range(4, min(4 + ahead, 10)))
    first.close()
    second.restore(under_way, 4, planned=10)
    restored = second.gathered()
    assert restored.keys() == under_way.keys()
    assert all(torch.equal(restored[step], maps) for step, maps in under_way.items())
    for step in range(4, 10):
        for number, found in second.collect(step).items():
            for one, other in zip(found, answers[step][number], strict=True):
                assert one is not None
                assert other is not None
                assert np.array_equal(one.labels, other.labels)
                assert np.array_equal(one.confidence, other.confidence)
        second.ask_ahead(step + 1)
    second.close()


def test_beyond_what_was_planned_nothing_was_asked(server: RunningServer) -> None:
    pipeline = _pipeline(server.grpc, ahead=6)
    pipeline.restore({}, 2, planned=5)
    assert list(pipeline.prompts) == [2, 3, 4]
    pipeline.ask_ahead(2)
    assert list(pipeline.prompts) == [2, 3, 4, 5, 6, 7]
    assert [maps is not None for maps in pipeline.prompts.values()] == [*[False] * 3, *[True] * 3]
    pipeline.close()


def test_prompts_are_of_the_regions_canvas_and_lie_where_the_slice_shows_it(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = _pipeline(server.grpc, ahead=1)
    sent: dict[int, tuple[Sequence[Slice], Students]] = {}

    def note(
        number: int,
        slices: Sequence[Slice],
        students: Students | None,
        rois: Sequence[Roi | None],
    ) -> None:
        assert students is not None
        known = [pipeline.store.roi(item) for item in slices]
        # As close as VESSA looks by itself, but for whole slices.
        assert list(rois) == [roi and roi.scaled(1 / 1.25) for roi in known]
        sent[number] = slices, students

    monkeypatch.setattr(pipeline.assistant, "ask", note)
    pipeline.ask_ahead(5)
    assert list(sent) == [10, 11]
    torch.manual_seed(0)
    teacher = models.build(UNET, 2).eval()
    for slices, students in sent.values():
        for item, mask in zip(slices, students(), strict=True):
            roi = pipeline.store.roi(item)  # none of the last
            assert mask.shape == (2, *item.image.shape)
            canvas = batches.canonical(item, 32, roi)
            maps = predict_probabilities(teacher, canvas[None])[0]
            expected = frame.restore(maps, item.image.shape, roi)[1:]
            assert np.abs(mask - 255 * expected.numpy()).max() <= 1.5
            if roi is not None:
                rows, columns = np.mgrid[: item.image.shape[0], : item.image.shape[1]] + 0.5
                beside = np.maximum(abs(rows - roi.row), abs(columns - roi.column))
                assert not mask[:, beside > roi.side / 2].any()
                assert mask[:, beside < roi.side / 2 - 1].all()
    pipeline.close()


def test_the_students_views_show_the_region_upright(tmp_path: Path) -> None:
    """A volume that lies on its side, and one that does not, look alike in their regions."""
    image, _ = picture(0, (60, 60))
    turned = np.ascontiguousarray(np.rot90(image, -1))
    slices = [Slice("a/0", image, None, "a"), Slice("b/0", turned, None, "b")]
    found = {"a": Roi(30.0, 30.0, 48.0), "b": Roi(30.0, 30.0, 48.0, 1)}
    config = small_config(tmp_path)
    views = [
        batches.unlabelled_batch(
            stored(slices, 32, found), [index], config, np.random.default_rng(3)
        )
        for index in range(2)
    ]
    assert torch.allclose(views[0].image_B1HW, views[1].image_B1HW, atol=5e-4)
    whole = batches.unlabelled_batch(stored(slices, 32), [1], config, np.random.default_rng(3))
    assert not torch.allclose(whole.image_B1HW, views[1].image_B1HW, atol=0.1)


def test_what_a_run_uses_are_labels_where_there_are_some(
    tmp_path: Path, server: RunningServer
) -> None:
    config = small_config(
        write_dataset(tmp_path / "data"), steps=1, server=server.grpc, regions=True
    )
    trainer = Trainer(config, tmp_path / "run")
    trainer.run()
    assert find.of_labels(trainer.labelled).items() <= trainer.regions.items()
    assert trainer.pipeline is not None
    assert load_regions(tmp_path / "run") == trainer.regions
    assert trainer.locator is not None
    located = find.by_locator(trainer.locator, trainer.unlabelled)
    assert located.items() <= trainer.regions.items()
    assert trainer.pipeline is not None
    for item in trainer.unlabelled:
        assert trainer.pipeline.store.roi(item) == trainer.regions[item.series]
