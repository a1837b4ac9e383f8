"""Counting identical clicks of a day in bounded memory."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from mlops_assets.clicks.schema import IDS, Clicks

CAPACITY: Final = 1 << 22


class Duplicates:
    """How many clicks equal an earlier one in every column, wherever in the day it was.

    Exact up to CAPACITY clicks. Beyond, adaptive sampling by hash (Flajolet, "On adaptive sampling", Computing 43,
    1990): only every 2nd, 4th, ... hash value is kept, all of its clicks or none, and the count is scaled.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._bits = 0
        self._hashes: list[NDArray[np.uint64]] = []
        self._kept = 0

    def add(self, clicks: Clicks) -> None:
        """Adds the next clicks."""
        hashes = np.zeros(len(clicks), dtype=np.uint64)
        for column in (*(getattr(clicks, name) for name in IDS), clicks.time, clicks.label):
            hashes = _mix(hashes ^ np.asarray(column).astype(np.uint64))
        self._keep(hashes)
        while self._kept > self._capacity:
            self._bits += 1
            kept, self._hashes, self._kept = self._hashes, [], 0
            for part in kept:
                self._keep(part)

    def count(self) -> int:
        """The number of clicks that are not the first of their kind."""
        distinct = len(np.unique(np.concatenate(self._hashes))) if self._hashes else 0
        return (self._kept - distinct) << self._bits

    def _keep(self, hashes: NDArray[np.uint64]) -> None:
        part = hashes[hashes & np.uint64((1 << self._bits) - 1) == 0]
        self._hashes.append(part)
        self._kept += len(part)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): each bit depends on all."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)
