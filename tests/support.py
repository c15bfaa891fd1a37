"""Small models, images and servers for the tests."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from vessa_client import ClassDefinition, SegmentationRequest, SegmentationResult, UInt8Array
from vessa_server.api.run import Ports, serve
from vessa_server.api.settings import ServerSettings
from vessa_server.bank import Banks
from vessa_server.cache import FeatureCache, NoCache
from vessa_server.cases.segment import segment
from vessa_server.engine import VessaEngine
from vessa_server.engine_settings import EngineSettings
from vessa_server.inference.look import AnyLook, Look, Prediction
from vessa_server.model import prompts, tokenizer
from vessa_server.model.config import (
    DecoderConfig,
    HieraConfig,
    MatcherConfig,
    MemoryConfig,
    VessaConfig,
    VlmConfig,
)
from vessa_server.model.vessa import Vessa
from vessa_server.policy import PolicyConfig
from vessa_server.runtime.torch_runtime import TorchRuntime
from vessa_server.scheduler.scheduler import Bounds, Scheduler, Ticket

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "examples" / "acdc-sample"
CLASSES = (
    ClassDefinition(name="disc", description="Bright disc."),
    ClassDefinition(name="bar", description="Dark bar."),
)


def tiny_config() -> VessaConfig:
    """The smallest model with every part of the architecture."""
    return VessaConfig(
        name="tiny",
        image_size=64,
        d_model=32,
        hiera=HieraConfig(
            embed_dim=8,
            stages=(1, 1, 2, 1),
            global_attention_blocks=(3,),
            window_spec=(8, 4, 4, 2),
            background_size=(2, 2),
            fpn_top_down_levels=(0, 1, 2, 3),
        ),
        memory=MemoryConfig(memory_dim=16, num_layers=1, feedforward_dim=32, dropout=0.0),
        decoder=DecoderConfig(num_heads=2, mlp_dim=32, iou_hidden_dim=32, residual_init=0.5),
        matcher=MatcherConfig(feature_dim=16),
        vlm=VlmConfig(
            image_size=64,
            max_text_tokens=48,
            vocab_size=600,
            hidden_size=32,
            num_layers=2,
            num_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            intermediate_size=64,
            vision_hidden_size=32,
            vision_depth=2,
            vision_heads=2,
            vision_intermediate_size=64,
            deepstack_layers=(0,),
        ),
    )


def tiny_model(seed: int = 0) -> Vessa:
    """A tiny model with random weights."""
    torch.manual_seed(seed)
    config = tiny_config()
    words = tokenizer.build(prompts.corpus(["disc bar"]), config.vlm.vocab_size)
    return Vessa(config, words).eval()


def picture(seed: int, shape: tuple[int, int] = (60, 52)) -> tuple[UInt8Array, UInt8Array]:
    """An image with a bright disc (1) and a dark bar (2) on grey, and its labels."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0 : shape[0], 0 : shape[1]]
    row, column = rng.uniform(0.3, 0.6, 2) * shape
    labels = np.zeros(shape, dtype=np.uint8)
    labels[(rows - row) ** 2 + (columns - column) ** 2 < (0.17 * min(shape)) ** 2] = 1
    labels[int(0.85 * shape[0]) :, 5:-5] = 2
    values = np.array([110.0, 220.0, 30.0])[labels] + rng.normal(0, 8, shape)
    return np.clip(values, 0, 255).astype(np.uint8), labels


def engine_of(
    folder: Path,
    *,
    model: Vessa | None = None,
    cache: FeatureCache | None = None,
    settings: EngineSettings | None = None,
    templates: int = 3,
) -> VessaEngine:
    """An engine of a tiny model with a filled bank."""
    engine = VessaEngine(
        TorchRuntime(model or tiny_model(), "0" * 64),
        Banks(folder / "bank"),
        cache or NoCache(),
        settings,
    )
    for seed in range(templates):
        image, labels = picture(100 + seed)
        engine.add_template(image, labels, CLASSES, name=f"picture {seed}")
    return engine


def model_of(engine: VessaEngine) -> Vessa:
    """The model of an engine that runs it in this process."""
    assert isinstance(engine.runtime, TorchRuntime)
    return engine.runtime.model


