"""The runtime that has its model on a tritonserver."""

from __future__ import annotations

import contextlib
import time
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from safetensors.torch import load, save

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
    RuntimeInfo,
    RuntimeUnavailableError,
)
from vessa_server.runtime.triton import messages
from vessa_server.runtime.triton.connection import (
    RETRY_AFTER,
    Address,
    Connection,
    OperationError,
)
from vessa_server.runtime.triton.messages import Message, MessageError

# Seconds to wait for an answer, by operation; the model may be large and the device a CPU.
SECONDS: Final = {"info": 10.0, "release": 1.0}
MOST_SECONDS: Final = 120.0
# 1: what takes no time; 2: steps of an answer; 3: words, which take long.
PRIORITY: Final = {"info": 1, "release": 1, "explain": 3}
STEP_PRIORITY: Final = 2
# Names of handles that go with one request.
MOST_RELEASED: Final = 1024


class TritonHandle:
    """Something that the tritonserver keeps; given up when nobody refers to it any more.

    Attributes:
        name: of it there.
        nbytes: bytes that it takes there.
        classes: rows of a conditioned image; 1 for others.
    """

    def __init__(self, name: str, nbytes: int, classes: int = 1) -> None:
        self.name = name
        self.nbytes = nbytes
        self.classes = classes


