"""Label maps as run lengths, whole arrays at a time.

The wire's RUN_LENGTH encoding: for each class the lengths of alternating runs outside and
inside of it (the first outside, perhaps of length 0), each an unsigned LEB128 varint.

Axes: N pixels, K runs inside of a class.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from vessa_client._errors import InvalidRequestError
from vessa_client._types import UInt8Array

Int64Array = npt.NDArray[np.int64]

MAX_VARINT_BYTES: Final = 5
# Bytes of a payload that are decoded at a time: what decoding needs is bounded by it.
CHUNK_BYTES: Final = 1 << 16


def encode(flat_N: UInt8Array, num_classes: int, limit: int) -> list[bytes] | None:
    """A payload for each class, or None where they would surely take more than ``limit`` bytes."""
    changes_N = flat_N[1:] != flat_N[:-1]
    entered = np.count_nonzero(changes_N & (flat_N[1:] > 0)) + int(flat_N[0] > 0)
    if 2 * entered > limit:
        return None
    bounds = np.concatenate(([0], np.flatnonzero(changes_N) + 1, [flat_N.size]))
    values = flat_N[bounds[:-1]]
    order_K = np.argsort(values, kind="stable")
    order_K = order_K[np.count_nonzero(values == 0) :]
    starts_K, ends_K, classes_K = bounds[order_K], bounds[order_K + 1], values[order_K]
    runs = np.bincount(classes_K, minlength=num_classes + 1)[1:]
    last = np.cumsum(runs)
    # Where the last run of each class ends, and how much is left after it.
    reached = np.where(runs > 0, np.concatenate(([0], ends_K))[last], 0)
    rest = flat_N.size - reached
    before_K = np.concatenate(([0], ends_K[:-1]))
    before_K[np.concatenate(([0], last[:-1]))[runs > 0]] = 0
    lengths = np.stack((starts_K - before_K, ends_K - starts_K), axis=1).reshape(-1)
    lengths = np.insert(lengths, 2 * last[rest > 0], rest[rest > 0])
    data, sizes = _to_varints(lengths)
    counts = 2 * runs + (rest > 0)
    stops = np.concatenate(([0], np.cumsum(sizes)))[np.cumsum(counts)].tolist()
    starts = [0, *stops][:-1]
    return [data[start:stop].tobytes() for start, stop in zip(starts, stops, strict=True)]


def decode(payloads: Sequence[bytes], size: int, field: str) -> UInt8Array:
    """Labels of ``size`` pixels, (N,), from a payload for each class.

    Raises:
        InvalidRequestError: a payload is too long, is cut off or does not cover ``size`` pixels,
            or classes overlap.
    """
    longest = MAX_VARINT_BYTES * (size + 1)
    for payload in payloads:
        if len(payload) > longest:
            raise _error(field, f"{len(payload)} bytes, expected at most {longest}")
    few = sum(map(len, payloads)) <= size // 16
    return _paint_few(payloads, size, field) if few else _paint_many(payloads, size, field)


def _paint_few(payloads: Sequence[bytes], size: int, field: str) -> UInt8Array:
    """By sorting the runs of all classes: fast, and takes memory for each run."""
    parts = [
        (starts, ends, np.full(len(starts), label, np.uint8))
        for label, payload in enumerate(payloads, start=1)
        for starts, ends in _inside(payload, size, field)
    ]
    if not parts:
        return np.zeros(size, np.uint8)
    starts_K, ends_K, labels_K = (np.concatenate(column) for column in zip(*parts, strict=True))
    order_K = np.argsort(starts_K, kind="stable")
    starts_K, ends_K, labels_K = starts_K[order_K], ends_K[order_K], labels_K[order_K]
    bounds = np.concatenate(([0], np.stack((starts_K, ends_K), axis=1).reshape(-1), [size]))
    lengths = np.diff(bounds)
    if lengths.min() < 0:
        raise _error(field, "classes overlap, expected each pixel in one at most")
    values = np.zeros(len(lengths), np.uint8)
    values[1::2] = labels_K
    return np.repeat(values, lengths)


def _paint_many(payloads: Sequence[bytes], size: int, field: str) -> UInt8Array:
    """By adding up differences between neighbours: takes memory for the pixels alone."""
    flat_N = np.zeros(size, np.uint8)
    covered = 0
    for label, payload in enumerate(payloads, start=1):
        for starts, ends in _inside(payload, size, field):
            flat_N[starts] += np.uint8(label)
            flat_N[ends[ends < size]] -= np.uint8(label)
            covered += int((ends - starts).sum())
    np.add.accumulate(flat_N, out=flat_N, dtype=np.uint8)
    if np.count_nonzero(flat_N) != covered:
        raise _error(field, "classes overlap, expected each pixel in one at most")
    return flat_N


def _inside(payload: bytes, size: int, field: str) -> Iterator[tuple[Int64Array, Int64Array]]:
    """Starts and ends of the runs inside of a class that are not empty, some at a time."""
    position, count = 0, 0
    for lengths in _from_varints(payload, field):
        ends = position + np.cumsum(lengths)
        inside = slice(1 - count % 2, None, 2)
        count += len(lengths)
        position = int(ends[-1])
        if position > size or count > size + 1:
            raise _error(field, f"covers {position} in {count} runs, expected {size}")
        filled = lengths[inside] > 0
        stops = ends[inside][filled]
        yield stops - lengths[inside][filled], stops
    if position != size:
        raise _error(field, f"covers {position}, expected {size}")


def _from_varints(payload: bytes, field: str) -> Iterator[Int64Array]:
    """Numbers of a payload, some at a time."""
    data, start = np.frombuffer(payload, np.uint8), 0
    while start < len(data):
        chunk = data[start : start + CHUNK_BYTES]
        last = np.flatnonzero(chunk < 0x80)
        first = np.concatenate(([0], last[:-1] + 1))[: len(last)]
        widths = last - first + 1
        if len(last) == 0 or (start + len(chunk) == len(data) and last[-1] + 1 < len(chunk)):
            raise _error(field, "ends in the middle of a run length")
        if widths.max() > MAX_VARINT_BYTES:
            raise _error(field, f"a run length is longer than {MAX_VARINT_BYTES} bytes")
        numbers = np.zeros(len(last), np.int64)
        for index in range(int(widths.max())):
            held = widths > index
            bits = (chunk[first[held] + index] & 0x7F).astype(np.int64)
            numbers[held] |= bits << (7 * index)
        yield numbers
        start += int(last[-1]) + 1


def _to_varints(numbers: Int64Array) -> tuple[UInt8Array, Int64Array]:
    """Bytes of all numbers, and how many each takes."""
    sizes = np.ones(len(numbers), np.int64)
    for index in range(1, MAX_VARINT_BYTES):
        sizes += numbers >= 1 << (7 * index)
    first = np.cumsum(sizes) - sizes
    data = np.empty(int(sizes.sum()), np.uint8)
    for index in range(int(sizes.max(initial=0))):
        held = sizes > index
        bits = (numbers[held] >> (7 * index)) & 0x7F
        more = np.where(sizes[held] > index + 1, 0x80, 0)
        data[first[held] + index] = bits | more
    return data, sizes


def _error(field: str, message: str) -> InvalidRequestError:
    return InvalidRequestError(f"{field}.payload: {message}", field=f"{field}.payload")
