"""A bounded sample of a training window: every install, and as many other clicks as fit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlops_assets.clicks.features import FEATURES

Batch = tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.uint32]]
"""Features (n, 12), label (n,) and ip (n,) of n clicks."""

_Drawn = tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float32], NDArray[np.uint32]]
_NO_CLICK = (np.empty((0, len(FEATURES)), np.float32), np.empty(0, np.uint32))


@dataclass(frozen=True, slots=True)
class Sample:
    """n clicks in the order they came: features (n, 12), columns as in FEATURES; label (n,), 1 for an install; ip (n,).

    `negative_rate` is the share of the window's negatives that was kept, relative to the share of its positives:
    multiplying the odds of a model trained on the sample by it gives the odds among all clicks of the window
    (Elkan 2001, "The foundations of cost-sensitive learning", theorem 2).
    """

    features: NDArray[np.float32]
    label: NDArray[np.uint8]
    ip: NDArray[np.uint32]
    negative_rate: float = 1.0

    def __len__(self) -> int:
        return len(self.label)

    @property
    def installs(self) -> int:
        """How many of the sampled clicks led to an install."""
        return int(np.count_nonzero(self.label))

    @property
    def weight(self) -> NDArray[np.float64]:
        """Shape (n,): how many clicks of the window each one stands for, in proportion."""
        return np.where(self.label == 1, 1.0, 1.0 / self.negative_rate)

    def take(self, index: NDArray[np.intp] | NDArray[np.bool_]) -> Sample:
        """The clicks at `index` (positions or a mask), with the same rate."""
        return Sample(self.features[index], self.label[index], self.ip[index], self.negative_rate)


class _Reservoir:
    """A uniform sample without replacement of at most `cap` of the clicks offered, in the order they came.

    Every click draws a number; those of the smallest numbers stay. So the sample depends on the clicks' order and the
    seed alone, not on where a batch ends.
    """

    def __init__(self, cap: int, seed: int) -> None:
        self.seen = 0
        self._cap = cap
        self._random = np.random.default_rng(seed)
        self._kept: list[_Drawn] = [(np.empty(0), np.empty(0, np.int64), *_NO_CLICK)]
        self._bound = 1.0

    def offer(self, positions: NDArray[np.int64], features: NDArray[np.float32], ip: NDArray[np.uint32]) -> None:
        draws = self._random.random(len(positions))
        self.seen += len(positions)
        kept = draws < self._bound
        self._kept.append((draws[kept], positions[kept], features[kept], ip[kept]))
        if sum(len(drawn[0]) for drawn in self._kept) > 2 * self._cap:
            self.clicks(self._cap)

    def clicks(self, limit: int) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.uint32]]:
        """The sample cut down to `limit` clicks: their positions in the window, features and ips."""
        draws, positions, features, ip = (np.concatenate(parts) for parts in zip(*self._kept, strict=True))
        if len(draws) > limit:
            kept = np.sort(np.argpartition(draws, limit)[:limit])
            self._bound = float(np.partition(draws, limit)[limit])
            draws, positions, features, ip = draws[kept], positions[kept], features[kept], ip[kept]
        self._kept = [(draws, positions, features, ip)]
        return positions, features, ip


def sample(batches: Iterable[Batch], cap: int = 1_000_000, seed: int = 0) -> Sample:
    """At most `cap` clicks of a window of any size, in memory for at most three times as many.

    `batches` yields (features (n, 12), label (n,), ip (n,)) in day order. All positives are kept while they fill at
    most half of the cap, and uniformly drawn negatives fill the rest. The result does not depend on where a batch ends.
    Raises ValueError for a batch whose shape is not that, or for a label other than 0 and 1.
    """
    if cap < 2:
        raise ValueError(f"a sample of {cap} clicks can't hold both classes: raise the cap on training rows")
    positives, negatives = _Reservoir(max(cap // 2, 1), seed), _Reservoir(cap, seed + 1)
    position = 0
    for features, label, ip in batches:
        if features.shape != (len(label), len(FEATURES)):
            raise ValueError(f"features of shape {features.shape} for {len(label)} labels; want (n, {len(FEATURES)})")
        if np.any(label > 1):
            raise ValueError(f"a label must be 0 or 1, found {label[label > 1][0]}")
        positions = np.arange(position, position + len(label))
        position += len(label)
        installed = label == 1
        positives.offer(positions[installed], features[installed], ip[installed])
        negatives.offer(positions[~installed], features[~installed], ip[~installed])
    kept_positives = positives.clicks(max(cap // 2, 1))
    installs = len(kept_positives[0])
    kept_negatives = negatives.clicks(cap - installs)
    others = len(kept_negatives[0])
    positions = np.concatenate([kept_positives[0], kept_negatives[0]])
    features = np.concatenate([kept_positives[1], kept_negatives[1]])
    ip = np.concatenate([kept_positives[2], kept_negatives[2]])
    order = np.argsort(positions)
    label = (order < installs).astype(np.uint8)
    rate = 1.0
    if positives.seen and negatives.seen:
        rate = (others / negatives.seen) / (installs / positives.seen)
    return Sample(features[order], label, ip[order], rate)
