"""A whole scan in, the answers of its slices out, for transports of files."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from vessa_client import SegmentationResult, VessaError, VolumeRequest
from vessa_client.files import ImageFile
from vessa_client.windows import AUTOMATIC
from vessa_server.api import volumes
from vessa_server.api.room import Share
from vessa_server.api.service import Caller, Service
from vessa_server.api.volumes import IncomingVolume, Known


@dataclass(frozen=True)
class OpenedScan:
    """A scan, decoded: its file for the geometry, its slices, and which are to be answered."""

    file: ImageFile
    incoming: IncomingVolume
    indices: list[int]


def open_scan(
    service: Service, share: Share, file: ImageFile, request: VolumeRequest
) -> OpenedScan:
    """Take in all slices of a scan; CT has a window, whether or not the request says one.

    Raises:
        VessaError: the request is wrong, or the scan is too large.
    """
    if request.window is None:
        templates = service.engine.banks.get(request.bank).snapshot().templates
        request = replace(request, window=AUTOMATIC.of(file, templates).window)
    incoming = IncomingVolume(request, file.depth, None, service, share)
    for index in range(file.depth):
        incoming.add(index, partial(file.slice, index), partial(_known, request, index))
    return OpenedScan(file, incoming, incoming.close(set()))


def _known(request: VolumeRequest, index: int, _shape: tuple[int, int]) -> Known:
    return Known(points=request.points.get(index, ()), boxes=request.boxes.get(index, ()))


async def segment_scan(
    service: Service, opened: Callable[[Share], OpenedScan], caller: Caller
) -> tuple[ImageFile, list[SegmentationResult]]:
    """Segment a scan.

    Args:
        service: that does it.
        opened: reads the scan; runs in the pool.
        caller: who asks.

    Returns:
        The scan, and the answers of its slices in order.

    Raises:
        VessaError: the scan or the request is wrong, or a slice is, whose index it names.
    """
    with Share(service.volumes) as share:
        scan = await service.work(partial(opened, share))
        results: dict[int, SegmentationResult] = {}
        answers = volumes.answers(
            service, scan.incoming, scan.indices, lambda result: result, caller
        )
        async with contextlib.aclosing(answers):
            async for index, answer in answers:
                if isinstance(answer, VessaError):
                    answer.message = f"slice {index}: {answer.message}"
                    raise answer
                results[index] = answer
        return scan.file, [results[index] for index in scan.indices]
