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
from vessa_client._options import DEFAULT_TARGET, ClientOptions
from vessa_client._sync import VessaClient
from vessa_client._types import (
    AnyArray,
    BankListing,
    ClassDefinition,
    ClassResult,
    ImageReference,
    RetryPolicy,
    SegmentationRequest,
    SegmentationResult,
    Segmenter,
    ServerInfo,
    ServerLimits,
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
    "ClassDefinition",
    "ClassResult",
    "ClientOptions",
    "DeadlineError",
    "ImageReference",
    "InvalidRequestError",
    "NotFoundError",
    "OverloadedError",
    "ProtocolError",
    "RetryPolicy",
    "SegmentationRequest",
    "SegmentationResult",
    "Segmenter",
    "ServerInfo",
    "ServerLimits",
    "TemplateInfo",
    "TemplateUse",
    "UInt8Array",
    "UnavailableError",
    "VessaClient",
    "VessaError",
    "VolumeReference",
    "VolumeRequest",
]
