"""How to reach the server."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import grpc

from vessa_client._types import RetryPolicy

DEFAULT_TARGET = "localhost:50051"


@dataclass(frozen=True, kw_only=True)
class ClientOptions:
    """Options of both clients.

    Attributes:
        timeout: seconds for one call, retries included.
        retry: back-off where the server is away or its queue is full.
        token: bearer token, where the server asks for one; printable ASCII.
        root_certificates: PEM file; TLS is used where it is given.
        bank: name of the bank where a call names none; empty for the server's default.
    """

    timeout: float = 60.0
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    token: str | None = None
    root_certificates: Path | None = None
    bank: str = ""

    def __post_init__(self) -> None:
        if self.timeout <= 0:
            raise ValueError(f"timeout {self.timeout}: expected more than 0 seconds")
        for position, character in enumerate(self.token or "", start=1):
            if not " " <= character <= "~":
                raise ValueError(
                    f"token: character {position} is not printable ASCII, which gRPC metadata "
                    "must be; expected letters, digits and punctuation"
                )

    def metadata(self) -> list[tuple[str, str]]:
        """Metadata of every call."""
        return [("authorization", f"Bearer {self.token}")] if self.token else []

    def credentials(self) -> grpc.ChannelCredentials | None:
        """TLS credentials, or None for plain text."""
        if self.root_certificates is None:
            return None
        return grpc.ssl_channel_credentials(self.root_certificates.read_bytes())
