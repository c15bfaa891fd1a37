"""How long VESSA's labels count: measured on validation slices."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ssl_trainer.assistant.feedback import prompt
from ssl_trainer.assistant.trust import Trust
from ssl_trainer.config import AssistantConfig
from ssl_trainer.data.batches import canonical
from ssl_trainer.data.cases import Slice
from ssl_trainer.evaluation import volumes
from ssl_trainer.models import predict_probabilities
from ssl_trainer.unimatch.trainer import UniMatchTrainer
from support import CLASSES, RunningServer
from trainer_support import same, small_config, write_case, write_dataset
from vessa_client import SegmentationRequest, VessaClient, files

NAMES = tuple(c.name for c in CLASSES)


@dataclasses.dataclass
class Verdict:
    """A judge who always finds the teacher as good."""

    asked: int = 0

    def look_ahead(self, step: int) -> None:
        pass

    def compare(self, teacher: nn.Module) -> tuple[float, float]:
        self.asked += 1
        return 0.5, 0.5


def test_vessas_weight_falls_once_the_teacher_is_as_good(
    tmp_path: Path, server: RunningServer
) -> None:
    config = small_config(write_dataset(tmp_path / "data"), steps=24, server=server.grpc)
    config = dataclasses.replace(config, validate_every=4, checkpoint_every=5)
    weights: dict[int, float] = {}

    def run(out: Path, stop_after: int) -> tuple[Trust, Verdict]:
        def keep(step: int, scalars: dict[str, float]) -> None:
            weights[step] = scalars.get("assistant/weight", 0)
            if step == stop_after:
                raise KeyboardInterrupt

        trainer = UniMatchTrainer(config, out)
        judge = Verdict()
        trainer.judge = judge  # type: ignore[assignment]
        with contextlib.suppress(KeyboardInterrupt):
            trainer.run(keep)
        return trainer.trust, judge

    trust, judge = run(tmp_path / "a", 24)
    assert judge.asked == 2, "not at the first validation, and not after the weight fell"
    assert trust == Trust(2, falls_from=12)
    ordered = [weights[step] for step in range(1, 25)]
    assert ordered[:13] == [1.0] * 13
    assert 0 < ordered[15] < ordered[14] < 1
    assert ordered[17:] == [0.0] * 7
    run(tmp_path / "b", 13)
    run(tmp_path / "b", 15)
    run(tmp_path / "b", 24)
    assert same(tmp_path / "a", tmp_path / "b")


def test_first_looks_for_comparisons_are_under_way_while_the_run_begins(
    tmp_path: Path, server: RunningServer
) -> None:
    root = write_dataset(tmp_path / "data")
    for patient in (77, 78):
        write_case(root / "val", f"p{patient}_frame01", patient, labelled=True)
    config = dataclasses.replace(small_config(root, server=server.grpc), validate_every=14)
    trainer = UniMatchTrainer(config, tmp_path / "run")
    assert trainer.judge is not None
    assert trainer.feedback is not None
    for step in range(18):  # a slice at every third update: six of nine
        trainer.judge.look_ahead(step)
    trainer.feedback.aside(trainer.judge.slices[:1], torch.zeros(1, 3, 32, 32))  # after all looks
    trainer.feedback.close()
    looked = {}
    with VessaClient(server.grpc) as client:
        for item in trainer.judge.slices[3::3]:  # the first look at a volume is one at all of it
            request = SegmentationRequest(image=item.image, volume=item.volume, class_names=NAMES)
            looked[item.key] = "encode_image" not in client.segment(request).stage_ms
    assert looked == {"p77_frame01/0": True, "p78_frame01/0": False}


def test_labels_are_compared_on_validation_slices(tmp_path: Path, server: RunningServer) -> None:
    config = small_config(write_dataset(tmp_path / "data"), server=server.grpc)
    compared = []
    for share in (0.0, 1.0):
        told_with = AssistantConfig(server=server.grpc, teacher_share=share, overrule=False)
        trainer = UniMatchTrainer(
            dataclasses.replace(config, assistant=told_with), tmp_path / "run"
        )
        assert trainer.judge is not None
        assert trainer.feedback is not None
        teacher = trainer.teacher.model
        compared.append(trainer.judge.compare(teacher))
        trainer.feedback.close()
    alone, pooled = compared
    assert alone is not None
    assert pooled == (alone[0], alone[0]), "with all of the teacher's share they are the same"
    image = files.read(config.data.root / "val" / "p3_frame01.nii.gz")
    truth = files.read(config.data.root / "val" / "p3_frame01_gt.nii.gz", axis=2, labels=True)
    told, found = [], []
    with VessaClient(server.grpc) as client:
        for z in range(image.depth):
            item = Slice("", image.slice(z), None, "")
            maps = predict_probabilities(teacher, canonical(item, 32)[None])[0]
            told.append(volumes.predict_slices(teacher, image, 32)[z])
            request = SegmentationRequest(
                image=item.image,
                volume=image.sample(),
                class_names=NAMES,
                student_mask=prompt(maps, item.image.shape),
            )
            found.append(client.segment(request).labels)
    for labels, dice in ((told, alone[0]), (found, alone[1])):
        both = [np.stack(labels), np.stack(list(truth.slices()))]
        scores = [
            2 * ((both[0] == c) & (both[1] == c)).sum() / sum((b == c).sum() for b in both)
            for c in (1, 2)
        ]
        assert dice == pytest.approx(np.mean(scores))
