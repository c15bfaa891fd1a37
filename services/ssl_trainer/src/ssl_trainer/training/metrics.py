"""What a training logs, for Prometheus."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Gauge, start_http_server


class Metrics:
    """The last value of each scalar, at http://HOST:PORT/metrics.

    Args:
        port: on all addresses, since who reads it is another container.

    Raises:
        OSError: the port is in use.
    """

    def __init__(self, port: int) -> None:
        self.registry = registry = CollectorRegistry()
        self.step = Gauge("vessa_training_step", "Updates done.", registry=registry)
        self.scalars = Gauge("vessa_training", "Scalars of the log.", ["name"], registry=registry)
        try:
            self.server, _ = start_http_server(port, registry=registry)
        except OSError as error:
            raise OSError(f"--metrics-port {port}: {error.strerror}") from error

    def observe(self, step: int, scalars: Mapping[str, float]) -> None:
        """Keep the values of an update."""
        self.step.set(step)
        for name, value in scalars.items():
            self.scalars.labels(name).set(value)

    def close(self) -> None:
        """Free the port."""
        self.server.shutdown()
        self.server.server_close()
