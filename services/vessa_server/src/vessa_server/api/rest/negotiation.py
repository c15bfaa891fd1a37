"""Which of several media types an answer is sent in."""

from __future__ import annotations

import re
from collections.abc import Sequence

_QUALITY = re.compile(r"[01](\.[0-9]{0,3})?")


def negotiated(accept: str, offered: Sequence[str]) -> str:
    """The media type that ``Accept`` likes best; the first where it likes none or says nothing.

    The most specific range that names a type counts for it. Of types that are liked as much, the
    one that is named first is chosen, or the one that is offered first.
    """
    ranges = [_range(part) for part in accept.lower().split(",")]

    def liking(media_type: str) -> tuple[float, int]:
        family = media_type.partition("/")[0]
        for pattern in (media_type, f"{family}/*", "*/*"):
            for position, (found, quality) in enumerate(ranges):
                if found == pattern:
                    return quality, -position
        return 0.0, -len(ranges)

    best = max(offered, key=liking)
    return best if liking(best)[0] > 0 else offered[0]


def _range(part: str) -> tuple[str, float]:
    """A media range and its quality; one that makes no sense counts as 0."""
    kind, *parameters = (p.strip() for p in part.split(";"))
    quality = next((p[2:] for p in parameters if p.startswith("q=")), "1")
    return kind, float(quality) if _QUALITY.fullmatch(quality) else 0.0
