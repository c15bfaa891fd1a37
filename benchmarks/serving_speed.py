"""How fast a server with shipped weights answers, over gRPC, on the machine that this runs on.

A real server in a process of its own; images are ACDC's (any folder of NIFTI volumes with labels
beside them will do, such as the shipped sample). Latencies are medians, with the 95th percentile.

    python benchmarks/serving_speed.py                      # some minutes
    python benchmarks/serving_speed.py --parts latency load
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.table import Table

from acdc import RESULTS, circumstances
from client_load import KINDS, Figures, clicks, latencies, milliseconds, percentiles, throughput
from heart import NAMES
from served import SAMPLE, Images, Server, serving
from vessa_client import (
    ClassDefinition,
    SegmentationRequest,
    VessaClient,
    files,
)
from vessa_client.console import console
from vessa_server.api.settings import SHIPPED_WEIGHTS
from vessa_server.model import checkpoint
from vessa_server.model.presets import preset
from vessa_server.policy.retrieval import choose
from vessa_server.runtime.clock import StageClock
from vessa_server.runtime.protocol import Floats, Handle
from vessa_server.runtime.torch_runtime import TorchRuntime

CLIENTS = (1, 8, 64)
LOAD_SECONDS, MIXED_SECONDS = 8.0, 15.0
MANY_REQUESTS = 20_000
TEMPLATE_COUNTS = (10, 100, 1000, 10_000, 100_000)
SIDES, CLASS_COUNTS = (128, 256, 512, 1024, 2048, 4096), (1, 2, 4, 8, 16, 32)


def served(arguments: argparse.Namespace) -> AbstractContextManager[Server]:
    """A fresh server, as the arguments say."""
    return serving(arguments.data, arguments.threads)


def start(arguments: argparse.Namespace, images: Images) -> Figures:
    """Until the server is ready, and until the client's help is shown."""
    with served(arguments) as server:
        ready = server.seconds
    vessa = str(Path(sys.executable).parent / "vessa")
    shown = milliseconds(
        lambda _: subprocess.run([vessa, "--help"], check=True, capture_output=True), 5
    )
    return {"ready_seconds": round(ready, 2), "help_ms": shown}


def latency(arguments: argparse.Namespace, images: Images) -> Figures:
    """One client, one request after the other."""
    with served(arguments) as server:
        return latencies(server.target, images)


def load(arguments: argparse.Namespace, images: Images) -> Figures:
    """Requests a second by clients at the same time: new images, and masks of seen ones."""
    found: Figures = {}
    with served(arguments) as server:
        for kind in KINDS:
            for count in CLIENTS:
                found[f"{kind}, {count} clients"] = throughput(
                    server.target, images, kind, count, LOAD_SECONDS
                )
    return found


def mixed(arguments: argparse.Namespace, images: Images) -> Figures:
    """Somebody who clicks, alone and while somebody else labels a folder."""
    found: Figures = {}
    with served(arguments) as server, VessaClient(server.target) as client:
        click = clicks(client, images)
        found["alone"] = milliseconds(click, 100)
        stop = threading.Event()
        numbers = iter(range(1_000_000, 10**9))

        def bulk() -> Iterator[SegmentationRequest]:
            while not stop.is_set():
                yield SegmentationRequest(image=images.fresh(next(numbers)), class_names=NAMES)

        answered: list[object] = []
        with VessaClient(server.target) as other:
            labelling = threading.Thread(
                target=lambda: answered.extend(other.segment_stream(bulk(), window=8))
            )
            labelling.start()
            while not answered:
                time.sleep(0.05)
            begun, before = time.perf_counter(), len(answered)
            spent: list[float] = []
            while time.perf_counter() - begun < MIXED_SECONDS:
                clicked = time.perf_counter()
                click(len(spent))
                spent.append(1000 * (time.perf_counter() - clicked))
                time.sleep(0.1)
            found["beside a bulk labeller"] = percentiles(spent)
            seconds = time.perf_counter() - begun
            found["bulk_per_second"] = round((len(answered) - before) / seconds, 2)
            stop.set()
            labelling.join()
    return found


def growth(arguments: argparse.Namespace, images: Images) -> Figures:
    """Larger images and more classes."""
    found: Figures = {"image": {}, "classes": {}}
    with served(arguments) as server, VessaClient(server.target) as client:
        slice_ = np.asarray(images.volumes[0][4], dtype=np.float32)
        ask = SegmentationRequest(image=slice_, class_names=NAMES)
        client.segment(ask)
        for side in SIDES:
            rows = np.arange(side) * slice_.shape[0] // side
            columns = np.arange(side) * slice_.shape[1] // side
            image = np.clip(slice_[rows][:, columns] / slice_.max() * 255, 0, 255).astype(np.uint8)
            ask = replace(ask, image=image)
            cold = milliseconds(partial(_ask, client, ask), 1)
            again = milliseconds(partial(_ask, client, ask), 5)
            mask = (image > image.mean()).astype(np.uint8)
            masked = replace(ask, student_mask=mask)
            client.segment(masked)
            student = milliseconds(partial(_ask, client, masked), 5)
            found["image"][side] = {
                "cold_ms": cold["p50"],
                "nothing_new_ms": again["p50"],
                "student_mask_ms": student["p50"],
                "resident_mib": server.resident >> 20,
            }
    for count in CLASS_COUNTS:
        found["classes"][count] = _classes(arguments, images, count)
    return found


