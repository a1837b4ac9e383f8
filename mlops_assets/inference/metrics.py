"""What Prometheus sees of a worker."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector


class ArrayHistogram(Collector):
    """A histogram that takes whole arrays: prometheus_client's own costs a microsecond a value."""

    def __init__(self, name: str, text: str, bounds: Sequence[float], registry: CollectorRegistry) -> None:
        self._name, self._text = name, text
        self._bounds = np.asarray(bounds)
        self._counts = np.zeros(len(bounds) + 1, np.int64)
        self._sum = 0.0
        registry.register(self)

    def observe(self, values: NDArray[np.floating], weight: int = 1) -> None:
        """Counts each value `weight` times."""
        place = np.searchsorted(self._bounds, values)
        self._counts += weight * np.bincount(place, minlength=len(self._counts))
        self._sum += weight * float(values.sum())

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """The one family, buckets cumulative as Prometheus has them."""
        names = [f"{bound:g}" for bound in self._bounds] + ["+Inf"]
        buckets = list(zip(names, np.cumsum(self._counts).astype(float).tolist(), strict=True))
        yield HistogramMetricFamily(self._name, self._text, buckets=buckets, sum_value=self._sum)


class Metrics:
    """One worker's metrics, in a registry of their own; `what` it is begins their names."""

    def __init__(self, version: str, algorithm: str, what: str = "inference") -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        model = Gauge(f"{what}_model", "The model in use; always 1", ["version", "algorithm"], registry=registry)
        model.labels(version, algorithm).set(1)
        self.clicks = Counter(f"{what}_clicks", "Clicks answered, in committed transactions", registry=registry)
        self.replayed = Counter(f"{what}_replayed", "Messages counted again to rebuild the counts", registry=registry)
        self.late = Counter(f"{what}_late_clicks", "Clicks too late for their hour", registry=registry)
        self.ahead = Counter(f"{what}_ahead_clicks", "Clicks hours ahead of their partition", registry=registry)
        self.misplaced = Counter(
            f"{what}_misplaced_clicks", "Of every 16th click: those whose key is not their ip", registry=registry
        )
        self.added = Counter(f"{what}_partitions_added", "To the input, while this worker ran", registry=registry)
        self.lost = Counter(
            f"{what}_lost_messages", "Deleted from the input before they were answered", registry=registry
        )
        self.short = Counter(f"{what}_short_replays", "Counts rebuilt without their beginning", registry=registry)
        text = "Of the counts, by what became of them: written, loaded, refused, failed"
        self.snapshots = Counter(f"{what}_snapshots", text, ["outcome"], registry=registry)
        for outcome in ("written", "loaded", "refused", "failed"):
            self.snapshots.labels(outcome)  # a series that begins at 0 shows its first event too
        self.snapshot_bytes = Counter(f"{what}_snapshot_bytes", "Written for snapshots", registry=registry)
        self.dead = Counter(f"{what}_dead_letters", "Messages that are no click", ["reason"], registry=registry)
        self.transactions = Counter(f"{what}_transactions", "Transactions", ["outcome"], registry=registry)
        self.rebalances = Counter(f"{what}_rebalances", "Changes of the assignment", ["event"], registry=registry)
        self.partitions = Gauge(f"{what}_partitions", "Partitions assigned", registry=registry)
        self.replaying = Gauge(f"{what}_partitions_replaying", "Partitions not yet caught up", registry=registry)
        self.keys = Gauge(f"{what}_count_keys", "Live keys of the running counts", registry=registry)
        self.backlog = Gauge(f"{what}_backlog_messages", "Messages of the input not yet read", registry=registry)
        self.ready = Gauge(f"{what}_ready", "Whether /ready says yes", registry=registry)
        seconds = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
        self.batch = Histogram(f"{what}_batch_seconds", "To score a batch", buckets=seconds, registry=registry)
        self.commit = Histogram(f"{what}_commit_seconds", "To commit", buckets=seconds, registry=registry)
        latencies = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1, 1.5, 2.5, 5, 10, 30, 60, 300)
        text = "From a click's timestamp in the input to its committed answer, in seconds"
        self.latency = ArrayHistogram(f"{what}_latency_seconds", text, latencies, registry)
        scores = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
        self.probability = ArrayHistogram(f"{what}_probability", "P(install) as answered", scores, registry)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)


def reason_label(reason: str) -> str:
    """A dead letter's reason as a label: without the numbers in it, so that labels stay few."""
    return re.sub(r"\d+", "N", reason)
