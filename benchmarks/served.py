"""A server process with shipped weights, and the images that benchmarks ask it about."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from heart import CLASSES
from vessa_client import AnyArray, UInt8Array, files
from vessa_server.bank import TemplateBank

LOG = "server.log"
START_SECONDS = 120.0
SAMPLE = Path(__file__).resolve().parent.parent / "examples" / "acdc-sample"


@dataclass(frozen=True)
class Images:
    """What is asked: volumes with their truth, as slices."""

    volumes: tuple[tuple[AnyArray, ...], ...]
    labels: tuple[tuple[UInt8Array, ...], ...]

    @staticmethod
    def of(folder: Path) -> Images:
        """Volumes of a folder that have label files."""
        volumes, labels = [], []
        for path in files.find_images(folder):
            truth = files.find_label(path)
            if truth is not None:
                image, marked = files.read(path), files.read(truth, labels=True)
                volumes.append(tuple(image.slices()))
                labels.append(tuple(m.astype(np.uint8) for m in marked.slices()))
        return Images(tuple(volumes), tuple(labels))

    def fresh(self, index: int) -> AnyArray:
        """An image that no server has seen: a slice, brighter by a little."""
        volume = self.volumes[index % len(self.volumes)]
        slice_ = volume[(index // len(self.volumes)) % len(volume)]
        return np.asarray(slice_, dtype=np.float32) + np.float32(1 + index)

    def student(self, index: int) -> UInt8Array:
        """The truth of :meth:`fresh`, somewhat beside its place."""
        labels = self.labels[index % len(self.labels)]
        truth = labels[(index // len(self.labels)) % len(labels)]
        return np.roll(truth, 3, axis=0)


class Server:
    """A server process, and what it takes."""

    def __init__(self, folder: Path, threads: int, settings: Mapping[str, object]) -> None:
        self.folder = folder
        options = ["--bank", str(folder / "bank"), "--cache", "none", "--grpc-port", "0"]
        options += ["--http-port", "0", "--log-format", "json", "--threads", str(threads)]
        given = {f"VESSA_{name.upper()}": str(value) for name, value in settings.items()}
        more = {"OMP_NUM_THREADS": str(threads), "VESSA_MAX_QUEUE": "256", **given}
        self._log = (folder / LOG).open("w")
        started = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vessa_server", "serve", *options],
            stdout=self._log,
            stderr=self._log,
            env={**os.environ, **more},
        )
        self.target = self._ready()
        self.seconds = time.perf_counter() - started

    def _ready(self) -> str:
        deadline = time.monotonic() + START_SECONDS
        while self.process.poll() is None:
            if time.monotonic() > deadline:
                self.process.kill()
            found = re.search(r'"grpc": ?"([^"]+)"', (self.folder / LOG).read_text())
            if found:
                return found[1]
            time.sleep(0.02)
        raise RuntimeError((self.folder / LOG).read_text())

    @property
    def resident(self) -> int:
        """Bytes of memory now."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self._log.close()


@contextmanager
def serving(data: Path, threads: int, **settings: object) -> Iterator[Server]:
    """A fresh server whose bank holds one annotated volume of ``data``.

    ``settings`` are those of the server, such as ``batch_mode="fused"``.
    """
    with tempfile.TemporaryDirectory() as scratch:
        fill_bank(TemplateBank(Path(scratch) / "bank"), data)
        server = Server(Path(scratch), threads, settings)
        try:
            yield server
        finally:
            server.stop()


def fill_bank(bank: TemplateBank, data: Path) -> None:
    """Add the annotated slices of the first volume to train on."""
    templates = Images.of(data / "train")
    for image, labels in zip(templates.volumes[0], templates.labels[0], strict=True):
        if labels.any():
            bank.add(image, labels, CLASSES)
