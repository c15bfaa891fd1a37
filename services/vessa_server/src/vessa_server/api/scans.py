"""A whole scan in, the answers of its slices out, for transports of files."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial

from vessa_client import SegmentationResult, VessaError, VolumeRequest
from vessa_client.files import ImageFile
from vessa_server.api import volumes
from vessa_server.api.room import Share
from vessa_server.api.service import Caller, Service
from vessa_server.api.volumes import IncomingVolume


async def segment_scan(
    service: Service, opened: Callable[[], tuple[ImageFile, VolumeRequest]], caller: Caller
) -> tuple[ImageFile, list[SegmentationResult]]:
    """Segment a scan.

    Args:
        service: that does it.
        opened: reads the scan, and says what is asked of its slices; runs in the pool.
        caller: who asks.

    Returns:
        The scan, and the answers of its slices in order.

    Raises:
        VessaError: the scan or the request is wrong, or a slice is, whose index it names.
    """
    with Share(service.volumes) as share:

        def come_in() -> tuple[ImageFile, IncomingVolume, list[int]]:
            file, request = opened()
            incoming = IncomingVolume(request, file.depth, None, service, share)
            for index in range(file.depth):
                incoming.add(index, partial(file.slice, index))
            return file, incoming, incoming.close(set())

        file, incoming, indices = await service.work(come_in)
        results: dict[int, SegmentationResult] = {}
        answers = volumes.answers(service, incoming, indices, lambda result: result, caller)
        async with contextlib.aclosing(answers):
            async for index, answer in answers:
                if isinstance(answer, VessaError):
                    answer.message = f"slice {index}: {answer.message}"
                    raise answer
                results[index] = answer
        return file, [results[index] for index in indices]
