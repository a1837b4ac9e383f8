"""A bounded sample of a training window: every install, and as many other clicks as fit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlops_assets.clicks.features import FEATURES


@dataclass(frozen=True, slots=True)
class Sample:
    """n clicks in the order they came: features (n, 12), columns as in FEATURES, and label (n,), 1 for an install.

    `negative_rate` is the share of the window's negatives that was kept, relative to the share of its positives:
    multiplying the odds of a model trained on the sample by it gives the odds among all clicks of the window
    (Elkan 2001, "The foundations of cost-sensitive learning", theorem 2).
    """

    features: NDArray[np.float32]
    label: NDArray[np.uint8]
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
        return Sample(self.features[index], self.label[index], self.negative_rate)


class _Reservoir:
    """A uniform sample without replacement of at most `cap` of the rows offered, in the order they came.

    Every row draws a number; the rows of the smallest numbers stay. So the sample depends on the rows' order and the
    seed alone, not on where a batch ends.
    """

    def __init__(self, cap: int, seed: int) -> None:
        self.seen = 0
        self._cap = cap
        self._random = np.random.default_rng(seed)
        self._draws: list[NDArray[np.float64]] = []
        self._rows: list[NDArray[np.float32]] = []
        self._positions: list[NDArray[np.int64]] = []
        self._bound = 1.0

    def offer(self, rows: NDArray[np.float32], positions: NDArray[np.int64]) -> None:
        draws = self._random.random(len(rows))
        self.seen += len(rows)
        kept = draws < self._bound
        self._draws.append(draws[kept])
        self._rows.append(rows[kept])
        self._positions.append(positions[kept])
        if sum(map(len, self._draws)) > 2 * self._cap:
            self.rows(self._cap)

    def rows(self, limit: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The sample cut down to `limit` rows, and their positions in the window."""
        draws = np.concatenate(self._draws) if self._draws else np.empty(0)
        rows = np.concatenate(self._rows) if self._rows else np.empty((0, len(FEATURES)), dtype=np.float32)
        positions = np.concatenate(self._positions) if self._positions else np.empty(0, dtype=np.int64)
        if len(draws) > limit:
            kept = np.sort(np.argpartition(draws, limit)[:limit])
            self._bound = float(np.partition(draws, limit)[limit])
            draws, rows, positions = draws[kept], rows[kept], positions[kept]
        self._draws, self._rows, self._positions = [draws], [rows], [positions]
        return rows, positions


def sample(
    batches: Iterable[tuple[NDArray[np.float32], NDArray[np.uint8]]], cap: int = 1_000_000, seed: int = 0
) -> Sample:
    """At most `cap` clicks of a window of any size, in memory for at most three times as many.

    `batches` yields (features (n, 12), label (n,)) in day order. All positives are kept while they fill at most half
    of the cap, and uniformly drawn negatives fill the rest. The result does not depend on where a batch ends.
    Raises ValueError for a batch whose shape is not that, or for a label other than 0 and 1.
    """
    if cap < 2:
        raise ValueError(f"a sample of {cap} clicks can't hold both classes: raise the cap on training rows")
    positives, negatives = _Reservoir(max(cap // 2, 1), seed), _Reservoir(cap, seed + 1)
    position = 0
    for features, label in batches:
        if features.shape != (len(label), len(FEATURES)):
            raise ValueError(f"features of shape {features.shape} for {len(label)} labels; want (n, {len(FEATURES)})")
        if np.any(label > 1):
            raise ValueError(f"a label must be 0 or 1, found {label[label > 1][0]}")
        positions = np.arange(position, position + len(label))
        position += len(label)
        installed = label == 1
        positives.offer(features[installed], positions[installed])
        negatives.offer(features[~installed], positions[~installed])
    positive_rows, positive_positions = positives.rows(max(cap // 2, 1))
    negative_rows, negative_positions = negatives.rows(cap - len(positive_rows))
    order = np.argsort(np.concatenate([positive_positions, negative_positions]))
    label = np.concatenate([np.ones(len(positive_rows), np.uint8), np.zeros(len(negative_rows), np.uint8)])
    rate = 1.0
    if positives.seen and negatives.seen:
        rate = (len(negative_rows) / negatives.seen) / (len(positive_rows) / positives.seen)
    return Sample(np.concatenate([positive_rows, negative_rows])[order], label[order], rate)
