"""The job that looks whether serving works on a machine with a GPU, and how fast it is."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpu_jobs import (
    install,
    parts,
    roofline,
    serve_answers,
    serve_looks,
    serve_sizes,
    serve_smoke,
    serve_speed,
    serve_tests,
)
from gpu_jobs.clock import Clock
from gpu_jobs.context import Context
from gpu_jobs.errors import FAILED_CHECK, JobError
from gpu_jobs.gpu import Sampler
from gpu_jobs.jobs import JOBS
from gpu_jobs.manifest import Manifest
from gpu_jobs.parts import Parts
from gpu_jobs.roofline import Peaks
from gpu_jobs.serve_sizes import Measured
from model_steps import Cost, Steps, Times, flops
from support import tiny_config, tiny_model
from support_syncs import on_fake_cuda
from vessa_server.model import prompts, tokenizer
from vessa_server.model.presets import preset
from vessa_server.model.published import ARCHITECTURES
from vessa_server.model.reasoner import Reasoner
from vessa_server.model.skeleton import dtypes, skeleton
from vessa_server.runtime.torch_runtime import TorchRuntime

CPU = torch.device("cpu")
MACHINE = {"device": "cpu", "versions": {"torch": torch.__version__}}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VESSA_REHEARSAL", "1")
    monkeypatch.delenv("VESSA_SET", raising=False)
    monkeypatch.setattr(Context, "device", CPU)


@pytest.fixture
def context(tmp_path: Path) -> Context:
    manifest = Manifest(date="", commit="", weights="weights", weights_digest="0" * 64)
    now = time.time()
    for name in ("out", "run"):
        (tmp_path / name).mkdir()
    return Context(
        JOBS["serve-smoke"], manifest, tmp_path, tmp_path / "out", tmp_path / "run",
        Clock(now, now + 600), MACHINE,
    )  # fmt: skip


def _result(context: Context) -> Any:
    return json.loads((context.out / "result.json").read_text())


def test_a_part_that_fails_does_not_end_the_others(
    context: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    states: list[str] = []

    def fails() -> dict[str, Any]:
        raise RuntimeError("CUDA error: no kernel image")

    def is_wrong() -> dict[str, Any]:
        raise JobError("too few are equal", FAILED_CHECK, {"equal": 0.5})

    def works() -> dict[str, Any]:
        states.append(_result(context)["parts"]["third"]["state"])
        return {"ms": 3}

    def work(smoke: Parts) -> None:
        smoke.part("first", 1, fails)
        smoke.part("second", 1, is_wrong)
        assert smoke.part("third", 1, works) == {"ms": 3}
        smoke.part("fourth", 1, works, cuda=True)
        smoke.part("fifth", 1e6, works)

    with pytest.raises(JobError, match="2 parts failed") as raised:
        parts.run(context, work, lambda result: "\n".join(parts.states(result)))
    assert raised.value.code == FAILED_CHECK
    result = _result(context)
    assert not result["finished"]
    assert {name: part["state"] for name, part in result["parts"].items()} == {
        "first": "failed: CUDA error: no kernel image",
        "second": "failed: too few are equal",
        "third": "ok",
        "fourth": "skipped: needs a GPU",
        "fifth": "skipped: 600 s left",
    }
    assert result["parts"]["second"]["equal"] == 0.5
    assert result["parts"]["third"]["ms"] == 3
    # What is known is written before a part that may end the process.
    assert states == ["ended by the clock"]
    printed = capsys.readouterr()
    assert "in fails" in printed.err
    assert "in is_wrong" not in printed.err


def test_processes_end_with_the_job(context: Context) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    smoke = Parts(context, Sampler())
    smoke.processes.append(process)
    smoke.end()
    assert process.wait(20) != 0


def test_settings_are_refused(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VESSA_SET", "groups=8")
    with pytest.raises(JobError, match="takes no settings"):
        serve_smoke.run(context)


def test_answers_are_compared_by_kind() -> None:
    expected = {
        name: np.zeros((10, 10), np.uint8)
        for name in ("p/0/alone", "p/0/volume", "p/map/far", "p/probabilities/far", "p/text")
    }
    expected["p/map/far"][:5] = 1
    found = {name: labels.copy() for name, labels in expected.items()}
    same = serve_answers.agreement(found, expected, 1.0)
    assert {kind: share["equal"] for kind, share in same["kinds"].items()} == {
        "cold": 1.0,
        "volume": 1.0,
        "student masks": 1.0,
        "text": 1.0,
    }
    found["p/map/far"][0] = 2
    with pytest.raises(JobError, match=r"equal pixels {'student masks': 0.95}, expected 0.999"):
        serve_answers.agreement(found, expected, 0.999)
    different = serve_answers.agreement(found, expected, 0.0)
    assert different["kinds"]["student masks"] == {
        "requests": 2,
        "equal": 0.95,
        "structures": 0.8,
    }
    assert different["lowest"] == {"request": "p/map/far", "equal": 0.9}
    assert "student masks 95.0000% (80.00%)" in "\n".join(serve_answers.table({"bf16": different}))


def test_tests_that_fail_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "test_made_up.py"
    file.write_text(
        "import pytest\n"
        "def test_cuda_adds(): assert 1 + 1 == 2\n"
        "def test_cuda_waits(): pytest.skip('no')\n"
        "def test_other(): assert False\n"
    )
    monkeypatch.setattr(serve_tests, "TESTS", (str(file),))
    report = tmp_path / "tests.xml"
    assert serve_tests.checked("cuda", report, 60) == {"passed": 1, "skipped": 1, "failed": {}}
    with pytest.raises(JobError, match="no test was run"):
        serve_tests.checked("tpu", report, 60)
    with pytest.raises(JobError, match="1 tests failed") as raised:
        serve_tests.checked("other or adds", report, 60)
    assert raised.value.found["passed"] == 1
    assert raised.value.found["failed"]["test_other"].startswith("assert False")


def test_a_step_is_compared_with_what_its_device_could_do() -> None:
    peaks = Peaks(flops=1e12, bandwidth=1e11)
    cost = Cost(parameters=10, parameter_bytes=10**8, moved_bytes=4 * 10**8, flops=2 * 10**9)
    found = roofline.row(cost, Times(median=0.008, least=0.005), peaks)
    # 2 ms for the FLOPs, 4 ms for all bytes, 1 ms for the parameters'.
    assert (found["bound_by"], found["bound_ms"]) == ("bandwidth", 4.0)
    assert (found["share"], found["share_fused"]) == (0.5, 0.25)
    assert found["ms"] == 8.0
    assert "share" not in roofline.row(cost, Times(0.008, 0.005), None)
    measured: list[Peaks] = []
    shown = roofline.measure(CPU, measured)
    assert shown["tflops"] == pytest.approx(measured[0].flops / 1e12, abs=1e-3)
    assert measured[0].bandwidth > 1e8


@pytest.mark.parametrize("name", ["base", "large"])
def test_steps_of_the_published_sizes_run_on_a_gpu(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With tensors that have no values: what is on the CPU by mistake is an error."""
    config = preset(name)
    words = tokenizer.build(prompts.corpus([]), config.vlm.vocab_size)
    model = skeleton(config, words, ARCHITECTURES[str(config.vlm.pretrained)]())
    kinds = dtypes(model, torch.bfloat16)
    for key, weight in model.requires_grad_(False).named_parameters():
        weight.data = weight.data.to(kinds[key])
    # Memory that is pinned has no fake.
    monkeypatch.setattr(Reasoner, "_sent", lambda _, tensor: tensor.to("cuda"))
    with on_fake_cuda(model), torch.no_grad():
        for step in Steps(model, 1, 3, 7).all().values():
            assert flops(step) > 10**10


