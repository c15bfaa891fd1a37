"""The trainer asks VESSA: pipelined, and with a fall-back without a server."""

from __future__ import annotations

import threading
import time
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from ssl_trainer.assistant.assistant import BATCHES_AT_ONCE, Assistant, PseudoLabel
from ssl_trainer.config import AssistantConfig
from ssl_trainer.data.cases import Case
from ssl_trainer.data.slices import read_slices
from support import CLASSES, RunningServer, engine_of, free_port, gate_of, picture, running
from trainer_support import single_slices
from vessa_client import SegmentationRequest, UInt8Array

NAMES = tuple(c.name for c in CLASSES)


def test_slices_of_a_volume_are_asked_about_together(server: RunningServer, tmp_path: Path) -> None:
    pixels = np.stack([picture(i)[0] for i in range(5)], axis=2)
    folder = tmp_path / "train"
    folder.mkdir()
    nib.save(nib.Nifti1Image(pixels, np.diag([1.0, 1, 8, 1])), folder / "p1.nii.gz")
    case = Case(folder / "p1.nii.gz", None, "p1")
    together = read_slices((case,), 2, labelled=False, sample=4)
    assert [s.series for s in together] == ["p1"] * 5
    assert all(len(s.volume) == 4 for s in together)
    assistant = Assistant(AssistantConfig(server=server.grpc), NAMES)
    assistant.ask(0, together[:1], None)
    first = assistant.collect(0)[0]
    assistant.ask(1, together[1:], None)
    others = assistant.collect(1)
    assistant.close()
    assert first is not None
    assert "encode_image" in first.stage_ms
    looked_at = {s.tobytes() for s in together[0].volume}
    for item, answer in zip(together[1:], others, strict=True):
        assert answer is not None
        assert ("encode_image" in answer.stage_ms) == (item.image.tobytes() not in looked_at)
        request = SegmentationRequest(image=item.image, volume=item.volume, class_names=NAMES)
        expected = engine_of(tmp_path / item.key.replace("/", "_")).segment(request)
        assert np.array_equal(answer.labels, expected.labels)


def test_the_assistant_comes_back_when_the_server_does(tmp_path: Path) -> None:
    port = free_port()
    config = AssistantConfig(server=f"127.0.0.1:{port}", retry_seconds=0, timeout_seconds=20)
    assistant = Assistant(config, NAMES)
    assistant.ask(0, single_slices(2), None)
    assert assistant.collect(0) == [None, None]
    with running(engine_of(tmp_path), grpc_port=port):
        answers: list[PseudoLabel | None] = [None]
        deadline, step = time.monotonic() + 30, 1
        while not all(answers) and time.monotonic() < deadline:
            assistant.ask(step, single_slices(2), None)
            answers = assistant.collect(step)
            step += 1
        assert all(answers)
        assert answers[0] is not None
        assert answers[0].labels.shape == (60, 52)
    assistant.ask(0, single_slices(2), None)
    assert assistant.collect(0) == [None, None]
    assistant.close()


def test_student_masks_reach_the_server_and_cost_no_encoding(
    tmp_path: Path, server: RunningServer
) -> None:
    assistant = Assistant(AssistantConfig(server=server.grpc), NAMES)
    assistant.ask(0, single_slices(2), None)
    first = assistant.collect(0)
    students = [
        np.stack([200 * (picture(i)[1] == value) for value in (1, 2)]).astype(np.uint8)
        for i in range(2)
    ]
    assistant.ask(1, single_slices(2), lambda: students)
    second = assistant.collect(1)
    assistant.close()
    expected = [
        server.engine.segment(SegmentationRequest(image=s.image, class_names=NAMES, student_mask=m))
        for s, m in zip(single_slices(2), students, strict=True)
    ]
    for answer, other, result in zip(second, first, expected, strict=True):
        assert answer is not None
        assert other is not None
        assert np.array_equal(answer.confidence, result.confidence)
        assert not np.array_equal(answer.confidence, other.confidence)
        assert result.image_features_cached


