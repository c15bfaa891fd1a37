"""Serving on a device, from its weights to answers over gRPC: on the CPU, and on a GPU if any."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

import golden_answers
from support import engine_of, picture, running, segment_together, tiny_model
from support_devices import DEVICES, exact_products, skip_without
from triton_support import torch_runtime
from vessa_client import SegmentationRequest, SegmentationResult, VessaClient, VolumeRequest
from vessa_server.engine_settings import EngineSettings
from vessa_server.model import checkpoint
from vessa_server.runtime.clock import StageClock
from vessa_server.runtime.devices import resolve_device
from vessa_server.runtime.loading import load_runtime, stored_config
from vessa_server.runtime.protocol import Floats, RuntimeUnavailableError
from vessa_server.runtime.torch_runtime import TorchRuntime
from vessa_server.runtime.warm_up import warm_up

DTYPES = ("float32", "bfloat16", "float16")
MIB = 2**20
# What the room of a batch has beside what its parts need: some of the allocator's blocks.
SPARE = 64 * MIB


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    skip_without(request.param)
    return str(request.param)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    checkpoint.save(tiny_model(), folder)
    return folder


def _canvases(count: int, side: int) -> list[Floats]:
    rng = np.random.default_rng(0)
    return [rng.random((1, side, side), np.float32) for _ in range(count)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_model_is_loaded_onto_its_device_and_warm(device: str, dtype: str, weights: Path) -> None:
    runtime = torch_runtime(weights, device, dtype)
    place = resolve_device(device)
    tensors = [*runtime.model.parameters(), *runtime.model.buffers()]
    assert {tensor.device for tensor in tensors} == {place}
    assert runtime.info.device.startswith(str(place))
    assert runtime.info.dtype == dtype
    assert runtime.info.memory >= sum(p.nbytes for p in runtime.model.parameters())
    assert all(milliseconds > 0 for milliseconds in warm_up(runtime).values())


def test_an_adaptation_is_applied_on_the_device(device: str, weights: Path, tmp_path: Path) -> None:
    name = "student_embedding"
    shape = tiny_model().student_embedding.shape
    delta = {name: torch.full(shape, 0.25)}
    file = checkpoint.save_delta(delta, checkpoint.digest(weights), tmp_path)
    runtime = load_runtime(
        stored_config(weights), weights, adaptation=file, device=device, dtype="bfloat16",
        max_batch=4,
    )  # fmt: skip
    assert bool((runtime.model.student_embedding == 0.25).all())
    assert runtime.model.student_embedding.dtype == torch.bfloat16
    assert runtime.digest != checkpoint.digest(weights)


@pytest.mark.parametrize("fuse", [False, True])
def test_a_server_answers_as_the_engine_on_the_cpu(device: str, fuse: bool, tmp_path: Path) -> None:
    engines = {
        place: engine_of(
            tmp_path / place,
            model=tiny_model().to(resolve_device(place)),
            settings=EngineSettings(fuse=fuse),
        )
        for place in {"cpu", device}
    }
    image, labels = picture(7)
    names = ("disc", "bar")
    requests = [
        SegmentationRequest(image=image),
        SegmentationRequest(image=image, student_mask=labels),
        SegmentationRequest(image=image, text="bright", explain=True, class_names=names),
    ]
    volume = VolumeRequest(slices=tuple(picture(seed)[0] for seed in range(3)), class_names=names)
    with (
        exact_products(),
        running(engines[device], batch_mode="fused" if fuse else "exact") as server,
        VessaClient(server.grpc) as client,
    ):
        assert client.info().device.startswith(str(resolve_device(device)))
        for request in requests:
            found, expected = client.segment(request), engines["cpu"].segment(request)
            assert (found.labels == expected.labels).mean() >= 0.99
        slices = [s for s in client.segment_volume(volume) if isinstance(s, SegmentationResult)]
        assert sorted(answer.slice_index for answer in slices) == [0, 1, 2]


def test_requests_that_run_together_are_answered_as_alone(device: str, tmp_path: Path) -> None:
    engine = engine_of(
        tmp_path, model=tiny_model().to(resolve_device(device)), settings=EngineSettings(fuse=True)
    )
    requests = [
        SegmentationRequest(image=image, student_mask=labels if seed % 2 else None)
        for seed, (image, labels) in ((seed, picture(seed)) for seed in range(5))
    ]
    with exact_products():
        alone = [engine.segment(request) for request in requests]
        engine.memory.clear()
        together = segment_together(engine, requests)
    for one, other in zip(together, alone, strict=True):
        assert (one.labels == other.labels).mean() >= 0.99


class TestMemoryOfAGpu:
    """With the shipped weights, since an image of the tiny model fits into any gap."""

    @pytest.fixture
    def runtime(self) -> TorchRuntime:
        skip_without("cuda")
        return torch_runtime(golden_answers.WEIGHTS, "cuda")

    def test_handles_take_what_they_say_and_give_it_back(self, runtime: TorchRuntime) -> None:
        canvases = _canvases(8, runtime.info.canvas)
        runtime.encode(canvases, StageClock())
        gc.collect()
        before = torch.cuda.memory_allocated()
        held = runtime.encode(canvases, StageClock())
        taken = torch.cuda.memory_allocated() - before
        said = sum(handle.nbytes for handle in held)
        assert said <= taken <= 1.2 * said + MIB  # the allocator rounds up
        del held
        gc.collect()
        assert torch.cuda.memory_allocated() == before

    def test_batches_are_measured(self, runtime: TorchRuntime) -> None:
        warm_up(runtime)
        steps = runtime.budget.item_bytes
        assert steps.keys() == {"encode", "describe", "condition on 1", "decode"}
        assert all(taken > 0 for taken in steps.values())

    def test_without_room_for_a_batch_its_parts_give_the_same(self, runtime: TorchRuntime) -> None:
        canvases = _canvases(128, runtime.info.canvas)
        runtime.budget.max_batch = len(canvases)
        with exact_products():
            handles = runtime.encode(canvases, StageClock())
            whole = [runtime.dump(handle) for handle in handles]
            held = sum(handle.nbytes for handle in handles)
            room = held + 8 * runtime.budget.item_bytes["encode"] + SPARE
            del handles
            # Believed to be small, all are tried at once.
            runtime.budget.item_bytes["encode"] = 1
            with _room_for(room):
                parts = [runtime.dump(h) for h in runtime.encode(canvases, StageClock())]
        assert runtime.budget.most_rows("encode") < len(canvases)
        for one, other in zip(parts, whole, strict=True):
            for name, tensor in one.items():
                torch.testing.assert_close(tensor, other[name], atol=2e-3, rtol=0)

    def test_without_room_for_one_image_it_is_said_and_the_next_is_answered(
        self, runtime: TorchRuntime
    ) -> None:
        canvases = _canvases(1, runtime.info.canvas)
        with _room_for(0), pytest.raises(RuntimeUnavailableError, match="no memory left on cuda:0"):
            runtime.encode(canvases, StageClock())
        assert len(runtime.encode(canvases, StageClock())) == 1


@contextmanager
def _room_for(nbytes: int) -> Iterator[None]:
    """A GPU on which this process may take only so much more than it has, in which gaps are filled.

    The allocator takes memory in blocks of its own, so that not all of the room can be used.
    """
    gc.collect()
    torch.cuda.empty_cache()
    filled = []
    try:
        _allow(torch.cuda.memory_reserved())
        filled = list(_gaps())
        _allow(torch.cuda.memory_reserved() + nbytes)
        yield
    finally:
        filled.clear()
        torch.cuda.set_per_process_memory_fraction(1.0)


def _allow(nbytes: int) -> None:
    total = torch.cuda.get_device_properties(0).total_memory
    # Less than the smallest block more, for what rounding takes.
    torch.cuda.set_per_process_memory_fraction((nbytes + MIB) / total)


def _gaps() -> Iterator[torch.Tensor]:
    for size in (2 * MIB, MIB // 2, 2**14):
        with contextlib.suppress(torch.OutOfMemoryError):
            while True:
                yield torch.empty(size, dtype=torch.uint8, device="cuda")