def _ask(client: VessaClient, request: SegmentationRequest, _: int) -> None:
    client.segment(request)


def _classes(arguments: argparse.Namespace, images: Images, count: int) -> Figures:
    """As many classes, squares of a picture, in a bank of their own."""
    with served(arguments) as server, VessaClient(server.target) as client:
        labels = np.zeros((256, 256), np.uint8)
        for value in range(count):
            row, column = divmod(value, 6)
            labels[40 * row + 8 : 40 * row + 32, 40 * column + 8 : 40 * column + 32] = value + 1
        shade = (labels.astype(np.float32) * 7 + 20).astype(np.uint8)
        classes = [ClassDefinition(name=f"square {value}") for value in range(count)]
        client.add_template(shade, labels, classes, bank="squares")
        ask = SegmentationRequest(image=shade + 1, bank="squares")
        client.segment(ask)
        cold = milliseconds(lambda i: client.segment(replace(ask, image=shade + 2 + i)), 3)
        masked = replace(ask, image=shade + 2, student_mask=labels)
        client.segment(masked)
        return {
            "cold_ms": cold["p50"],
            "student_mask_ms": milliseconds(lambda _: client.segment(masked), 5)["p50"],
            "resident_mib": server.resident >> 20,
        }


def retrieval(arguments: argparse.Namespace, images: Images) -> Figures:
    """Larger banks, in this process: random embeddings, which take as long as true ones."""
    torch.set_num_threads(arguments.threads)
    model = checkpoint.load(preset("nano"), SHIPPED_WEIGHTS / "nano")
    runtime, clock = TorchRuntime(model, "0" * 64), StageClock()
    canvas = np.zeros((1, runtime.info.canvas, runtime.info.canvas), np.float32)
    image = runtime.encode([canvas], clock)[0]
    found: Figures = {}
    for count in TEMPLATE_COUNTS:
        rng = np.random.default_rng(count)
        shape = (len(NAMES), count, 2, runtime.info.feature_dim)
        embeddings = rng.standard_normal(shape, dtype=np.float32)
        index = runtime.index(embeddings)
        scores = runtime.similarity([image], index, clock)[0]
        compared = milliseconds(partial(_compare, runtime, image, index), 3)
        chosen = milliseconds(partial(_choose, scores), 3)
        found[str(count)] = {
            "similarity_ms": compared["p50"],
            "choice_ms": chosen["p50"],
            "index_mib": round(embeddings.nbytes / 2**20, 2),
        }
    return {"templates": found}


def _compare(runtime: TorchRuntime, image: Handle, index: Handle, _: int) -> None:
    runtime.similarity([image], index, StageClock())


def _choose(scores_CK: Floats, _: int) -> None:
    choose(scores_CK, np.ones(scores_CK.shape, np.bool_), 7)


def memory(arguments: argparse.Namespace, images: Images) -> Figures:
    """Resident memory over many requests."""
    with served(arguments) as server, VessaClient(server.target) as client:
        requests = [
            SegmentationRequest(image=images.fresh(index), class_names=NAMES)
            for index in range(1, 33)
        ]

        def repeat(total: int) -> None:
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(lambda i: client.segment(requests[i % 32]), range(total)))

        repeat(1000)
        before = server.resident
        repeat(MANY_REQUESTS)
        return {
            "requests": MANY_REQUESTS,
            "before_mib": before >> 20,
            "after_mib": server.resident >> 20,
        }


MEASURES: dict[str, Callable[[argparse.Namespace, Images], Figures]] = {
    "start": start,
    "latency": latency,
    "load": load,
    "mixed": mixed,
    "growth": growth,
    "retrieval": retrieval,
    "memory": memory,
}


def main() -> None:
    """Measure, show and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=SAMPLE, help="folder with train/ and val/")
    parser.add_argument("--threads", type=int, default=2, help="of the server")
    parser.add_argument("--parts", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--results", type=Path, default=RESULTS / "serving_speed.json")
    arguments = parser.parse_args()
    images = Images.of(arguments.data / "val")
    known = json.loads(arguments.results.read_text()) if arguments.results.is_file() else {}
    found: Figures = known.get("parts", {})
    for part in arguments.parts:
        console.print(part, style="bold")
        measure = MEASURES[part]
        facts = circumstances(threads=arguments.threads)
        found[part] = {"circumstances": facts, **measure(arguments, images)}
        show(part, found[part])
        files.write_text(arguments.results, json.dumps({"parts": found}, indent=1) + "\n")
    console.print(f"Results {arguments.results}", highlight=False)


def show(part: str, figures: Figures) -> None:
    """Print one part."""
    table = Table(part, "")
    for name, value in figures.items():
        if name != "circumstances":
            table.add_row(name, json.dumps(value))
    console.print(table)


if __name__ == "__main__":
    main()
