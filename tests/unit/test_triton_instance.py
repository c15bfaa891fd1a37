"""What the model on Triton does with a batch of requests, without Triton."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support import tiny_model
from triton_support import tiny_weights
from vessa_server.model.checkpoint import CheckpointError
from vessa_server.runtime.clock import StageClock
from vessa_server.runtime.loading import stored_config
from vessa_server.runtime.protocol import (
    Conditioning,
    Decoding,
    Floats,
    HandleLostError,
    RuntimeUnavailableError,
)
from vessa_server.runtime.torch_runtime import TorchRuntime
from vessa_server.runtime.triton.handles import HandleStore
from vessa_server.runtime.triton.instance import Instance
from vessa_server.runtime.triton.messages import Arrays, Message, MessageError

SIDE = 64
MASK_HW = np.zeros((SIDE, SIDE), np.bool_)
MASK_HW[10:40, 20:40] = True


class CountingRuntime(TorchRuntime):
    """Counts forwards."""

    forwards = 0

    def decode(self, items: Any, clock: StageClock) -> Any:
        self.forwards += 1
        return super().decode(items, clock)


@pytest.fixture
def instance() -> Instance:
    return Instance(CountingRuntime(tiny_model(), "0" * 64), feature_bytes=1 << 24)


def _canvas(seed: int) -> Floats:
    return np.random.default_rng(seed).random((1, SIDE, SIDE), np.float32)


def _request(operation: str, *, exact: bool = False, **more: Any) -> Arrays:
    arrays = {name: more.pop(name) for name in ("floats", "masks", "tensors") if name in more}
    fields = {"operation": operation, "exact": exact, "released": [], **more}
    return Message(fields, **arrays).to_arrays()


def _answer(instance: Instance, *requests: Arrays) -> list[Message]:
    return [Message.from_arrays(_arrays(answer)) for answer in instance.answer(requests)]


def _arrays(answer: Arrays | Exception) -> Arrays:
    if isinstance(answer, Exception):
        raise answer
    return answer


def _conditioned(instance: Instance, seed: int) -> tuple[str, str]:
    """Names of an image and of what it is conditioned on, itself."""
    (image,) = _answer(instance, _request("encode", read=False, floats=[_canvas(seed)]))
    name = image.get("handles", list)[0][0]
    (template,) = _answer(instance, _request("describe", images=[name], masks=[MASK_HW]))
    items = [[name, [[template.get("handles", list)[0][0]]], None]]
    (conditioned,) = _answer(instance, _request("condition", items=items))
    return name, conditioned.get("handles", list)[0][0]


@pytest.mark.parametrize(("exact", "forwards"), [(False, 1), (True, 4)])
def test_requests_of_a_batch_are_one_forward_unless_exact(
    instance: Instance, exact: bool, forwards: int
) -> None:
    pairs = [_conditioned(instance, seed) for seed in range(4)]
    requests = [_request("decode", exact=exact, items=[[*pair, False]]) for pair in pairs]
    alone = [_answer(instance, request)[0] for request in requests]
    runtime = instance.runtime
    assert isinstance(runtime, CountingRuntime)
    runtime.forwards = 0
    together = _answer(instance, *requests)
    assert runtime.forwards == forwards
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one.floats[0], other.floats[0], atol=1e-5)
        assert one.get("milliseconds", dict)["decode_mask"] > 0


def test_a_request_that_fails_harms_no_other_of_its_batch(instance: Instance) -> None:
    pair = _conditioned(instance, 0)
    good = _request("decode", items=[[*pair, False]])
    (expected,) = _answer(instance, good)
    lost = _request("decode", items=[[pair[0], "0" * 32, False]])
    # An image where a conditioned one belongs fails in the middle of the common forward.
    wrong = _request("decode", items=[[pair[0], pair[0], False]])
    unknown = _request("sing")
    answers = instance.answer([good, lost, wrong, unknown, good])
    for answer in (answers[0], answers[4]):
        found = Message.from_arrays(_arrays(answer))
        np.testing.assert_allclose(found.floats[0], expected.floats[0], atol=1e-5)
    names = [Message.from_arrays(_arrays(a)).get("error", dict)["name"] for a in answers[1:3]]
    assert names == ["HandleLostError", "TypeError"]
    assert isinstance(answers[3], MessageError)


def test_operations_of_different_kinds_share_a_batch(instance: Instance) -> None:
    pair = _conditioned(instance, 0)
    answers = _answer(
        instance,
        _request("encode", read=False, floats=[_canvas(1)]),
        _request("decode", items=[[*pair, False]]),
        _request("encode", read=True, floats=[_canvas(2)]),
        _request("info"),
    )
    assert len(answers[0].get("handles", list)) == 1
    assert answers[1].floats[0].shape == (1, SIDE // 2, SIDE // 2)
    unseen, seen = (answers[i].get("handles", list)[0][1] for i in (0, 2))
    assert seen > unseen
    assert answers[3].get("runtime", dict)["model_name"] == "tiny"


def test_an_index_outlives_the_memory_that_it_came_in(instance: Instance) -> None:
    clock = StageClock()
    image = instance.runtime.encode([_canvas(0)], clock)[0]
    embedding_2D = instance.runtime.describe([image], [MASK_HW], clock)[0].embedding_2D
    request = _request("index", floats=[embedding_2D[None, None]])
    (index,) = _answer(instance, request)
    (held,) = _answer(instance, _request("encode", read=False, floats=[_canvas(0)]))
    request["floats"].setflags(write=True)
    request["floats"][...] = np.nan  # as Triton does with the next request
    fields = {
        "images": [held.get("handles", list)[0][0]],
        "index": index.get("handles", list)[0][0],
    }
    (similar,) = _answer(instance, _request("similarity", **fields))
    assert np.isfinite(similar.floats[0]).all()


@dataclass
class Sized:
    nbytes: int


def test_the_store_keeps_the_most_recently_used() -> None:
    store = HandleStore(100)
    names = [store.put(Sized(30))[0] for _ in range(3)]
    store.get(names[0])
    store.put(Sized(40))
    assert store.bytes == 100
    assert store.get(names[0]).nbytes == 30
    with pytest.raises(HandleLostError):
        store.get(names[1])
    store.release([names[0], names[1], "unknown"])
    assert (store.bytes, len(store)) == (70, 2)
    with pytest.raises(RuntimeUnavailableError, match="VESSA_FEATURE_BYTES"):
        store.put(Sized(101))
    assert len(store) == 2


@given(
    st.lists(st.lists(st.integers(0, 4), max_size=4), max_size=4),
    st.lists(st.lists(st.integers(0, 4), max_size=3), max_size=4),
    st.binary(max_size=50),
)
def test_a_message_comes_back_as_it_went(
    floats: list[list[int]], masks: list[list[int]], tensors: bytes
) -> None:
    rng = np.random.default_rng(0)
    sent = Message(
        {"operation": "x", "names": ["a"]},
        [rng.random(shape).astype(np.float32) for shape in floats],
        [rng.random(shape) > 0.5 for shape in masks],
        tensors,
    )
    arrays = sent.to_arrays()
    assert all(array.shape == (1, array.size) for array in arrays.values())
    found = Message.from_arrays(arrays)
    assert found.get("names", list) == ["a"]
    assert found.tensors == tensors
    for back, array in zip((*found.floats, *found.masks), (*sent.floats, *sent.masks), strict=True):
        assert back.dtype == array.dtype
        assert np.array_equal(back, array)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b'{"shapes": 1}',
        b'{"shapes": {"floats": 1, "masks": []}}',
        b'{"shapes": {"floats": [[-1]], "masks": []}}',
        b'{"shapes": {"floats": [[true]], "masks": []}}',
        b'{"shapes": {"floats": [[3]], "masks": []}}',
        b'{"shapes": {"floats": [["a"]], "masks": []}}',
        b'{"shapes": {"floats": [], "masks": [[1000000000000]]}}',
        b"[" * 100_000,
        b" " * (1 << 21),
    ],
    ids=lambda text: text[:40],
)
def test_a_message_that_is_none_is_refused(text: bytes) -> None:
    with pytest.raises(MessageError):
        Message.from_arrays({"message": np.frombuffer(text, np.uint8)[None]})


def test_values_of_another_type_are_refused() -> None:
    arrays = Message({}, floats=[np.zeros(4, np.float32)]).to_arrays()
    with pytest.raises(MessageError, match="floats: float64, expected float32"):
        Message.from_arrays(arrays | {"floats": arrays["floats"].astype(np.float64)})


def test_weights_say_what_they_are_of(tmp_path: Path) -> None:
    assert stored_config(tiny_weights(tmp_path / "tiny")) == tiny_model().config
    with pytest.raises(CheckpointError, match=r"model\.safetensors has no configuration"):
        stored_config(tmp_path / "nothing")


def test_steps_may_be_run_again_on_what_was_decoded(instance: Instance) -> None:
    """Handles stay until they are released, whatever was done with them."""
    pair = _conditioned(instance, 0)
    before = instance.held.bytes
    request = _request("decode", items=[[*pair, False]])
    first, second = _answer(instance, request)[0], _answer(instance, request)[0]
    assert np.array_equal(first.floats[0], second.floats[0])
    assert instance.held.bytes == before
    fields = {"operation": "release", "exact": False, "released": list(pair)}
    _answer(instance, Message(fields).to_arrays())
    assert instance.held.bytes < before
    (answer,) = _answer(instance, request)
    assert answer.get("error", dict)["name"] == "HandleLostError"


def test_the_runtime_itself_gives_the_same(instance: Instance) -> None:
    pair = _conditioned(instance, 3)
    (found,) = _answer(instance, _request("decode", items=[[*pair, False]]))
    runtime, clock = TorchRuntime(tiny_model(), "0" * 64), StageClock()
    image = runtime.encode([_canvas(3)], clock)[0]
    template = runtime.describe([image], [MASK_HW], clock)[0].handle
    conditioned = runtime.condition([Conditioning(image, [[template]])], clock)[0]
    expected = runtime.decode([Decoding(image, conditioned)], clock)[0]
    assert np.array_equal(found.floats[0], expected.logits_CHW)
    assert np.array_equal(found.floats[1], expected.iou_C)
