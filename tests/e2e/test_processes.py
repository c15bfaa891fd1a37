"""Real processes: start, kill, stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from ssl_trainer import config as configuration
from support import ROOT, engine_of, free_port, picture, running
from trainer_support import small_config, write_dataset
from vessa_client import ClassDefinition, SegmentationRequest, VessaClient

pytestmark = pytest.mark.e2e
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def trainer_command(config: Path, out: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "ssl_trainer", "train", str(config)),
        *("--out", str(out), "--threads", "1"),
    ]


def test_training_killed_in_the_middle_ends_with_the_same_weights(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data")
    with running(engine_of(tmp_path / "s")) as server:
        config = small_config(root, steps=60, server=server.grpc)
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(configuration.to_dict(config)))
        unbroken, broken = tmp_path / "a", tmp_path / "b"
        subprocess.run(
            trainer_command(file, unbroken), env=ENVIRONMENT, check=True, capture_output=True
        )
        state = broken / "last.safetensors"
        process = subprocess.Popen(
            trainer_command(file, broken), env=ENVIRONMENT, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 120
        while not state.exists() and time.monotonic() < deadline:
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL
        interrupted = load_file(state)
        subprocess.run(
            trainer_command(file, broken), env=ENVIRONMENT, check=True, capture_output=True
        )
    expected, found = load_file(unbroken / "last.safetensors"), load_file(state)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    weights = [n for n in expected if n.startswith("student.") and n.endswith("weight")]
    assert any(not torch.equal(expected[n], interrupted[n]) for n in weights), "killed too late"


def test_the_shipped_server_starts_serves_and_stops_on_sigterm(tmp_path: Path) -> None:
    grpc_port, http_port = free_port(), free_port()
    command = [
        *(sys.executable, "-m", "vessa_server.cli", "serve", "--log-format", "json"),
        *("--grpc-port", str(grpc_port), "--http-port", str(http_port)),
        *("--bank", str(tmp_path / "bank"), "--cache", str(tmp_path / "cache")),
    ]
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    with VessaClient(f"127.0.0.1:{grpc_port}") as client:
        client.wait_until_healthy(120)
        image, labels = picture(0, (200, 180))
        classes = [ClassDefinition(name="disc"), ClassDefinition(name="bar")]
        client.add_template(image, labels, classes)
        result = client.segment(SegmentationRequest(image=image, explain=True))
        assert result.labels.shape == (200, 180)
        assert client.info().model_name == "nano"
        second = subprocess.run(
            command, env=ENVIRONMENT, capture_output=True, text=True, check=False
        )
        assert second.returncode == 2
        assert "--http-port" in second.stderr
        assert "Traceback" not in second.stderr
        process.send_signal(signal.SIGTERM)
    _, logged = process.communicate(timeout=60)
    assert process.returncode == 0
    events = [line for line in logged.splitlines() if line.startswith("{")]
    assert ['"server.ready"' in e for e in events].count(True) == 1
    assert '"server.stopped"' in events[-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--cache", "memcached://x"], "redis://host:port/db"),
        (["--weights", "/nowhere"], "vessa-server train"),
        (["--preset", "huge"], "preset"),
        (["--grpc-port", "99999"], "grpc_port"),
    ],
)
def test_wrong_settings_are_one_line(tmp_path: Path, arguments: list[str], words: str) -> None:
    command = [sys.executable, "-m", "vessa_server.cli", "serve", *arguments]
    result = subprocess.run(
        command, env=ENVIRONMENT, capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_a_misspelt_variable_is_said(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vessa_server.cli", "serve", "--preset", "huge"]
    environment = {**ENVIRONMENT, "VESSA_BATCHMODE": "fused", "VESSA_CLIENT_BANK": "brain"}
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert "VESSA_BATCHMODE is no setting" in result.stderr
    assert "VESSA_CLIENT_BANK" not in result.stderr


def test_stage1_without_data_says_which_folder_is_missing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vessa_server", "train", "nano"]
    result = subprocess.run(
        [*command, "--data", str(ROOT / "examples"), "--out", str(tmp_path)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert "no folder" in result.stderr
    assert "left_atrium" in result.stderr
