"""Shared fixtures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from support import RunningServer, engine_of, free_port, redis_server, running, tiny_model
from vessa_client import VessaClient
from vessa_server.engine import VessaEngine
from vessa_server.model.vessa import Vessa

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# How long an example takes says more of what else runs on the machine than of the code.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.fixture(autouse=True, scope="session")
def _threads() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model() -> Vessa:
    return tiny_model()


@pytest.fixture
def engine(tmp_path: Path, model: Vessa) -> VessaEngine:
    return engine_of(tmp_path, model=model)


@pytest.fixture
def server(engine: VessaEngine) -> Iterator[RunningServer]:
    with running(engine) as started:
        yield started


@pytest.fixture
def client(server: RunningServer) -> Iterator[VessaClient]:
    with VessaClient(server.grpc) as connected:
        yield connected


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    with redis_server(tmp_path_factory.mktemp("redis"), port):
        yield f"redis://127.0.0.1:{port}/0"
