"""Exported students answer like the student."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch

from ssl_trainer import models
from ssl_trainer.config import StudentConfig
from ssl_trainer.evaluation.predictor import Predictor
from ssl_trainer.export import ExportError, export
from ssl_trainer.regions.locator import SIZE, Locator
from support_devices import DEVICES, skip_without
from trainer_support import DPT, UNET


@pytest.mark.parametrize("config", [UNET, DPT], ids=["unet", "dinov2-dpt"])
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_an_exported_student_answers_like_the_student(
    tmp_path: Path, suffix: str, config: StudentConfig
) -> None:
    torch.manual_seed(0)
    student = models.build(config, 2)
    side = 2 * config.side_unit
    for _ in range(3):  # batch statistics that are not those of the start
        student(torch.rand(4, 1, side, side))
    file = tmp_path / f"student{suffix}"
    window = None if suffix == ".onnx" else (-160.0, 240.0)
    predictor = Predictor(
        student, side, turns=(0.0, 10.0), largest_component=(2,), window=window, axis=2
    )
    assert export(predictor, file, ("disc", "bar")) <= 1e-4
    assert [f.name for f in tmp_path.iterdir()] == [file.name]
    image = torch.rand(5, 1, side, side)
    with torch.no_grad():
        expected = torch.softmax(student.eval()(image), dim=1)
    if suffix == ".onnx":
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        found = torch.from_numpy(session.run(None, {"image": image.numpy()})[0])
        facts = json.loads({p.key: p.value for p in onnx.load(file).metadata_props}["vessa"])
    else:
        extra = {"vessa.json": ""}
        found = torch.export.load(file, extra_files=extra).module()(image)
        facts = json.loads(extra["vessa.json"])
    assert torch.allclose(found, expected, atol=1e-4)
    assert ("`window`" if window else "`percentiles`") in facts.pop("input")
    assert facts == {
        "classes": ["disc", "bar"],
        "size": side,
        "regions": False,
        "window": None if window is None else list(window),
        "percentiles": [0.5, 99.5] if window is None else None,
        "axis": 2,
        "turns": [0.0, 10.0],
        "quarters": "none",
        "largest_component": ["bar"],
    }


def test_a_locator_is_exported_beside_its_student(tmp_path: Path) -> None:
    torch.manual_seed(0)
    locator = Locator()
    for _ in range(2):
        locator(torch.rand(4, 1, SIZE, SIZE))
    predictor = Predictor(models.build(UNET, 2).eval(), 32, locator=locator.eval())
    file = tmp_path / "student.pt2"
    assert export(predictor, file, ("disc", "bar")) <= 1e-4
    extra = {"vessa.json": ""}
    beside = torch.export.load(tmp_path / "student.locator.pt2", extra_files=extra).module()
    image = torch.rand(3, 1, SIZE, SIZE)
    found = beside(image)
    with torch.no_grad():
        inside, turns = locator(image)
    assert torch.allclose(found[:, :1], torch.sigmoid(inside), atol=1e-4)
    assert torch.allclose(found[:, 1:].mean((2, 3)), torch.softmax(turns, 1), atol=1e-4)
    assert json.loads(extra["vessa.json"])["size"] == SIZE


def test_a_student_that_would_answer_otherwise_is_not_written(tmp_path: Path) -> None:
    class Moody(torch.nn.Module):
        """Answers by its number of calls, which a traced program does not know."""

        def __init__(self) -> None:
            super().__init__()
            self.calls = 0
            self.gain = torch.nn.Parameter(torch.ones(1))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return torch.cat([image, image * self.calls * self.gain], dim=1)

    with pytest.raises(ExportError, match="differ"):
        export(Predictor(Moody(), 16), tmp_path / "student.pt2", ("disc",))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_exported_runs_on_a_cpu_wherever_the_student_is(
    tmp_path: Path, device: str
) -> None:
    skip_without(device)
    torch.manual_seed(0)
    student = models.build(UNET, 1).to(device).eval()
    assert export(Predictor(student, 32), tmp_path / "student.pt2", ("disc",)) <= 1e-4
    assert {p.device.type for p in student.parameters()} == {device}
    program = torch.export.load(tmp_path / "student.pt2")
    assert {t.device.type for t in program.state_dict.values()} == {"cpu"}


def test_an_unknown_format_is_an_error_that_names_the_choice(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"\.onnx or \.pt2"):
        export(Predictor(models.build(UNET, 1), 32), tmp_path / "student.pt", ("disc",))