def without(*rules: str) -> EngineSettings:
    """Settings with rules switched off."""
    return EngineSettings(policy=PolicyConfig(off=frozenset(rules)))


class Gate(VessaEngine):
    """An engine that waits until it may work, tells when it has begun, and notes at what it looks.

    Attributes:
        opened: set to let it work.
        entered: set when it was asked to.
        seen: digests of images.
    """

    opened: threading.Event
    entered: threading.Event
    seen: set[str]

    def run(self, looks: Sequence[AnyLook], pause: Callable[[], object] = bool) -> list[Prediction]:
        self.entered.set()
        assert self.opened.wait(30)
        self.seen |= {look.scan.sha256 for look in looks if isinstance(look, Look)}
        return super().run(looks, pause)


def gate_of(folder: Path) -> Gate:
    """A closed one, of a tiny model with a filled bank."""
    engine = engine_of(folder)
    engine.__class__ = Gate
    assert isinstance(engine, Gate)
    engine.opened, engine.entered, engine.seen = threading.Event(), threading.Event(), set()
    return engine


def segment_together(
    engine: VessaEngine, requests: Sequence[SegmentationRequest]
) -> list[SegmentationResult]:
    """Answers to requests that are in the queue at the same time."""
    first_look = threading.Event()

    def run(looks: Sequence[AnyLook], pause: Callable[[], object]) -> list[Prediction]:
        first_look.wait(10)
        return engine.run(looks, pause)

    most = engine.settings.max_batch if engine.settings.fuse else 1
    scheduler = Scheduler(run, Bounds(99, 1 << 30), max_batch=most, max_wait=0)
    cases = [engine.open(request) for request in requests]
    futures = [scheduler.submit(segment(case), Ticket()) for case in cases]
    first_look.set()
    results = [
        engine.finish(request, case, *future.result(30))
        for request, case, future in zip(requests, cases, futures, strict=True)
    ]
    scheduler.drain(time.monotonic())
    return results


class RunningServer:
    """A server in a thread of its own, on free ports."""

    def __init__(
        self, engine: VessaEngine, settings: ServerSettings, others: Sequence[VessaEngine] = ()
    ) -> None:
        self.engine, self.others = engine, others
        self.settings = settings
        self.ports: Ports | None = None
        self.error: BaseException | None = None
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def grpc(self) -> str:
        assert self.ports is not None
        return f"127.0.0.1:{self.ports.grpc}"

    @property
    def http(self) -> str:
        assert self.ports is not None
        return f"http://127.0.0.1:{self.ports.http}"

    def start(self) -> None:
        self._thread.start()
        self._ready.wait(30)
        if self.error is not None:
            raise self.error

    def request_stop(self) -> None:
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)

    def stop(self) -> None:
        if self._thread.is_alive() and self._stop is not None:
            self.request_stop()
        self._thread.join(30)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as error:
            self.error = error
        finally:
            self._loop.close()
            self._ready.set()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()

        def on_ready(ports: Ports) -> None:
            self.ports = ports
            self._ready.set()

        await serve([self.engine, *self.others], self.settings, stop=self._stop, on_ready=on_ready)


@contextmanager
def running(
    engine: VessaEngine, *others: VessaEngine, **settings: object
) -> Iterator[RunningServer]:
    """A running server of an engine, and of those of other devices; it is stopped at the end."""
    values: dict[str, object] = {"grpc_port": 0, "http_port": 0, "encode_bank": False, **settings}
    server = RunningServer(engine, ServerSettings.model_validate(values), others)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as item:
        item.bind(("127.0.0.1", 0))
        return int(item.getsockname()[1])


@contextmanager
def redis_server(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A real Redis on ``port``."""
    binary = shutil.which("redis-server")
    assert binary is not None, "redis-server is missing: apt-get install redis-server"
    process = subprocess.Popen(
        [binary, "--port", str(port), "--save", "", "--dir", str(folder), "--bind", "127.0.0.1"],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if b"Ready to accept connections" in line:
                break
        yield process
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()


def torchrun(*command: object) -> None:
    """Run a command in two processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    result = subprocess.run(
        [*launcher, "--nproc-per-node", "2", *map(str, command)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
