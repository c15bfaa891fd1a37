"""Client of the VESSA segmentation server, free of torch.

Errors, as a tree::

    VessaError
    ├── InvalidRequestError
    ├── NotFoundError
    ├── OverloadedError
    ├── DeadlineError
    ├── UnavailableError
    ├── AuthenticationError
    └── ProtocolError
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vessa_client._async import AsyncVessaClient
    from vessa_client._errors import (
        AuthenticationError,
        DeadlineError,
        InvalidRequestError,
        NotFoundError,
        OverloadedError,
        ProtocolError,
        UnavailableError,
        VessaError,
    )
    from vessa_client._options import DEFAULT_TARGET, ClientOptions, RetryPolicy
    from vessa_client._sync import VessaClient
    from vessa_client._types import (
        AnyArray,
        BankListing,
        Box,
        ClassDefinition,
        ClassResult,
        ImageReference,
        Point,
        Region,
        SegmentationRequest,
        SegmentationResult,
        Segmenter,
        ServerInfo,
        ServerLimits,
        TemplateContent,
        TemplateInfo,
        TemplateUse,
        UInt8Array,
        VolumeReference,
        VolumeRequest,
    )

__all__ = [
    "DEFAULT_TARGET",
    "AnyArray",
    "AsyncVessaClient",
    "AuthenticationError",
    "BankListing",
    "Box",
    "ClassDefinition",
    "ClassResult",
    "ClientOptions",
    "DeadlineError",
    "ImageReference",
    "InvalidRequestError",
    "NotFoundError",
    "OverloadedError",
    "Point",
    "ProtocolError",
    "Region",
    "RetryPolicy",
    "SegmentationRequest",
    "SegmentationResult",
    "Segmenter",
    "ServerInfo",
    "ServerLimits",
    "TemplateContent",
    "TemplateInfo",
    "TemplateUse",
    "UInt8Array",
    "UnavailableError",
    "VessaClient",
    "VessaError",
    "VolumeReference",
    "VolumeRequest",
]

if not TYPE_CHECKING:  # so that type checkers know the names above and no others
    # Where the names are defined; what takes long to import comes last.
    _MODULES = ("_errors", "_options", "_types", "_sync", "_async")

    def __getattr__(name: str) -> Any:
        """Import a name when it is first used, so that commands start fast."""
        if name in __all__:
            for module_name in _MODULES:
                module = importlib.import_module(f"{__name__}.{module_name}")
                if hasattr(module, name):
                    globals()[name] = found = getattr(module, name)
                    return found
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return [*globals(), *__all__]
