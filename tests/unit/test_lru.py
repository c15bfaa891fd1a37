"""A memory bounded by bytes, against a plain list."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from vessa_server.features.lru import ByteLru

LARGEST = 20
KEYS = st.sampled_from("abcde")


class Comparison(RuleBasedStateMachine):
    """The same is done to a memory and to a list, least recently used first."""

    def __init__(self) -> None:
        super().__init__()
        self.memory: ByteLru[int] = ByteLru(LARGEST)
        self.entries: list[tuple[str, int, int]] = []

    @rule(key=KEYS, value=st.integers(), size=st.integers(0, LARGEST + 2))
    def put(self, key: str, value: int, size: int) -> None:
        self.memory.put(key, value, size)
        self.entries = [entry for entry in self.entries if entry[0] != key]
        if size <= LARGEST:
            self.entries.append((key, value, size))
        while sum(entry[2] for entry in self.entries) > LARGEST:
            self.entries.pop(0)

    @rule(key=KEYS)
    def get(self, key: str) -> None:
        found = [entry for entry in self.entries if entry[0] == key]
        assert self.memory.get(key) == (found[0][1] if found else None)
        self.entries = [entry for entry in self.entries if entry[0] != key] + found

    @rule()
    def clear(self) -> None:
        self.memory.clear()
        self.entries = []

    @invariant()
    def as_much_is_kept(self) -> None:
        assert len(self.memory) == len(self.entries)
        assert self.memory.bytes == sum(entry[2] for entry in self.entries) <= LARGEST


TestByteLru = Comparison.TestCase


def test_a_size_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="max_bytes -1: expected 0 or more"):
        ByteLru[int](-1)


def test_many_threads_leave_a_memory_whose_count_is_right() -> None:
    memory: ByteLru[tuple[int, int]] = ByteLru(100)
    wrong: list[object] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(4000):
            key, size = rng.randrange(40), rng.randrange(1, 20)
            action = rng.random()
            if action < 0.5:
                memory.put(key, (key, size), size)
            elif action < 0.999:
                value = memory.get(key)
                if value is not None and value[0] != key:
                    wrong.append(value)
            else:
                memory.clear()
            if not 0 <= memory.bytes <= 120:  # one that is put may be over for a moment
                wrong.append(memory.bytes)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    values = [value for key in range(40) if (value := memory.get(key)) is not None]
    assert len(values) == len(memory)
    assert sum(size for _, size in values) == memory.bytes <= 100


class _Ending:
    """Calls something when it is released."""

    def __init__(self, at_end: Callable[[], object]) -> None:
        self.at_end = at_end

    def __del__(self) -> None:
        self.at_end()


@pytest.mark.parametrize("how", ["evicted", "replaced", "cleared", "too large"])
def test_what_is_released_may_use_the_memory(how: str) -> None:
    memory: ByteLru[object] = ByteLru(10)
    released: list[object] = []

    def use() -> None:
        released.append(memory.get("other"))

    def work() -> None:
        memory.put("first", _Ending(use), 1)
        memory.put("second", _Ending(use), 1)
        memory.put("other", "still there", 1)
        memory.get("first"), memory.get("second")
        if how == "evicted":
            memory.put("large", "large", 10)
        elif how == "cleared":
            memory.clear()
        else:
            for key in ("first", "second"):
                memory.put(key, "new", 1 if how == "replaced" else 11)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert released == ["still there" if how in ("replaced", "too large") else None] * 2