class TritonRuntime:
    """Runs the steps on a tritonserver. One thread at a time, as its requests share memory."""

    def __init__(self, address: str, *, exact: bool = False) -> None:
        """Connect.

        Args:
            address: ``triton://host:port``, or with ``/model`` for another model than ``vessa``.
            exact: an answer does not depend on other clients' requests, bit for bit.

        Raises:
            ValueError: the address is none.
            RuntimeUnavailableError: no tritonserver answers, or not with this project's model.
        """
        self.address = Address.parse(address)
        self._exact = exact
        self._connection = Connection(self.address)
        # Names that the tritonserver keeps, and those of them that nobody refers to any more:
        # filled by finalisers, in whatever thread, and sent with the next request.
        self._kept: set[str] = set()
        self._released: deque[str] = deque()
        # Whether a handle was lost since the last masks or words.
        self._lost = False
        self._info: RuntimeInfo | None = None
        try:
            answer = self._call("info", {})
        except (OperationError, KeyError, TypeError) as error:
            self._connection.close()
            raise RuntimeUnavailableError(
                f"runtime: what {self.address.model!r} at {self.address.peer} (VESSA_RUNTIME) is, "
                f"is not this project's model: {error}"
            ) from None
        except RuntimeUnavailableError:
            self._connection.close()
            raise
        self._info = replace(RuntimeInfo(**answer.fields["runtime"]), runtime="triton")
        self.feature_bytes = answer.get("feature_bytes", int)

    @property
    def info(self) -> RuntimeInfo:
        """Model and device; ``memory`` is as of the last answer."""
        assert self._info is not None
        return self._info

    def encode(
        self, canvases: Sequence[Floats], clock: StageClock, *, read: bool = False
    ) -> list[Handle]:
        """See :class:`Runtime`."""
        # Grey images have three channels that share memory: one is enough.
        sent = [c[:1] if c.strides[0] == 0 else c for c in canvases]
        return self._handles(self._call("encode", {"read": read}, clock, floats=sent))

    def describe(
        self, images: Sequence[Handle], masks_HW: Sequence[Bools], clock: StageClock
    ) -> list[Described]:
        """See :class:`Runtime`."""
        answer = self._call("describe", {"images": _names(images)}, clock, masks=masks_HW)
        handles = self._handles(answer)
        return [Described(h, e) for h, e in zip(handles, answer.floats, strict=True)]

    def index(self, embeddings_CN2D: Floats) -> Handle:
        """See :class:`Runtime`."""
        return self._handles(self._call("index", {}, floats=[embeddings_CN2D]))[0]

    def similarity(
        self, images: Sequence[Handle], index: Handle, clock: StageClock
    ) -> list[Floats]:
        """See :class:`Runtime`."""
        fields = {"images": _names(images), "index": _name(index)}
        return list(self._call("similarity", fields, clock).floats)

    def prefix(self, overlays: Sequence[Floats], prompts: Sequence[str]) -> list[Handle]:
        """See :class:`Runtime`."""
        return self._handles(self._call("prefix", {"prompts": list(prompts)}, floats=overlays))

    def condition(self, items: Sequence[Conditioning], clock: StageClock) -> list[Handle]:
        """See :class:`Runtime`."""
        asked = [
            [
                _name(item.image),
                [_names(row) for row in item.templates],
                None if item.prefixes is None else _names(item.prefixes),
            ]
            for item in items
        ]
        answer = self._call("condition", {"items": asked}, clock)
        return self._handles(answer, [len(item.templates) for item in items])

    def decode(self, items: Sequence[Decoding], clock: StageClock) -> list[Decoded]:
        """See :class:`Runtime`."""
        asked = [
            [_name(item.image), _name(item.conditioned), item.prompt_CHW is not None]
            for item in items
        ]
        classes = sum(_handle(item.conditioned).classes for item in items)
        floats = self._call(
            "decode",
            {"items": asked},
            clock,
            floats=[item.prompt_CHW for item in items if item.prompt_CHW is not None],
            # Logits at half of the canvas's side, and an IoU, of each class.
            answer_bytes=4 * classes * ((self.info.canvas // 2) ** 2 + 1),
        ).floats
        return [Decoded(*pair) for pair in zip(floats[::2], floats[1::2], strict=True)]

    def explain(
        self, image: Handle, prefixes: Sequence[Handle], tokens: int, clock: StageClock
    ) -> list[str]:
        """See :class:`Runtime`."""
        fields = {"image": _name(image), "prefixes": _names(prefixes), "tokens": tokens}
        return self._call("explain", fields, clock).get("words", list)

    def dump(self, handle: Handle) -> dict[str, Any]:
        """See :class:`Runtime`."""
        return load(self._call("dump", {"handle": _name(handle)}).tensors)

    def restore(self, kind: str, tensors: dict[str, Any]) -> Handle:
        """See :class:`Runtime`."""
        sent = save({name: tensor.contiguous() for name, tensor in tensors.items()})
        return self._handles(self._call("restore", {"kind": kind}, tensors=sent))[0]

    def close(self) -> None:
        """Give up what the tritonserver keeps for this runtime, and the connection."""
        self._released = deque(self._kept)
        # One that is away makes room by itself.
        with contextlib.suppress(RuntimeUnavailableError, OperationError):
            while self._released:
                self._call("release", {})
        self._connection.close()

    def _handles(self, answer: Message, classes: Sequence[int] | None = None) -> list[Handle]:
        found: list[Handle] = []
        names = answer.get("handles", list)
        for (name, nbytes), count in zip(names, classes or [1] * len(names), strict=True):
            handle = TritonHandle(name, nbytes, count)
            # No network in a finaliser: it may run anywhere, at any time.
            weakref.finalize(handle, self._released.append, name).atexit = False
            self._kept.add(name)
            found.append(handle)
        return found

    def _call(
        self,
        operation: str,
        fields: dict[str, Any],
        clock: StageClock | None = None,
        *,
        floats: Sequence[Floats] = (),
        masks: Sequence[Bools] = (),
        tensors: bytes = b"",
        answer_bytes: int = 0,
    ) -> Message:
        """Run an operation; times of its stages, and of the way there and back, go to ``clock``."""
        start = time.perf_counter()
        released = [
            self._released.popleft() for _ in range(min(len(self._released), MOST_RELEASED))
        ]
        sent = {"operation": operation, "exact": self._exact, "released": released, **fields}
        try:
            arrays = self._connection.infer(
                Message(sent, floats, masks, tensors).to_arrays(),
                seconds=SECONDS.get(operation, MOST_SECONDS),
                priority=PRIORITY.get(operation, STEP_PRIORITY),
                answer_bytes=answer_bytes,
            )
        except RuntimeUnavailableError:
            self._released.extendleft(released)
            raise
        self._kept.difference_update(released)
        try:
            answer = Message.from_arrays(arrays)
            self._check(answer)
        except MessageError as error:
            raise OperationError(f"{operation}: the answer is not understood: {error}") from None
        except HandleLostError:
            self._note_loss()
            raise
        if operation in ("decode", "explain"):
            self._lost = False
        if clock is not None:
            stages = answer.get("milliseconds", dict)
            for name, milliseconds in stages.items():
                clock.add(name, milliseconds / 1000)
            spent = time.perf_counter() - start - sum(stages.values()) / 1000
            clock.add("triton", max(0.0, spent))
        return answer

    def _note_loss(self) -> None:
        """Say so where computing anew does not help.

        Raises:
            RuntimeUnavailableError: a second handle was lost before anything was answered.
        """
        self._lost = not self._lost
        if not self._lost:
            raise RuntimeUnavailableError(
                f"runtime: the tritonserver at {self.address.peer} has room for "
                f"{self.feature_bytes} bytes of features, too few for what is asked of it; raise "
                "VESSA_FEATURE_BYTES there",
                retry_after=RETRY_AFTER,
            ) from None

    def _check(self, answer: Message) -> None:
        """Refuse answers of another protocol or model than at the start; raise its error."""
        spoken, digest = answer.get("protocol", int), answer.get("digest", str)
        if spoken != messages.PROTOCOL:
            raise RuntimeUnavailableError(
                f"runtime: the model on the tritonserver at {self.address.peer} speaks version "
                f"{spoken} of the protocol, this server version {messages.PROTOCOL}; install the "
                "same vessa-server on both (VESSA_RUNTIME)",
                retry_after=RETRY_AFTER,
            )
        if self._info is not None:
            if digest != self._info.model_digest:
                raise RuntimeUnavailableError(
                    f"runtime: the tritonserver at {self.address.peer} has weights "
                    f"{digest[:12]} now, expected {self._info.model_digest[:12]}, those of the "
                    "start; restart vessa-server to use them",
                    retry_after=RETRY_AFTER,
                )
            self._info = replace(self._info, memory=answer.get("memory", int))
        if "error" in answer.fields:
            error = answer.get("error", dict)
            raise _named(str(error.get("name")), str(error.get("text")))


def _named(name: str, text: str) -> Exception:
    if name == RuntimeUnavailableError.__name__:
        return RuntimeUnavailableError(text, retry_after=RETRY_AFTER)
    return messages.ERRORS.get(name, OperationError)(text)


def _handle(handle: Handle) -> TritonHandle:
    if not isinstance(handle, TritonHandle):
        raise TypeError("expected a handle of this runtime")
    return handle


def _name(handle: Handle) -> str:
    return _handle(handle).name


def _names(handles: Sequence[Handle]) -> list[str]:
    return [_name(handle) for handle in handles]
