"""A tritonserver that is not there, is another one, dies and comes back."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient

from support import engine_of, free_port, running, tiny_model
from triton_support import (
    MODELS,
    SIDE,
    TritonServer,
    assert_same,
    canvas_of,
    engine_over,
    request_of,
    tritonserver,
)
from vessa_client import ClientOptions, RetryPolicy, UnavailableError, VessaClient
from vessa_server.api.run import open_runtime
from vessa_server.api.settings import ServerSettings
from vessa_server.model import checkpoint
from vessa_server.runtime.clock import StageClock
from vessa_server.runtime.protocol import HandleLostError, RuntimeUnavailableError
from vessa_server.runtime.triton import messages
from vessa_server.runtime.triton.client import TritonRuntime
from vessa_server.runtime.triton.connection import Address

ONCE = ClientOptions(retry=RetryPolicy(attempts=1))
# So many images that their canvases go by shared memory.
MANY = 66


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    with tritonserver(tmp_path_factory.mktemp("triton")) as started:
        yield started


class TestStart:
    def test_an_address_that_is_none(self) -> None:
        for text in ("tensorrt", "triton://", "triton://host", "http://host:1", "triton://h:x"):
            with pytest.raises(ValueError, match=r"triton://host:port.*VESSA_RUNTIME"):
                open_runtime(ServerSettings(runtime=text), "auto")

    def test_nobody_answers(self, tmp_path: Path) -> None:
        address = f"triton://127.0.0.1:{free_port()}"
        result = subprocess.run(
            [sys.executable, "-m", "vessa_server.cli", "serve", "--bank", str(tmp_path / "bank")],
            env={**os.environ, "VESSA_RUNTIME": address, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert result.returncode == 2
        assert "Traceback" not in result.stderr
        words = " ".join(result.stderr.split())
        assert f"no tritonserver answers on gRPC at {address.removeprefix('triton://')}" in words
        assert "VESSA_RUNTIME" in words

    def test_the_model_is_not_there(self, server: TritonServer) -> None:
        with pytest.raises(RuntimeUnavailableError, match="has no model 'other' that is ready"):
            TritonRuntime(server.address("other"))

    def test_another_server_than_a_tritonserver(self, tmp_path: Path) -> None:
        with (
            running(engine_of(tmp_path)) as started,
            pytest.raises(RuntimeUnavailableError, match="VESSA_RUNTIME"),
        ):
            TritonRuntime(f"triton://{started.grpc}")

    def test_another_version_of_the_protocol(
        self, server: TritonServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spoken = messages.PROTOCOL
        monkeypatch.setattr(messages, "PROTOCOL", spoken + 1)
        words = f"version {spoken} of the protocol, this server version {spoken + 1}"
        with pytest.raises(RuntimeUnavailableError, match=words):
            TritonRuntime(server.address())

    def test_more_than_one_instance_is_refused(self, server: TritonServer) -> None:
        """Each would have some of the features."""
        client = InferenceServerClient(Address.parse(server.address()).peer)
        config = (MODELS / "vessa" / "config.pbtxt").read_text().replace("count: 1", "count: 2")
        folder = server.repository / "twice"
        (folder / "1").mkdir(parents=True)
        (folder / "1" / "model.py").write_bytes((MODELS / "vessa" / "1" / "model.py").read_bytes())
        (folder / "config.pbtxt").write_text(config)
        with pytest.raises(Exception, match="instance_group: 2 instances, expected 1"):
            client.load_model("twice")
        client.close()


def test_it_dies_and_comes_back(tmp_path: Path, server: TritonServer) -> None:
    """Last, since it leaves a server with other weights."""
    reference = engine_over(tmp_path / "torch", server.torch_runtime())
    # Each request is a new one: an answer that was given is kept.
    expected = [reference.segment(request_of(seed)) for seed in range(3)]
    engine = engine_over(tmp_path / "triton", TritonRuntime(server.address()))
    other = TritonRuntime(server.address())
    many = [canvas_of(seed) for seed in range(MANY)]
    images = other.encode(many, StageClock())
    with (
        running(engine) as started,
        VessaClient(started.grpc) as client,
        VessaClient(started.grpc, ONCE) as impatient,
    ):
        assert_same(client.segment(request_of(0)), expected[0])

        server.kill()
        with pytest.raises(UnavailableError, match="no tritonserver answers") as caught:
            impatient.segment(request_of(1))
        assert caught.value.retry_after > 0
        server.start()
        assert_same(client.segment(request_of(1)), expected[1])
        # This client asked for nothing meanwhile: its shared memory is not mapped any more.
        assert len(other.encode(many, StageClock())) == MANY
        with pytest.raises(HandleLostError):
            other.describe(images[:1], [np.ones((SIDE, SIDE), np.bool_)], StageClock())

        server.kill_model()  # which Triton does not mend by itself
        assert_same(client.segment(request_of(2)), expected[2])

        checkpoint.save(tiny_model(seed=1), server.weights)
        server.kill()
        server.start()
        with pytest.raises(UnavailableError, match="restart vessa-server"):
            impatient.segment(request_of(3))
        other.close()
