"""Prometheus metrics of one server."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from vessa_client import SegmentationResult
from vessa_server.engine import VessaEngine

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SHARES = tuple(tenth / 10 for tenth in range(11))


class Metrics:
    """Counters, histograms and gauges in a registry of their own."""

    def __init__(self, engines: Sequence[VessaEngine]) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "vessa_requests",
            "Requests by transport, method and status code.",
            ["transport", "method", "code"],
            registry=self.registry,
        )
        self.latency = Histogram(
            "vessa_request_seconds",
            "Time from request to answer.",
            ["transport", "method"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.stage = Histogram(
            "vessa_stage_seconds",
            "Time of each stage of the model.",
            ["stage"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.predicted_iou = Histogram(
            "vessa_predicted_iou",
            "Predicted IoU of each class that was asked for; 0 where it was not found.",
            buckets=SHARES,
            registry=self.registry,
        )
        self.batch_size = Histogram(
            "vessa_batch_size",
            "Looks that ran together.",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self.registry,
        )
        self.queue_depth = Gauge(
            "vessa_queue_depth", "Requests that wait or run.", registry=self.registry
        )
        self.queue_bytes = Gauge(
            "vessa_queue_bytes", "Bytes of those requests.", registry=self.registry
        )
        self.volume_bytes = Gauge(
            "vessa_volume_bytes", "Bytes of volumes that are answered.", registry=self.registry
        )
        self.image_features = Counter(
            "vessa_image_features",
            "Requests whose image was encoded before (hit) or not (miss).",
            ["state"],
            registry=self.registry,
        )
        self.registry.register(_EngineCollector(engines))

    def observe_queue(self, requests: int, nbytes: int) -> None:
        """How much is waiting or running."""
        self.queue_depth.set(requests)
        self.queue_bytes.set(nbytes)

    def observe_batch(self, looks: int) -> None:
        """How many looks ran together."""
        self.batch_size.observe(looks)

    def observe_result(self, result: SegmentationResult) -> None:
        """Count one answered request."""
        self.image_features.labels("hit" if result.image_features_cached else "miss").inc()
        for found in result.classes:
            self.predicted_iou.observe(found.predicted_iou)
        for name, milliseconds in result.stage_ms.items():
            self.stage.labels(name).observe(milliseconds / 1000)

    def expose(self) -> bytes:
        """Text format of Prometheus."""
        return generate_latest(self.registry)


class _EngineCollector(Collector):
    """Reads what the engine counts itself, at the time of the scrape."""

    def __init__(self, engines: Sequence[VessaEngine]) -> None:
        self.engines = engines
        self.engine = engines[0]

    def collect(self) -> Iterable[Metric]:
        cache = CounterMetricFamily(
            "vessa_cache_events",
            "Cache of template features: hit, miss, corrupt, error.",
            labels=["backend", "event"],
        )
        for event in ("hit", "miss", "corrupt", "error"):
            cache.add_metric([self.engine.cache.backend, event], self.engine.cache.counts[event])
        yield cache
        yield GaugeMetricFamily(
            "vessa_image_feature_bytes",
            "Bytes of image features in memory.",
            value=sum(engine.memory.bytes for engine in self.engines),
        )
        yield GaugeMetricFamily(
            "vessa_image_store_bytes",
            "Bytes of images that can be named by reference.",
            value=self.engine.images.bytes,
        )
        device = GaugeMetricFamily(
            "vessa_device_bytes",
            "Bytes that the model holds on its device.",
            labels=["runtime", "device", "dtype"],
        )
        held = collections.Counter[tuple[str, str, str]]()
        for engine in self.engines:
            info = engine.runtime.info
            held[info.runtime, info.device, info.dtype] += info.memory
        for labels, nbytes in held.items():
            device.add_metric(labels, nbytes)
        yield device
        templates = GaugeMetricFamily(
            "vessa_templates", "Templates of each bank that was asked for.", labels=["bank"]
        )
        for name, bank in self.engine.banks.opened().items():
            templates.add_metric([name or "default"], len(bank.last_good.templates))
        yield templates