def test_batches_of_looks_are_measured() -> None:
    found = serve_looks.measure(TorchRuntime(tiny_model(), "0" * 64))
    assert [row["looks"] for row in found["looks"]] == [1, 2]
    for row in found["looks"]:
        assert all(ms > 0 for ms in row["ms"].values())
        # To the two digits that are written.
        masks = 1000 * row["looks"] / row["ms"]["decode with student"]
        assert row["warm_per_second"] == pytest.approx(masks, rel=0.02)
    assert found["prefix_ms"] > 0


def test_a_size_is_made_measured_and_shown(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = dataclasses.replace(tiny_config(), name="tiny")
    monkeypatch.setattr(serve_sizes, "preset", lambda _: tiny)
    smoke = Parts(context, Sampler())
    serve_sizes.run(smoke, Measured("large", "tiny", 1.0), Peaks(1e12, 1e11))
    found = _result(context)["parts"]
    assert {part["state"] for part in found.values()} == {"ok"}
    assert list(found) == ["large made", "large steps x1", "large looks", "large images"]
    assert found["large made"]["parameters"] > 1000
    assert found["large images"]["nothing_new_looks"] == 0
    assert found["large images"]["cold_looks"] >= 1
    assert found["large images"]["cold_per_second"] > 0
    shown = "\n".join(serve_sizes.table(found))
    assert "remember" in shown
    assert "2 together" in shown


def test_a_size_for_which_there_is_no_room_is_left_out(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr("vessa_server.model.checkpoint.random", no_room)
    smoke = Parts(context, Sampler())
    serve_sizes.run(smoke, Measured("large", "nano", 1.0), None)
    assert _result(context)["parts"]["large made"]["state"] == "failed: out of memory"
    assert list(_result(context)["parts"]) == ["large made"]
    assert serve_sizes.table(smoke.result["parts"]) == []


def test_a_server_that_does_not_start_leaves_the_other_mode(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA driver is too old")

    monkeypatch.setattr(serve_speed, "serving", fails)
    smoke = Parts(context, Sampler())
    serve_speed.run(smoke)
    found = _result(context)["parts"]
    assert list(found) == ["exact server", "fused server"]
    assert found["fused server"]["state"] == "failed: CUDA driver is too old"


def test_our_packages_have_their_versions_where_they_are_not_installed(tmp_path: Path) -> None:
    manifest = Manifest(date="", commit="", weights="weights", weights_digest="0" * 64)
    install.install(manifest, tmp_path, tmp_path / "site")
    found = {
        d.metadata["Name"]: d.version
        for d in importlib.metadata.distributions(path=[str(tmp_path / "site")])
    }
    assert found == {
        name: importlib.metadata.version(name)
        for name in ("vessa-client", "vessa-common", "vessa-server", "ssl-trainer")
    }
