"""The model's instance on Triton: a runtime, what it keeps for clients, and their requests."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vessa_server.runtime.clock import StageClock
from vessa_server.runtime.heap import HeapTrimmer
from vessa_server.runtime.protocol import Runtime
from vessa_server.runtime.triton.handles import HandleStore
from vessa_server.runtime.triton.messages import ERRORS, PROTOCOL, Arrays, Message, MessageError
from vessa_server.runtime.triton.operations import OPERATIONS, Operation

# Requests between two looks at the heap; a look takes four, or one if most is known already.
TRIMMED_EVERY = 256


@dataclass(frozen=True)
class _Task:
    """A request that was understood."""

    number: int
    operation: Operation
    items: list[Any]
    key: Hashable


class Instance:
    """Answers the requests of Triton's batches. One thread."""

    def __init__(self, runtime: Runtime, feature_bytes: int) -> None:
        """Serve ``runtime``, and keep at most ``feature_bytes`` for its clients."""
        self.runtime = runtime
        self.held = HandleStore(feature_bytes)
        info = runtime.info
        self._digest, self._model_bytes = info.model_digest, info.memory
        self._operations = {
            name: operation(runtime, self.held) for name, operation in OPERATIONS.items()
        }
        self._heap = HeapTrimmer(TRIMMED_EVERY)

    def answer(self, requests: Sequence[Mapping[str, Any]]) -> list[Arrays | Exception]:
        """Run requests, those of the same kind as one batch.

        Returns:
            The tensors of each answer. An error of the runtime's protocol is an answer by its
            name; any other is an exception, of that request alone.
        """
        outcomes: list[Arrays | Exception] = [MessageError("no answer")] * len(requests)
        groups: dict[Hashable, list[_Task]] = {}
        for number, arrays in enumerate(requests):
            try:
                task = self._read(number, Message.from_arrays(arrays))
            except Exception as error:
                outcomes[number] = self._failure(error)
            else:
                groups.setdefault(task.key, []).append(task)
        for tasks in groups.values():
            for task, outcome in zip(tasks, self._run(tasks), strict=True):
                outcomes[task.number] = outcome
        self._heap.count(len(requests))
        return outcomes

    def _read(self, number: int, message: Message) -> _Task:
        self.held.release(message.get("released", list))
        name = message.get("operation", str)
        operation = self._operations.get(name)
        if operation is None:
            raise MessageError(f"operation: {name[:80]!r}, expected one of {', '.join(OPERATIONS)}")
        alone = message.get("exact", bool) or not operation.together
        key = number if alone else operation.key(message)
        return _Task(number, operation, operation.items(message), (name, alone, key))

    def _run(self, tasks: Sequence[_Task]) -> list[Arrays | Exception]:
        """Run requests together, or each alone where that fails."""
        operation, clock = tasks[0].operation, StageClock()
        try:
            results = operation.run([item for task in tasks for item in task.items], clock)
        except Exception as error:
            if len(tasks) == 1:
                return [self._failure(error)]
            return [outcome for task in tasks for outcome in self._run([task])]
        clocks = [StageClock() for _ in tasks]
        clock.share(clocks)
        outcomes: list[Arrays | Exception] = []
        start = 0
        for task, part in zip(tasks, clocks, strict=True):
            end = start + len(task.items)
            try:
                outcomes.append(self._arrays(operation.answer(results[start:end]), part))
            except Exception as error:
                outcomes.append(self._failure(error))
            start = end
        return outcomes

    def _failure(self, error: Exception) -> Arrays | Exception:
        name = type(error).__name__
        if name not in ERRORS:
            return error
        text = str(error.args[0]) if error.args else ""
        return self._arrays(Message({"error": {"name": name, "text": text}}), StageClock())

    def _arrays(self, message: Message, clock: StageClock) -> Arrays:
        facts = {
            "protocol": PROTOCOL,
            "digest": self._digest,
            "memory": self._model_bytes + self.held.bytes,
            "milliseconds": clock.milliseconds(),
        }
        fields = {**message.fields, **facts}
        return Message(fields, message.floats, message.masks, message.tensors).to_arrays()
