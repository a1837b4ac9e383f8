"""Is a new image's one pod worse than the old ones, over the same minutes? Judged from their Prometheus metrics."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families
from scipy.stats import fisher_exact

ENOUGH_CLICKS: Final = 2_000
"""Fewer answers than this say nothing about rates and distributions."""
MORE_FAILURES: Final = 0.01
"""A share of dead letters, or of aborted transactions, this far above the fleet's is worse ..."""
CHANCE: Final = 0.001
"""... unless Fisher's exact test finds it likelier than this among equals: one rebalance may abort one transaction."""
LATENCY_SECONDS: Final = 1.0
"""The service's promise for the 99th percentile: below it a latency is never called worse ..."""
LATENCY_RATIO: Final = 2.0
"""... and above it when it is this many times the fleet's."""
SCORE_RATIO: Final = 3.0
"""Calibrated models agree on how many installs the same traffic will bring; this many times more or less is broken."""
SCORE_BOUNDS: Final = (0.01, 0.1)
SCORE_PSI: Final = 0.25
"""The customary mark of a shift, on coarse buckets: in fine ones even two good models differ, trees above all."""

Histogram = dict[float, float]


@dataclass(frozen=True)
class Counts:
    """What one or more pods counted, since their start or (as a difference) in a window.

    `probability` has shape (3,), buckets between SCORE_BOUNDS; `score` is the sum of all probabilities.
    """

    clicks: float
    dead_letters: float
    transactions: float
    aborted: float
    latency: NDArray[np.float64]
    probability: NDArray[np.float64]
    score: float
    latency_bounds: tuple[float, ...]

    def __add__(self, other: Self) -> Self:
        return self._combined(other, 1)

    def __sub__(self, other: Self) -> Self:
        return self._combined(other, -1)

    def _combined(self, other: Self, sign: int) -> Self:
        return type(self)(
            self.clicks + sign * other.clicks,
            self.dead_letters + sign * other.dead_letters,
            self.transactions + sign * other.transactions,
            self.aborted + sign * other.aborted,
            self.latency + sign * other.latency,
            self.probability + sign * other.probability,
            self.score + sign * other.score,
            self.latency_bounds,
        )

    @classmethod
    def read(cls, text: str) -> Self:
        """From a pod's metrics. Raises ValueError if they are not Prometheus', or not of this service."""
        plain: dict[str, float] = {}
        histograms: dict[str, Histogram] = {"inference_latency_seconds": {}, "inference_probability": {}}
        aborted = 0.0
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                plain[sample.name] = plain.get(sample.name, 0.0) + sample.value
                if sample.name == "inference_transactions_total" and sample.labels["outcome"] != "committed":
                    aborted += sample.value
                if family.name in histograms and sample.name.endswith("_bucket"):
                    histograms[family.name][float(sample.labels["le"])] = sample.value
        latency, probability = histograms.values()
        if not latency or not probability:
            raise ValueError("these are not the metrics of an inference worker")
        return cls(
            plain.get("inference_clicks_total", 0.0),
            plain.get("inference_dead_letters_total", 0.0),
            plain.get("inference_transactions_total", 0.0),
            aborted,
            np.diff(list(latency.values()), prepend=0),
            coarse(probability),
            plain["inference_probability_sum"],
            tuple(latency),
        )

    @property
    def failed(self) -> dict[str, tuple[float, float]]:
        """By kind of failure: how often it happened, and how often not."""
        return {
            "dead letters": (self.dead_letters, self.clicks),
            "transactions aborted": (self.aborted, self.transactions - self.aborted),
        }

    @property
    def p99(self) -> float:
        """The 99th percentile of the latency in seconds: the upper bound of its bucket."""
        place = int(np.searchsorted(np.cumsum(self.latency), 0.99 * self.latency.sum()))
        return self.latency_bounds[place]


def coarse(cumulative: Histogram) -> NDArray[np.float64]:
    """Prometheus' cumulative buckets as plain ones, no finer than SCORE_BOUNDS. Shape (3,)."""
    kept = [count for bound, count in cumulative.items() if bound in (*SCORE_BOUNDS, float("inf"))]
    return np.diff(kept, prepend=0)


def total(counts: Iterable[Counts]) -> Counts | None:
    """The sum over pods, None of none."""
    pods = list(counts)
    return reduce(operator.add, pods) if pods else None


def psi(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Population stability index of two histograms with the same buckets: sum of (p - q) ln(p / q).

    Half a click is added to each bucket, so that an empty one has a logarithm.
    """
    p, q = (one + 0.5) / (one + 0.5).sum(), (other + 0.5) / (other + 0.5).sum()
    return float(((p - q) * np.log(p / q)).sum())


def why_worse(canary: Counts | None, fleet: Counts | None) -> str | None:
    """In which way the canary did worse than the fleet in the same window; None if nothing shows that it did.

    Failures are compared however few they are, since the test knows how little that says.
    """
    if canary is None or fleet is None:
        return None
    if fleet.clicks >= ENOUGH_CLICKS and canary.clicks + canary.dead_letters == 0:
        return f"it answered no click while the fleet answered {fleet.clicks:.0f}"
    for what in canary.failed:
        table = [canary.failed[what], fleet.failed[what]]
        new, old = (bad / max(1.0, bad + good) for bad, good in table)
        if new > old + MORE_FAILURES and fisher_exact(table, alternative="greater").pvalue < CHANCE:
            return f"{new:.2%} {what}, the fleet {old:.2%}"
    if why_unjudged(canary, fleet):
        return None
    if canary.p99 > max(LATENCY_SECONDS, LATENCY_RATIO * fleet.p99):
        return f"99th percentile of the latency up to {canary.p99:g} s, the fleet's {fleet.p99:g} s"
    new, old = (c.score / c.clicks for c in (canary, fleet))
    if not old / SCORE_RATIO <= new <= old * SCORE_RATIO:  # written so that NaN is worse
        return f"its mean score is {new:.3g}, the fleet's {old:.3g}"
    if (distance := psi(canary.probability, fleet.probability)) > SCORE_PSI:
        return f"its scores are distributed otherwise than the fleet's (PSI {distance:.2f}, at most {SCORE_PSI:g})"
    return None


def why_unjudged(canary: Counts | None, fleet: Counts | None) -> str | None:
    """Why nothing can be said about the canary's latency and scores; None if they can be judged. None: not readable."""
    if canary is None or fleet is None:
        return f"the {'fleet' if canary else 'canary'}'s metrics can't be read"
    if min(canary.clicks, fleet.clicks) >= ENOUGH_CLICKS:
        return None
    seen = f"it answered {canary.clicks:.0f} clicks and the fleet {fleet.clicks:.0f}"
    return f"{seen}, where {ENOUGH_CLICKS:,} of each are needed"
