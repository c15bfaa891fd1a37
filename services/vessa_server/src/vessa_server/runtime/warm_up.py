"""Every step once on a made-up image, so that the first request finds a device that is ready."""

from __future__ import annotations

import numpy as np

from vessa_server.runtime.clock import StageClock
from vessa_server.runtime.protocol import Conditioning, Decoding, Runtime


def warm_up(runtime: Runtime) -> dict[str, float]:
    """Run all steps without the VLM; returns milliseconds of each.

    Raises:
        RuntimeUnavailableError: the device has no room for one image.
        ValueError: what the model gives is not finite: its weights do not fit the dtype.
    """
    side, clock = runtime.info.canvas, StageClock()
    canvas = np.linspace(0, 1, side * side, dtype=np.float32).reshape(1, side, side)
    mask_HW = np.zeros((side, side), np.bool_)
    mask_HW[side // 4 : side // 2, side // 4 : side // 2] = True
    image = runtime.encode([canvas], clock)[0]
    template = runtime.describe([image], [mask_HW], clock)[0]
    runtime.similarity([image], runtime.index(template.embedding_2D[None, None]), clock)
    conditioned = runtime.condition([Conditioning(image, [[template.handle]])], clock)[0]
    prompt_CHW = np.full((1, side // 2, side // 2), 0.5, np.float32)
    for prompt in (None, prompt_CHW):
        decoded = runtime.decode([Decoding(image, conditioned, prompt)], clock)[0]
        if not np.isfinite(decoded.logits_CHW).all():
            raise ValueError(
                f"dtype: {runtime.info.dtype} gives masks that are not finite on "
                f"{runtime.info.device}; set VESSA_DTYPE=float32"
            )
    return clock.milliseconds()
