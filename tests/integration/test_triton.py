"""The engine with its model on a tritonserver: the same answers, and what happens when it fails."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import InferenceServerClient, model_config_pb2

from support import CLASSES, engine_of, free_port, picture, running, tiny_model
from triton_support import MODELS, TritonServer, tritonserver
from vessa_client import (
    ClientOptions,
    RetryPolicy,
    SegmentationRequest,
    SegmentationResult,
    UnavailableError,
    VessaClient,
)
from vessa_server.api.run import open_runtime
from vessa_server.api.settings import ServerSettings
from vessa_server.bank import Banks
from vessa_server.cache import NoCache
from vessa_server.engine import EngineSettings, VessaEngine
from vessa_server.model import checkpoint
from vessa_server.runtime.clock import StageClock
from vessa_server.runtime.protocol import (
    Conditioning,
    Decoded,
    Decoding,
    Floats,
    HandleLostError,
    Runtime,
    RuntimeUnavailableError,
)
from vessa_server.runtime.triton import connection, messages, shared_memory
from vessa_server.runtime.triton.client import TritonRuntime
from vessa_server.runtime.triton.connection import Address, Connection, OperationError
from vessa_server.runtime.triton.messages import Message

SHARED_MODEL = "vessa_1"
ONCE = ClientOptions(retry=RetryPolicy(attempts=1))
SIDE = 64
# So many images that their canvases, masks and logits go by shared memory.
MANY = 66


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """One with a second copy of the model, which has the configuration for many clients."""
    folder = tmp_path_factory.mktemp("triton")
    with tritonserver(folder, ("vessa", SHARED_MODEL)) as started:
        yield started


@pytest.fixture
def runtime(server: TritonServer) -> Iterator[TritonRuntime]:
    opened = TritonRuntime(server.address())
    yield opened
    opened.close()


def _engine(folder: Path, runtime: Runtime, seeds: tuple[int, ...] = (100, 101)) -> VessaEngine:
    engine = VessaEngine(runtime, Banks(folder / "bank"), NoCache(), EngineSettings(fuse=True))
    for seed in seeds:
        image, labels = picture(seed)
        engine.add_template(image, labels, CLASSES, name=f"picture {seed}")
    return engine


def _request(seed: int, **more: Any) -> SegmentationRequest:
    return SegmentationRequest(image=picture(seed)[0], return_probabilities=True, **more)


def _assert_same(found: SegmentationResult, expected: SegmentationResult) -> None:
    assert (found.labels == expected.labels).mean() >= 0.999
    assert found.probabilities is not None
    assert expected.probabilities is not None
    difference = found.probabilities.astype(int) - expected.probabilities.astype(int)
    assert np.abs(difference).max() <= 1
    assert [t.template_id for t in found.templates] == [t.template_id for t in expected.templates]
    assert found.model_digest == expected.model_digest


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"student_mask": picture(0)[1]},
        {"text": "the bright disc"},
        {"class_names": ("bar",), "top_k": 1},
        {"volume": tuple(picture(seed)[0] for seed in (0, 1, 2))},
    ],
    ids=lambda more: next(iter(more), "plain"),
)
def test_the_engine_gives_the_same_answers(
    tmp_path: Path, server: TritonServer, runtime: TritonRuntime, more: dict[str, Any]
) -> None:
    expected = _engine(tmp_path / "torch", server.torch_runtime()).segment(_request(0, **more))
    engine = _engine(tmp_path / "triton", runtime)
    found = engine.segment(_request(0, **more))
    _assert_same(found, expected)
    assert found.probabilities is not None
    assert found.probabilities.std() > 1
    again = engine.segment(_request(0, **more))
    assert again.image_features_cached
    _assert_same(again, expected)


def test_words_are_the_same(tmp_path: Path, server: TritonServer, runtime: TritonRuntime) -> None:
    found = _engine(tmp_path / "triton", runtime).segment(_request(0, explain=True))
    expected = _engine(tmp_path / "torch", server.torch_runtime()).segment(
        _request(0, explain=True)
    )
    assert [c.explanation for c in found.classes] == [c.explanation for c in expected.classes]


def test_the_server_says_where_its_model_is(tmp_path: Path, runtime: TritonRuntime) -> None:
    with running(_engine(tmp_path, runtime)) as started, VessaClient(started.grpc) as client:
        info = client.info()
        assert (info.runtime, info.device, info.dtype) == ("triton", "cpu", "float32")
        result = client.segment(_request(0))
        assert result.stage_ms["triton"] > 0
        assert result.stage_ms["decode_mask"] > 0


def test_clients_do_not_get_each_others_features(tmp_path: Path, server: TritonServer) -> None:
    """Several at once, with templates of their own; their requests share batches."""
    expected = {
        seed: _engine(tmp_path / f"torch{seed}", server.torch_runtime(), (100 + seed,)).segment(
            _request(seed)
        )
        for seed in range(3)
    }

    def segment(seed: int) -> list[SegmentationResult]:
        runtime = TritonRuntime(server.address())
        engine = _engine(tmp_path / f"triton{seed}", runtime, (100 + seed,))
        results = []
        for _ in range(5):
            engine.memory.clear()
            results.append(engine.segment(_request(seed)))
        engine.close()
        return results

    with ThreadPoolExecutor(3) as pool:
        for seed, results in enumerate(pool.map(segment, range(3))):
            for result in results:
                _assert_same(result, expected[seed])


def _decode_alone(runtime: Runtime, seed: int, times: int) -> list[Decoded]:
    clock = StageClock()
    image = runtime.encode([_canvas(seed)], clock)[0]
    mask_HW = np.zeros((SIDE, SIDE), np.bool_)
    mask_HW[20:40, 10:30] = True
    template = runtime.describe([image], [mask_HW], clock)[0].handle
    conditioned = runtime.condition([Conditioning(image, [[template]])], clock)[0]
    return [runtime.decode([Decoding(image, conditioned)], clock)[0] for _ in range(times)]


def _canvas(seed: int) -> Floats:
    return np.random.default_rng(seed).random((1, SIDE, SIDE), np.float32)


@pytest.mark.parametrize("exact", [False, True])
def test_what_waits_together_runs_together_unless_exact(
    server: TritonServer, runtime: TritonRuntime, exact: bool
) -> None:
    expected = [_decode_alone(runtime, seed, 1)[0] for seed in range(6)]

    def decode(seed: int) -> list[Decoded]:
        client = TritonRuntime(server.address(), exact=exact)
        decoded = _decode_alone(client, seed, 20)
        client.close()
        return decoded

    before = _largest_batches(server)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(decode, range(6)))
    after = _largest_batches(server)
    # Triton makes batches in any case; exact requests are then run one after another.
    assert sum(after.values()) > sum(before.values())
    for decoded, one in zip(found, expected, strict=True):
        for each in decoded:
            np.testing.assert_allclose(each.logits_CHW, one.logits_CHW, atol=1e-5)
            if exact:
                assert np.array_equal(each.logits_CHW, one.logits_CHW)


def _largest_batches(server: TritonServer) -> dict[int, int]:
    """How often Triton ran batches of more than one request, by their sizes."""
    client = InferenceServerClient(Address.parse(server.address()).peer)
    (model,) = client.get_inference_statistics("vessa").model_stats
    client.close()
    batches: dict[int, int] = {b.batch_size: b.compute_infer.count for b in model.batch_stats}
    batches.pop(1, None)
    return batches


def test_one_bad_request_of_a_batch_fails_alone(
    server: TritonServer, runtime: TritonRuntime
) -> None:
    expected = _decode_alone(runtime, 0, 1)[0]
    broken = threading.Event()

    def break_others() -> int:
        client = Connection(Address.parse(server.address()))
        count = 0
        while not broken.is_set():
            fields = {"operation": "decode", "exact": False, "released": [], "items": [["x"]]}
            with pytest.raises(OperationError):
                client.infer(Message(fields).to_arrays(), seconds=10)
            count += 1
        client.close()
        return count

    with ThreadPoolExecutor(1) as pool:
        failures = pool.submit(break_others)
        for each in _decode_alone(runtime, 0, 30):
            np.testing.assert_allclose(each.logits_CHW, expected.logits_CHW, atol=1e-5)
        broken.set()
        assert failures.result(30) > 0


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"operation": "train"}, "operation: 'train', expected one of encode"),
        ({"operation": "encode", "read": "yes"}, "read: str, expected bool"),
        ({"operation": "encode", "read": False}, "canvas: shape (1, 8, 8), expected (1, 64, 64)"),
        ({"operation": "index", "released": None}, "released: NoneType, expected list"),
    ],
)
def test_requests_that_are_wrong_are_refused_in_words(
    server: TritonServer, fields: dict[str, Any], words: str
) -> None:
    client = Connection(Address.parse(server.address()))
    sent = {"exact": False, "released": [], **fields}
    arrays = Message(sent, floats=[np.zeros((1, 8, 8), np.float32)]).to_arrays()
    with pytest.raises(OperationError, match=re.escape(words)):
        client.infer(arrays, seconds=10)
    client.close()


def test_values_and_shapes_that_disagree_are_refused(server: TritonServer) -> None:
    client = Connection(Address.parse(server.address()))
    sent = {"operation": "encode", "read": False, "exact": False, "released": []}
    arrays = Message(sent, floats=[_canvas(0)]).to_arrays()
    with pytest.raises(OperationError, match="floats: 4095 values, expected 4096"):
        client.infer(arrays | {"floats": arrays["floats"][:, 1:]}, seconds=10)
    client.close()


class TestSharedMemory:
    """Batches of these sizes go beside the message."""

    def _large(self, server: TritonServer) -> tuple[list[Decoded], set[str]]:
        before = _segments()
        runtime = TritonRuntime(server.address())
        clock = StageClock()
        images = runtime.encode([_canvas(seed) for seed in range(MANY)], clock)
        masks = [np.ones((SIDE, SIDE), np.bool_)] * MANY
        templates = runtime.describe(images, masks, clock)
        items = [
            Conditioning(image, [[template.handle]])
            for image, template in zip(images, templates, strict=True)
        ]
        conditioned = runtime.condition(items, clock)
        used = _segments() - before
        decoding = [Decoding(i, c) for i, c in zip(images, conditioned, strict=True)]
        decoded = runtime.decode(decoding, clock)
        runtime.close()
        assert _segments() <= before, "nothing is left behind"
        return decoded, used

    def test_it_gives_the_same(self, server: TritonServer, monkeypatch: pytest.MonkeyPatch) -> None:
        shared, used = self._large(server)
        assert len(used) == 1
        monkeypatch.setattr(connection, "LOCAL", ())
        sent, used = self._large(server)
        assert not used
        for one, other in zip(shared, sent, strict=True):
            assert np.array_equal(one.logits_CHW, other.logits_CHW)
            assert one.logits_CHW.flags.writeable

    def test_a_server_that_cannot_map_it_is_sent_messages(
        self, server: TritonServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As in a container of its own: the name that it gets is none there."""

        class Hidden(SharedMemory):
            def __init__(self, **arguments: Any) -> None:
                super().__init__(**arguments)
                super().unlink()

            def unlink(self) -> None:
                pass

        expected, _ = self._large(server)
        monkeypatch.setattr(shared_memory, "SharedMemory", Hidden)
        found, _ = self._large(server)
        for one, other in zip(found, expected, strict=True):
            assert np.array_equal(one.logits_CHW, other.logits_CHW)


