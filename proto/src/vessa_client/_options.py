"""How to reach the server."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import grpc

DEFAULT_TARGET = "localhost:50051"


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """Back-off where the server is away: waits initial, initial*multiplier, ..., with jitter.

    Where the server says how long to wait (its queue is full), that is waited, and up to
    ``jitter`` of it more.
    """

    attempts: int = 6
    initial_seconds: float = 0.2
    multiplier: float = 2.0
    max_seconds: float = 5.0
    jitter: float = field(default=0.2)

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts {self.attempts}: expected at least 1")

    def delay(self, attempt: int, uniform: float) -> float:
        """Seconds to wait after failed ``attempt`` (from 0); ``uniform`` in [0, 1)."""
        base = min(self.max_seconds, self.initial_seconds * self.multiplier**attempt)
        return base * (1 + self.jitter * (2 * uniform - 1))


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
        import grpc

        if self.root_certificates is None:
            return None
        return grpc.ssl_channel_credentials(self.root_certificates.read_bytes())
