from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from mlops_assets.inference.metrics import Metrics
from mlops_assets.resources.canary import Counts, psi, total, why_unjudged, why_worse

RANDOM = np.random.default_rng(7)
SCORES = RANDOM.beta(0.3, 60, 20_000)
SECONDS = RANDOM.uniform(0.05, 0.4, 20_000)


def counts(
    clicks: int = 20_000,
    scores: np.ndarray = SCORES,
    seconds: np.ndarray = SECONDS,
    dead: int = 0,
    aborted: int = 0,
) -> Counts:
    """What a worker that served exactly this would show."""
    metrics = Metrics("v1", "lr")
    metrics.clicks.inc(clicks)
    metrics.probability.observe(scores[:clicks])
    metrics.latency.observe(seconds[:clicks])
    metrics.dead.labels("no number").inc(dead)
    metrics.transactions.labels("committed").inc(100)
    metrics.transactions.labels("aborted").inc(aborted)
    return Counts.read(metrics.text().decode())


def test_counts_are_what_the_worker_counted() -> None:
    found = counts(dead=7, aborted=3)
    assert (found.clicks, found.dead_letters, found.transactions, found.aborted) == (20_000, 7, 103, 3)
    assert found.probability.sum() == found.latency.sum() == 20_000
    quantile = float(np.quantile(SECONDS, 0.99))
    assert quantile <= found.p99 <= 0.5


def test_windows_are_differences_and_fleets_are_sums() -> None:
    window = counts(20_000) - counts(5_000)
    assert window.clicks == window.probability.sum() == 15_000
    both = total([window, counts(1_000)])
    assert both is not None
    assert both.clicks == 16_000
    assert total([]) is None


def test_metrics_of_something_else_are_refused() -> None:
    with pytest.raises(ValueError, match="not the metrics of an inference worker"):
        Counts.read("up 1\n")


def test_psi_of_a_worked_example() -> None:
    # (0.5 - 0.25) ln(0.5 / 0.25) + (0.5 - 0.75) ln(0.5 / 0.75); half a click a bucket is nothing among a million
    expected = 0.25 * np.log(2) - 0.25 * np.log(2 / 3)
    assert psi(np.array([5e5, 5e5]), np.array([2.5e5, 7.5e5])) == pytest.approx(expected, rel=1e-4)
    assert psi(np.array([10.0, 20.0]), np.array([10.0, 20.0])) == 0


@pytest.mark.parametrize(
    "canary",
    [
        counts(),
        counts(5_000, dead=20),
        counts(aborted=3),  # as rebalances do while pods come and go
        counts(scores=np.clip(SCORES * 1.5, 0, 1)),  # another calibrated model: somewhat other scores
        counts(scores=RANDOM.beta(0.25, 55, 20_000)),
        counts(10, scores=np.ones(10), seconds=np.full(10, 200.0)),  # too few clicks to say anything
        counts(seconds=SECONDS * 2),  # slower, but within the promise
    ],
)
def test_a_canary_that_does_as_well_passes(canary: Counts) -> None:
    assert why_worse(canary, counts()) is None


@pytest.mark.parametrize(
    ("canary", "reason"),
    [
        (lambda: counts(0), "answered no click while the fleet answered 20000"),
        (lambda: counts(5_000, dead=100), "1.96% dead letters, the fleet 0.00%"),
        (lambda: counts(aborted=20), "16.67% transactions aborted, the fleet 0.00%"),
        (lambda: counts(10_000, dead=10_000, aborted=20), "50.00% dead letters"),
        (lambda: counts(5_000, dead=30, aborted=20), "16.67% transactions aborted"),
        (lambda: counts(seconds=SECONDS * 6), "99th percentile of the latency up to 2.5 s, the fleet's 0.4 s"),
        (lambda: counts(scores=1 - SCORES), "its mean score is 0.99"),
        (lambda: counts(scores=np.zeros(20_000)), "its mean score is 0,"),
        (lambda: counts(scores=np.full(20_000, np.nan)), "its mean score is nan"),
        (lambda: counts(scores=np.full(20_000, 0.0125)), "scores are distributed otherwise"),
    ],
)
def test_a_canary_that_does_worse_is_found_out(canary: Callable[[], Counts], reason: str) -> None:
    assert reason in (why_worse(canary(), counts()) or "")


@pytest.mark.parametrize(
    ("canary", "fleet", "reason"),
    [
        (counts(0), counts(100), "answered 0 clicks and the fleet 100, where 2,000 of each are needed"),
        (counts(1_999), counts(20_000), "answered 1999 clicks and the fleet 20000"),
        (None, counts(), "the canary's metrics can't be read"),
        (counts(), None, "the fleet's metrics can't be read"),
    ],
)
def test_what_too_little_is_known_of_is_not_judged(canary: Counts | None, fleet: Counts | None, reason: str) -> None:
    assert why_worse(canary, fleet) is None
    assert reason in (why_unjudged(canary, fleet) or "")


def test_with_traffic_it_is_judged() -> None:
    assert why_unjudged(counts(2_000), counts(2_000)) is None


def test_failures_are_seen_in_little_traffic_too() -> None:
    assert "100.00% dead letters" in (why_worse(counts(0, dead=40), counts(120)) or "")
    assert why_worse(counts(0, dead=40), counts(0, dead=120)) is None  # it is the input's fault