def _segments() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if name.startswith("psm_")}


def test_a_late_answer_is_given_up_and_later_ones_are_right(runtime: TritonRuntime) -> None:
    expected = _decode_alone(runtime, 0, 1)[0]
    many = [_canvas(seed) for seed in range(64)]
    message = Message({"operation": "encode", "read": True, "exact": True, "released": []}, many)
    with pytest.raises(RuntimeUnavailableError, match=r"did not answer within 0\.01 s") as caught:
        runtime._connection.infer(message.to_arrays(), seconds=0.01)
    assert caught.value.retry_after > 0
    assert np.array_equal(_decode_alone(runtime, 0, 1)[0].logits_CHW, expected.logits_CHW)


def test_the_queue_for_many_clients_has_priorities_and_refuses_what_is_late(
    tmp_path: Path, server: TritonServer
) -> None:
    shared = TritonRuntime(server.address(SHARED_MODEL))
    other = Connection(shared.address)
    other.queue_seconds = 0.001
    many = [_canvas(seed) for seed in range(200)]
    expected = _engine(tmp_path / "torch", server.torch_runtime()).segment(_request(0))
    _assert_same(_engine(tmp_path / "triton", shared).segment(_request(0)), expected)
    refused = list[str]()
    info = Message({"operation": "info", "exact": False, "released": []}).to_arrays()
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(shared.encode, many, StageClock(), read=True)
        while not busy.done():
            try:
                other.infer(info, seconds=10, priority=1)
            except RuntimeUnavailableError as error:
                refused.append(error.message)
    assert refused
    assert all("has too much to do" in message for message in refused)
    other.close()
    shared.close()


