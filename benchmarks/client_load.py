"""Clients of a server, alone and many at the same time, and how long they wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from heart import NAMES
from served import Images
from vessa_client import ClientOptions, SegmentationRequest, VessaClient, VessaError, VolumeRequest

# What is asked: masks of students for images that the server has seen, those again, new images.
KINDS = ("student masks", "nothing new", "cold")
Figures = dict[str, Any]


def milliseconds(call: Callable[[int], object], count: int) -> Figures:
    """Median and 95th percentile of calls, one after the other."""
    spent = []
    for index in range(count):
        start = time.perf_counter()
        call(index)
        spent.append(1000 * (time.perf_counter() - start))
    return percentiles(spent)


def percentiles(spent: Sequence[float]) -> Figures:
    """Median, 95th percentile and count of milliseconds."""
    return {
        "p50": round(float(np.percentile(spent, 50)), 2),
        "p95": round(float(np.percentile(spent, 95)), 2),
        "count": len(spent),
    }


def latencies(target: str, images: Images, count: int = 24) -> Figures:
    """One client of a server without images, one request after the other."""
    with VessaClient(target) as client:
        ask = SegmentationRequest(image=images.fresh(0), class_names=NAMES)

        def masked(index: int) -> object:
            return client.segment(
                replace(ask, image=images.fresh(index), student_mask=images.student(index))
            )

        first = milliseconds(lambda _: client.segment(ask), 1)
        cold = milliseconds(
            lambda i: client.segment(replace(ask, image=images.fresh(1 + i))), count
        )
        again = milliseconds(
            lambda i: client.segment(replace(ask, image=images.fresh(1 + i))), count
        )
        for index in range(count):
            masked(1 + index)  # windows of students may be new
        student = milliseconds(lambda i: masked(1 + i), count)
        volume, begun = images.volumes[0], time.perf_counter()
        spent = []
        for answer in client.segment_volume(VolumeRequest(slices=volume, class_names=NAMES)):
            if isinstance(answer, VessaError):
                raise answer
            spent.append(1000 * (time.perf_counter() - begun))
        return {
            "first_of_a_bank_ms": first,
            "cold_ms": cold,
            "nothing_new_ms": again,
            "student_mask_ms": student,
            "volume": {
                "slices": len(volume),
                "first_slice_ms": round(spent[0], 1),
                "all_ms": round(spent[-1], 1),
            },
            "info_ms": milliseconds(lambda _: client.info(), 100),
            "health_ms": milliseconds(lambda _: client.healthy(), 100),
        }


def clicks(client: VessaClient, images: Images) -> Callable[[int], None]:
    """Ask with a student's mask for an image that is known, in one of five places that are, too."""
    ask = SegmentationRequest(image=images.fresh(1), class_names=NAMES, priority="interactive")

    def click(index: int) -> None:
        client.segment(replace(ask, student_mask=np.roll(images.student(1), index % 5, 1)))

    client.segment(ask)
    for index in range(5):
        click(index)
    return click


def throughput(target: str, images: Images, kind: str, count: int, seconds: float) -> Figures:
    """Requests a second of ``count`` clients at the same time, of one of the kinds.

    ``client_cpu`` is how much of a core they take: near 1 it is they who are measured.
    """
    numbers = iter(range(10_000 * (1 + count), 10**9))
    lock = threading.Lock()
    stop = threading.Event()
    spent: list[float] = []

    def work(client: VessaClient) -> None:
        index = 0
        while not stop.is_set():
            index += 1
            seen = 1 + index % 16
            if kind == "cold":
                with lock:
                    seen = next(numbers)
            request = SegmentationRequest(
                image=images.fresh(seen),
                class_names=NAMES,
                student_mask=images.student(seen) if kind == "student masks" else None,
            )
            begun = time.perf_counter()
            client.segment(request)
            spent.append(1000 * (time.perf_counter() - begun))

    with VessaClient(target, ClientOptions(timeout=120)) as client:
        for seen in range(1, 17):
            client.segment(SegmentationRequest(image=images.fresh(seen), class_names=NAMES))
            masked = SegmentationRequest(
                image=images.fresh(seen), class_names=NAMES, student_mask=images.student(seen)
            )
            client.segment(masked)
        spent.clear()
        with ThreadPoolExecutor(count) as pool:
            begun, computed = time.perf_counter(), time.process_time()
            futures = [pool.submit(work, client) for _ in range(count)]
            time.sleep(seconds)
            stop.set()
            for future in futures:
                future.result()
            seconds = time.perf_counter() - begun
            computed = time.process_time() - computed
    return {
        "per_second": round(len(spent) / seconds, 1),
        **percentiles(spent),
        "client_cpu": round(computed / seconds, 2),
    }
