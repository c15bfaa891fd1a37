"""What every runtime does: the same arrays, in batches or alone, with handles of its own."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from support_devices import exact_products, skip_without
from triton_support import TritonServer, tiny_weights, torch_runtime, tritonserver
from vessa_server.runtime.clock import StageClock
from vessa_server.runtime.protocol import (
    Bools,
    Conditioning,
    Decoded,
    Decoding,
    Described,
    Floats,
    Handle,
    HandleLostError,
    Runtime,
    RuntimeInfo,
    RuntimeUnavailableError,
)
from vessa_server.runtime.torch_runtime import TorchRuntime

if TYPE_CHECKING:  # elsewhere the tests that need it import it: a machine with a GPU may lack it
    from vessa_server.runtime.triton.client import TritonRuntime

SIDE, HALF, CLASSES = 64, 32, 2
TOLERANCE = 1e-5
# A GPU adds in another order, and has other approximations of functions.
CUDA_TOLERANCE = 2e-3
PROMPTS = ("Segment the disc.", "Segment the bar at the bottom.")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    with tritonserver(tmp_path_factory.mktemp("triton")) as started:
        yield started


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def reference(weights: Path) -> TorchRuntime:
    return torch_runtime(weights)


@pytest.fixture(params=["cpu", "cuda", "triton"])
def runtime(request: pytest.FixtureRequest, weights: Path) -> Iterator[Runtime]:
    opened: Runtime
    if request.param == "triton":
        opened = triton_runtime(request.getfixturevalue("server"))
    else:
        skip_without(request.param)
        opened = torch_runtime(weights, request.param)
    with exact_products():
        yield opened
    opened.close()


def triton_runtime(server: TritonServer) -> TritonRuntime:
    from vessa_server.runtime.triton.client import TritonRuntime

    return TritonRuntime(server.address())


@pytest.fixture
def tolerance(request: pytest.FixtureRequest) -> float:
    return CUDA_TOLERANCE if request.node.callspec.params["runtime"] == "cuda" else TOLERANCE


@dataclass
class Steps:
    """All that the steps give for some images."""

    described: list[Described]
    similarity: list[Floats]
    decoded: list[Decoded]
    prompted: list[Decoded]
    read: list[Decoded]
    words: list[str]


def _canvas(seed: int, channels: int = 1) -> Floats:
    return np.random.default_rng(seed).random((channels, SIDE, SIDE), np.float32)


def _mask(seed: int) -> Bools:
    mask_HW = np.zeros((SIDE, SIDE), np.bool_)
    mask_HW[10 + seed : 30 + seed, 20:40] = True
    return mask_HW


def _student() -> Floats:
    return np.linspace(0, 1, CLASSES * HALF * HALF, dtype=np.float32).reshape(-1, HALF, HALF)


def _templates(runtime: Runtime, clock: StageClock) -> list[Described]:
    """Of two classes, from one image each."""
    images = runtime.encode([_canvas(100), _canvas(101, 3)], clock)
    return runtime.describe(images, [_mask(0), _mask(9)], clock)


def _steps(runtime: Runtime, count: int = 3) -> Steps:
    clock = StageClock()
    described = _templates(runtime, clock)
    rows = [[d.handle] for d in described]
    canvases = [_canvas(i, 1 if i % 2 else 3) for i in range(count)]
    images = runtime.encode(canvases, clock)
    index = runtime.index(np.stack([d.embedding_2D[None] for d in described]))
    conditioned = runtime.condition([Conditioning(i, rows) for i in images], clock)
    plain = [Decoding(i, c) for i, c in zip(images, conditioned, strict=True)]
    seen = runtime.encode(canvases, clock, read=True)
    prefixes = runtime.prefix([_canvas(200, 3), _canvas(201, 3)], PROMPTS)
    read = runtime.condition([Conditioning(i, rows, prefixes) for i in seen], clock)
    prompted = [Decoding(d.image, d.conditioned, _student()) for d in plain]
    return Steps(
        described,
        runtime.similarity(images, index, clock),
        runtime.decode(plain, clock),
        # One has no prompt among others that have one.
        runtime.decode([plain[0], *prompted[1:]], clock),
        runtime.decode([Decoding(i, c) for i, c in zip(seen, read, strict=True)], clock),
        runtime.explain(seen[0], prefixes, 4, clock),
    )


def _same(found: list[Decoded], expected: list[Decoded], tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.logits_CHW.shape == (CLASSES, HALF, HALF)
        np.testing.assert_allclose(one.logits_CHW, other.logits_CHW, atol=tolerance)
        np.testing.assert_allclose(one.iou_C, other.iou_C, atol=tolerance)


def test_steps_give_the_same_as_in_this_process(
    runtime: Runtime, reference: TorchRuntime, tolerance: float
) -> None:
    found, expected = _steps(runtime), _steps(reference)
    for one, other in zip(found.described, expected.described, strict=True):
        np.testing.assert_allclose(one.embedding_2D, other.embedding_2D, atol=tolerance)
        assert one.handle.nbytes == other.handle.nbytes > 0
    for a, b in zip(found.similarity, expected.similarity, strict=True):
        assert a.shape == (CLASSES, 1)
        np.testing.assert_allclose(a, b, atol=tolerance)
    _same(found.decoded, expected.decoded, tolerance)
    _same(found.prompted, expected.prompted, tolerance)
    _same(found.read, expected.read, tolerance)
    assert found.words == expected.words
    assert np.abs(found.read[0].logits_CHW - found.decoded[0].logits_CHW).max() > tolerance
    assert np.abs(found.prompted[1].logits_CHW - found.decoded[1].logits_CHW).max() > tolerance


def test_a_batch_gives_the_same_as_its_images_alone(runtime: Runtime, tolerance: float) -> None:
    clock = StageClock()
    rows = [[d.handle] for d in _templates(runtime, clock)]
    alone, together = list[Decoded](), list[Decoded]()
    for group in ([[0], [1], [2]], [[0, 1, 2]]):
        for seeds in group:
            images = runtime.encode([_canvas(seed) for seed in seeds], clock)
            conditioned = runtime.condition([Conditioning(i, rows) for i in images], clock)
            items = [Decoding(i, c) for i, c in zip(images, conditioned, strict=True)]
            (alone if len(seeds) == 1 else together).extend(runtime.decode(items, clock))
    _same(together, alone, tolerance)


def test_nothing_asked_is_nothing_answered(runtime: Runtime) -> None:
    clock = StageClock()
    assert runtime.encode([], clock) == []
    assert runtime.decode([], clock) == []
    assert runtime.condition([], clock) == []


@pytest.mark.parametrize("kind", ["template", "prefix"])
def test_what_was_dumped_comes_back_bit_for_bit(runtime: Runtime, kind: str) -> None:
    clock = StageClock()
    if kind == "template":
        handle = _templates(runtime, clock)[0].handle
    else:
        handle = runtime.prefix([_canvas(200, 3)], PROMPTS[:1])[0]
    tensors = runtime.dump(handle)
    restored = runtime.restore(kind, tensors)
    assert restored.nbytes == handle.nbytes
    again = runtime.dump(restored)
    assert tensors.keys() == again.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == again[name].dtype
        assert tensor.equal(again[name])


def test_a_missing_tensor_is_named(runtime: Runtime) -> None:
    tensors = runtime.dump(_templates(runtime, StageClock())[0].handle)
    del tensors["match_KDHW"]
    with pytest.raises(KeyError, match="match_KDHW"):
        runtime.restore("template", tensors)


def test_tensors_of_one_runtime_serve_the_other(runtime: Runtime, reference: TorchRuntime) -> None:
    clock = StageClock()
    tensors = reference.dump(_templates(reference, clock)[0].handle)
    image = runtime.encode([_canvas(0)], clock)[0]
    template = runtime.restore("template", tensors)
    conditioned = runtime.condition([Conditioning(image, [[template]])], clock)[0]
    assert runtime.decode([Decoding(image, conditioned)], clock)[0].logits_CHW.shape[0] == 1


def test_handles_of_another_kind_are_refused_and_harm_nobody(runtime: Runtime) -> None:
    clock = StageClock()
    image = runtime.encode([_canvas(0)], clock)[0]
    template = _templates(runtime, clock)[0].handle
    with pytest.raises(TypeError):
        runtime.decode([Decoding(image, template)], clock)
    conditioned = runtime.condition([Conditioning(image, [[template]])], clock)[0]
    assert len(runtime.decode([Decoding(image, conditioned)], clock)) == 1


def test_stages_are_timed(runtime: Runtime) -> None:
    clock = StageClock()
    image = runtime.encode([_canvas(0)], clock)[0]
    template = _templates(runtime, clock)[0].handle
    conditioned = runtime.condition([Conditioning(image, [[template]])], clock)[0]
    runtime.decode([Decoding(image, conditioned)], clock)
    stages = clock.milliseconds()
    expected = {"encode_image", "template_features", "match", "remember", "reason", "decode_mask"}
    assert expected <= stages.keys()
    assert all(value > 0 for value in stages.values())


def test_info_is_that_of_the_model(runtime: Runtime, reference: TorchRuntime) -> None:
    for field in fields(RuntimeInfo):
        if field.name not in ("runtime", "memory", "device"):
            assert getattr(runtime.info, field.name) == getattr(reference.info, field.name)
    assert runtime.info.runtime == type(runtime).__name__.removesuffix("Runtime").lower()


class TestHandlesOnTriton:
    @pytest.fixture
    def runtime(self, server: TritonServer) -> Iterator[TritonRuntime]:
        opened = triton_runtime(server)
        yield opened
        opened.close()

    def test_a_handle_that_is_not_there_is_lost(self, runtime: TritonRuntime) -> None:
        clock = StageClock()
        image: Any = runtime.encode([_canvas(0)], clock)[0]
        template: Handle = _templates(runtime, clock)[0].handle
        image.name = "0" * 32
        with pytest.raises(HandleLostError):
            runtime.condition([Conditioning(image, [[template]])], clock)

    def test_what_nobody_refers_to_is_released(self, runtime: TritonRuntime) -> None:
        clock = StageClock()
        runtime.index(np.zeros((1, 1, 2, 16), np.float32))
        gc.collect()
        runtime.encode([], clock)
        before = runtime.info.memory
        images = runtime.encode([_canvas(seed) for seed in range(5)], clock)
        assert runtime.info.memory == before + sum(image.nbytes for image in images)
        del images
        gc.collect()
        runtime.encode([], clock)
        assert runtime.info.memory == before

    def test_a_client_that_goes_leaves_nothing(
        self, server: TritonServer, runtime: TritonRuntime
    ) -> None:
        clock = StageClock()
        runtime.encode([], clock)
        before = runtime.info.memory
        other = triton_runtime(server)
        held = other.encode([_canvas(seed) for seed in range(5)], clock)
        runtime.encode([], clock)
        assert runtime.info.memory == before + sum(image.nbytes for image in held)
        other.close()
        runtime.encode([], clock)
        assert runtime.info.memory == before

    def test_room_for_less_than_one_answer_is_said(self, runtime: TritonRuntime) -> None:
        """Computing anew would lose the first handle again, for ever."""
        clock = StageClock()
        for expected in (HandleLostError, RuntimeUnavailableError, HandleLostError):
            images = runtime.encode([_canvas(seed) for seed in range(200)], clock)
            with pytest.raises(expected):
                runtime.describe(images[:1], [_mask(0)], clock)
        _steps(runtime, 1)
        images = runtime.encode([_canvas(seed) for seed in range(200)], clock)
        with pytest.raises(HandleLostError):
            runtime.describe(images[:1], [_mask(0)], clock)

    def test_features_are_bounded_by_bytes(self, runtime: TritonRuntime) -> None:
        clock = StageClock()
        model_bytes = runtime.info.memory
        first = runtime.encode([_canvas(0)], clock)[0]
        kept = [runtime.encode([_canvas(seed)], clock)[0] for seed in range(1, 200)]
        assert sum(handle.nbytes for handle in kept) > runtime.feature_bytes
        assert runtime.info.memory - model_bytes <= runtime.feature_bytes
        with pytest.raises(HandleLostError):
            runtime.describe([first], [_mask(0)], clock)
        assert runtime.describe(kept[-1:], [_mask(0)], clock)[0].handle.nbytes > 0
