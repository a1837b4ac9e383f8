"""What a worker knows of one partition: its counts, and from which offset they can be counted again."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from mlops_assets.clicks.features import RunningCounts
from mlops_assets.clicks.schema import SECONDS_PER_DAY, SECONDS_PER_HOUR, Clicks

OUTLIERS: Final = 99
"""So many clicks with a wrong clock do not move a partition's time on."""


class Partition:
    """The causal counts of one partition of the input.

    Its time is the (OUTLIERS + 1)-th latest click_time: click_time may be out of order, and a few clicks from a wrong
    clock must not make everyone else late. Counts whose window ended more than `lateness` seconds before that time are
    forgotten, so what is kept is bounded by the traffic of the current hour and day.

    `first` is the offset of the first click to answer; those before it were answered once and are only counted again.
    `position` is the offset to read next.
    """

    def __init__(self, position: int, first: int, lateness: int) -> None:
        self.counts = RunningCounts()
        self.position = position
        self.first = first
        self._lateness = lateness
        self._latest = np.zeros(OUTLIERS + 1, np.int64)
        self._day_begins: dict[int, int] = {}
        self._forgotten = 0

    @property
    def caught_up(self) -> bool:
        """Whether everything that was answered before has been counted again."""
        return self.position >= self.first

    @property
    def horizon(self) -> int:
        """Clicks before this time, in epoch seconds, are late: their windows may be forgotten."""
        return int(self._latest[0]) - self._lateness

    @property
    def replay_from(self) -> int:
        """The offset from which the counts at `position` can be rebuilt: where the oldest day that counts began."""
        day = self.horizon // SECONDS_PER_DAY
        return min((offset for d, offset in self._day_begins.items() if d >= day), default=self.position)

    def advance(self, clicks: Clicks, begin: int, end: int) -> None:
        """Moves on to offset `end`, after the clicks of the offsets from `begin` on were counted."""
        self.position = end
        if not len(clicks):
            return
        self._latest = _largest(np.concatenate((self._latest, clicks.time)))
        days = clicks.time // SECONDS_PER_DAY
        for day in [int(days[0])] if days.min() == days.max() else np.unique(days).tolist():
            # A batch's begin may be a little early; counting clicks of older days again does no harm.
            self._day_begins.setdefault(day, begin)
        hour = self.horizon // SECONDS_PER_HOUR
        if hour > self._forgotten:
            self._forgotten = hour
            self.counts.forget(self.horizon)
            oldest = self.horizon // SECONDS_PER_DAY
            self._day_begins = {d: offset for d, offset in self._day_begins.items() if d >= oldest}


def _largest(times: NDArray[np.int64]) -> NDArray[np.int64]:
    """The OUTLIERS + 1 largest values, the smallest of them first."""
    return np.partition(times, len(times) - OUTLIERS - 1)[-OUTLIERS - 1 :]
