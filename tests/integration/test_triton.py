"""The engine with its model on a tritonserver: the same answers, batches, shared memory, queues."""

from __future__ import annotations

import os
import re
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

from support import picture, running
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
from vessa_client import SegmentationResult, VessaClient
from vessa_server.api.settings import ServerSettings
from vessa_server.runtime.clock import StageClock
from vessa_server.runtime.protocol import (
    Conditioning,
    Decoded,
    Decoding,
    Runtime,
    RuntimeUnavailableError,
)
from vessa_server.runtime.triton import connection, shared_memory
from vessa_server.runtime.triton.client import TritonRuntime
from vessa_server.runtime.triton.connection import Address, Connection, OperationError
from vessa_server.runtime.triton.messages import Message

SHARED_MODEL = "vessa_1"
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
    expected = engine_over(tmp_path / "torch", server.torch_runtime()).segment(
        request_of(0, **more)
    )
    engine = engine_over(tmp_path / "triton", runtime)
    found = engine.segment(request_of(0, **more))
    assert_same(found, expected)
    assert found.probabilities is not None
    assert found.probabilities.std() > 1
    again = engine.segment(request_of(0, **more))
    assert again.image_features_cached
    assert_same(again, expected)


def test_words_are_the_same(tmp_path: Path, server: TritonServer, runtime: TritonRuntime) -> None:
    found = engine_over(tmp_path / "triton", runtime).segment(request_of(0, explain=True))
    expected = engine_over(tmp_path / "torch", server.torch_runtime()).segment(
        request_of(0, explain=True)
    )
    assert [c.explanation for c in found.classes] == [c.explanation for c in expected.classes]


def test_the_server_says_where_its_model_is(tmp_path: Path, runtime: TritonRuntime) -> None:
    with running(engine_over(tmp_path, runtime)) as started, VessaClient(started.grpc) as client:
        info = client.info()
        assert (info.runtime, info.device, info.dtype) == ("triton", "cpu", "float32")
        result = client.segment(request_of(0))
        assert result.stage_ms["triton"] > 0
        assert result.stage_ms["decode_mask"] > 0


def test_clients_do_not_get_each_others_features(tmp_path: Path, server: TritonServer) -> None:
    """Several at once, with templates of their own; their requests share batches."""
    expected = {
        seed: engine_over(tmp_path / f"torch{seed}", server.torch_runtime(), (100 + seed,)).segment(
            request_of(seed)
        )
        for seed in range(3)
    }

    def segment(seed: int) -> list[SegmentationResult]:
        runtime = TritonRuntime(server.address())
        engine = engine_over(tmp_path / f"triton{seed}", runtime, (100 + seed,))
        results = []
        for _ in range(5):
            engine.memory.clear()
            results.append(engine.segment(request_of(seed)))
        engine.close()
        return results

    with ThreadPoolExecutor(3) as pool:
        for seed, results in enumerate(pool.map(segment, range(3))):
            for result in results:
                assert_same(result, expected[seed])


def _decode_alone(runtime: Runtime, seed: int, times: int) -> list[Decoded]:
    clock = StageClock()
    image = runtime.encode([canvas_of(seed)], clock)[0]
    mask_HW = np.zeros((SIDE, SIDE), np.bool_)
    mask_HW[20:40, 10:30] = True
    template = runtime.describe([image], [mask_HW], clock)[0].handle
    conditioned = runtime.condition([Conditioning(image, [[template]])], clock)[0]
    return [runtime.decode([Decoding(image, conditioned)], clock)[0] for _ in range(times)]


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
    arrays = Message(sent, floats=[canvas_of(0)]).to_arrays()
    with pytest.raises(OperationError, match="floats: 4095 values, expected 4096"):
        client.infer(arrays | {"floats": arrays["floats"][:, 1:]}, seconds=10)
    client.close()


class TestSharedMemory:
    """Batches of these sizes go beside the message."""

    def _large(self, server: TritonServer) -> tuple[list[Decoded], set[str]]:
        before = _segments()
        runtime = TritonRuntime(server.address())
        clock = StageClock()
        images = runtime.encode([canvas_of(seed) for seed in range(MANY)], clock)
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
    many = [canvas_of(seed) for seed in range(64)]
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
    many = [canvas_of(seed) for seed in range(200)]
    expected = engine_over(tmp_path / "torch", server.torch_runtime()).segment(request_of(0))
    assert_same(engine_over(tmp_path / "triton", shared).segment(request_of(0)), expected)
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