def test_configurations_differ_in_the_queue_only() -> None:
    folder = MODELS / "vessa"
    read = [
        text_format.Parse(file.read_text(), model_config_pb2.ModelConfig())
        for file in (folder / "config.pbtxt", folder / "configs" / "shared.pbtxt")
    ]
    assert read[1].dynamic_batching.priority_levels == 3
    for config in read:
        config.ClearField("dynamic_batching")
        known = set(ServerSettings.model_fields)
        assert set(config.parameters) <= known
    assert read[0] == read[1]


class TestStart:
    def test_an_address_that_is_none(self) -> None:
        for text in ("tensorrt", "triton://", "triton://host", "http://host:1", "triton://h:x"):
            with pytest.raises(ValueError, match=r"triton://host:port.*VESSA_RUNTIME"):
                open_runtime(ServerSettings(runtime=text))

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


def test_it_dies_and_comes_back(tmp_path: Path) -> None:
    own = TritonServer(tmp_path / "own")
    own.start()
    try:
        _die_and_come_back(tmp_path, own)
    finally:
        own.kill()


def _die_and_come_back(tmp_path: Path, own: TritonServer) -> None:
    reference = _engine(tmp_path / "torch", own.torch_runtime())
    # Each request is a new one: an answer that was given is kept.
    expected = [reference.segment(_request(seed)) for seed in range(3)]
    engine = _engine(tmp_path / "triton", TritonRuntime(own.address()))
    other = TritonRuntime(own.address())
    many = [_canvas(seed) for seed in range(MANY)]
    images = other.encode(many, StageClock())
    with (
        running(engine) as started,
        VessaClient(started.grpc) as client,
        VessaClient(started.grpc, ONCE) as impatient,
    ):
        _assert_same(client.segment(_request(0)), expected[0])

        own.kill()
        with pytest.raises(UnavailableError, match="no tritonserver answers") as caught:
            impatient.segment(_request(1))
        assert caught.value.retry_after > 0
        own.start()
        _assert_same(client.segment(_request(1)), expected[1])
        # This client asked for nothing meanwhile: its shared memory is not mapped any more.
        assert len(other.encode(many, StageClock())) == MANY
        with pytest.raises(HandleLostError):
            other.describe(images[:1], [np.ones((SIDE, SIDE), np.bool_)], StageClock())

        own.kill_model()  # which Triton does not mend by itself
        _assert_same(client.segment(_request(2)), expected[2])

        checkpoint.save(tiny_model(seed=1), own.weights)
        own.kill()
        own.start()
        with pytest.raises(UnavailableError, match="restart vessa-server"):
            impatient.segment(_request(3))
        other.close()
