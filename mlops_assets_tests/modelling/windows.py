"""Training windows with a known law, for the tests of this package."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mlops_assets.clicks.features import FEATURES
from mlops_assets.modelling.sample import Sample

APP_LOG_ODDS = np.random.default_rng(5).normal(-4.0, 1.5, 40)


def true_probability(features: NDArray[np.float32]) -> NDArray[np.float64]:
    """P(install) by the law: the app's log-odds, less the logarithm of the ip's clicks."""
    log_odds = APP_LOG_ODDS[features[:, 0].astype(int)] - 0.8 * np.log(features[:, FEATURES.index("ip_count")])
    return np.asarray(1 / (1 + np.exp(-log_odds)))


def day(clicks: int, weekday: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """A day's features (n, 12) in time order, and labels drawn by `true_probability`."""
    random = np.random.default_rng(seed)
    features = np.empty((clicks, len(FEATURES)), dtype=np.float32)
    for column, ids in enumerate((40, 60, 30, 25)):
        features[:, column] = np.minimum(random.geometric(3 / ids, clicks) - 1, ids - 1)
    features[:, 4] = np.sort(random.integers(0, 24, clicks))
    features[:, 5] = weekday
    features[:, 6:] = random.geometric(0.3, (clicks, 6))
    return features, (random.random(clicks) < true_probability(features)).astype(np.uint8)


def ips(clicks: int) -> NDArray[np.uint32]:
    """An ip for each click, of two clicks on average."""
    return np.random.default_rng(clicks).integers(0, clicks // 2 + 1, clicks, dtype=np.uint32)


def window(clicks: int = 6_000, days: int = 2, seed: int = 1) -> Sample:
    """Whole days after one another, nothing sampled away."""
    parts = [day(clicks, weekday, seed + weekday) for weekday in range(days)]
    features, label = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Sample(features, label, ips(len(label)))
