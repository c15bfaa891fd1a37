"""Errors of the client, as a tree.

::

    VessaError
    ├── InvalidRequestError     the request is wrong; `field` says where
    ├── NotFoundError           image reference, class or template is not there
    ├── OverloadedError         queue full; `retry_after` seconds
    ├── DeadlineError           no answer in time
    ├── UnavailableError        the server cannot be reached, starts or stops
    ├── AuthenticationError     token missing or wrong
    └── ProtocolError           the answer does not follow the contract
"""

from __future__ import annotations


class VessaError(Exception):
    """Base of all errors.

    Attributes:
        field: the request's field that is wrong.
        request_id: the request.
        retry_after: seconds after which to try again; 0 where the server does not say.
        slice_index: the slice of a volume; None where the error is of no single one.
    """

    code = "UNKNOWN"

    def __init__(
        self,
        message: str,
        *,
        field: str = "",
        request_id: str = "",
        retry_after: float = 0.0,
        slice_index: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.request_id = request_id
        self.retry_after = retry_after
        self.slice_index = slice_index


class InvalidRequestError(VessaError):
    """The request is wrong; :attr:`field` says where, the message what was expected."""

    code = "INVALID_ARGUMENT"


class NotFoundError(VessaError):
    """An image reference, a class or a template is not there."""

    code = "NOT_FOUND"


class OverloadedError(VessaError):
    """The server's queue is full; try again after :attr:`retry_after` seconds."""

    code = "RESOURCE_EXHAUSTED"


class DeadlineError(VessaError):
    """No answer came in time."""

    code = "DEADLINE_EXCEEDED"


class UnavailableError(VessaError):
    """The server cannot be reached, is starting or is stopping."""

    code = "UNAVAILABLE"


class AuthenticationError(VessaError):
    """The token is missing or wrong."""

    code = "UNAUTHENTICATED"


class ProtocolError(VessaError):
    """The answer does not follow the wire contract."""

    code = "INTERNAL"


BY_CODE: dict[str, type[VessaError]] = {
    error.code: error
    for error in (
        InvalidRequestError,
        NotFoundError,
        OverloadedError,
        DeadlineError,
        UnavailableError,
        AuthenticationError,
        ProtocolError,
    )
}