def test_a_server_that_hangs_does_not_stop_the_training(tmp_path: Path) -> None:
    engine = gate_of(tmp_path)
    with running(engine) as server:
        config = AssistantConfig(server=server.grpc, timeout_seconds=0.3)
        assistant = Assistant(config, NAMES)
        assistant.ask(0, single_slices(1), None)
        assert assistant.collect(0) == [None]
        assert assistant.away
        engine.opened.set()
        assistant.close()


def test_batches_are_under_way_together_and_have_their_own_answers_in_any_order(
    server: RunningServer,
) -> None:
    assistant = Assistant(AssistantConfig(server=server.grpc), NAMES)
    together, held = threading.Barrier(BATCHES_AT_ONCE), threading.Event()
    labels = picture(0)[1]
    masks = [
        np.stack([value * (labels == index) for index in (1, 2)]).astype(np.uint8)
        for value in range(80, 80 + 20 * BATCHES_AT_ONCE, 20)
    ]

    def student(step: int) -> list[UInt8Array]:
        together.wait(20)
        assert step > 0 or held.wait(20)
        return [masks[step]]

    for step in range(BATCHES_AT_ONCE):
        assistant.ask(step, single_slices(1), partial(student, step))
    # The first is held up, and nobody waits for it.
    found = [assistant.collect(step)[0] for step in range(1, BATCHES_AT_ONCE)]
    held.set()
    found.insert(0, assistant.collect(0)[0])
    assistant.close()
    assert assistant.counts == (BATCHES_AT_ONCE, BATCHES_AT_ONCE)
    for answer, mask in zip(found, masks, strict=True):
        request = SegmentationRequest(image=picture(0)[0], class_names=NAMES, student_mask=mask)
        assert answer is not None
        assert np.array_equal(answer.confidence, server.engine.segment(request).confidence)


def test_batches_that_fail_together_are_one_failure(capsys: pytest.CaptureFixture[str]) -> None:
    config = AssistantConfig(server=f"127.0.0.1:{free_port()}", retry_seconds=1000)
    assistant = Assistant(config, NAMES)
    together = threading.Barrier(BATCHES_AT_ONCE)

    def student() -> list[UInt8Array]:
        together.wait(20)
        return [np.zeros((2, *picture(0)[0].shape), np.uint8)]

    for step in range(BATCHES_AT_ONCE):
        assistant.ask(step, single_slices(1), student)
    assistant.ask(BATCHES_AT_ONCE, single_slices(1))  # is not sent any more
    for step in range(BATCHES_AT_ONCE + 1):
        assert assistant.collect(step) == [None]
    assert assistant.away
    assert assistant.counts == (BATCHES_AT_ONCE + 1, 0)
    assistant.close()
    assert capsys.readouterr().out.count("assistant.away") == 1


def test_a_late_answer_from_before_a_failure_is_no_return(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    config = AssistantConfig(server=f"127.0.0.1:{port}", retry_seconds=0, timeout_seconds=20)
    assistant = Assistant(config, NAMES)
    begun, held = threading.Event(), threading.Event()

    def student() -> list[UInt8Array]:
        begun.set()
        assert held.wait(20)
        return [np.zeros((2, *picture(0)[0].shape), np.uint8)]

    assistant.ask(0, single_slices(1), student)
    assert begun.wait(20)
    assistant.ask(1, single_slices(1))
    assert assistant.collect(1) == [None]
    with running(engine_of(tmp_path), grpc_port=port):
        while not assistant._client.healthy():
            pass
        held.set()
        assert assistant.collect(0) != [None]
        assert "assistant.back" not in capsys.readouterr().out
        assistant.ask(2, single_slices(1))
        assert assistant.collect(2) != [None]
        assert "assistant.back" in capsys.readouterr().out
    assistant.close()


def test_asking_is_pipelined(tmp_path: Path) -> None:
    engine = gate_of(tmp_path)
    with running(engine) as server:
        assistant = Assistant(AssistantConfig(server=server.grpc), NAMES)
        assistant.ask(0, single_slices(1), None)
        assistant.ask(1, single_slices(1), None)  # returns although nothing is answered yet
        engine.opened.set()
        assert assistant.collect(0)[0] is not None
        assert assistant.collect(1)[0] is not None
        assistant.close()
