"""What a worker knows of one partition: its counts, and from which offset they can be counted again.

The rule for wrong clocks is in clicks/clock.py. What it takes here: a partition learns that a day or an hour has begun
or is over only when its clock tells, some 256 clicks apart. So clicks of a day that is not open wait: they are counted
at once, in windows of their own time, for they may be the first of the next day. When the clock has told twice, the
bulk has spoken: either the day is open and they count, from the first one on that is not ahead of it; or their clocks
are wrong, and they are taken out again. All this depends on the clicks only, not on how they are divided into batches,
so whoever begins at `replay_from` comes to the same counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from mlops_assets.clicks.clock import Clock, Now
from mlops_assets.clicks.features import RunningCounts
from mlops_assets.clicks.schema import SECONDS_PER_DAY, SECONDS_PER_HOUR, Clicks

OTHER_DAYS: Final = 16
"""Of so many days that are not open clicks may wait for more than a span."""

AHEAD: Final = 3 * SECONDS_PER_HOUR
"""So far behind the start of the oldest open hour a click is flagged as ahead: it is so by more than an hour."""


@dataclass(frozen=True, slots=True)
class Counted:
    """The counts of n clicks, shape (n, 6), and which of them came too late for their hour, or are hours ahead."""

    counts: NDArray[np.uint32]
    late: NDArray[np.bool_]
    ahead: NDArray[np.bool_]


class Partition:
    """The causal counts of one partition of the input.

    `first` is the offset of the first click to answer; those before it were answered once and are only counted again.
    `position` is the offset to read next. Memory holds the windows of the open days that are not over, and what waits.
    """

    def __init__(self, position: int, first: int) -> None:
        self.position = position
        self.first = first
        self.kept = position  # what lies before it has not to be counted again, once its snapshot is written
        self._counts = RunningCounts()
        self._clock = Clock()
        self._now: Now | None = None
        self._told = (position, position)  # behind which offsets the last two times were told
        self._begins: dict[int, int] = {}  # of each open day: from where it can be counted again
        self._waiting: tuple[list[Clicks], list[Clicks]] = ([], [])  # since the time before the last, since the last

    def save(self) -> dict[str, NDArray[Any]]:
        """All that is known at `position`, as arrays of its own, for `load`."""
        waiting = {f"waiting_{age}": _rows(clicks) for age, clicks in enumerate(self._waiting)}
        begins = np.array([*self._begins.items()], np.int64).reshape(-1, 2)
        offsets = {"offsets": np.array([self.position, *self._told], np.int64), "begins": begins}
        return self._counts.save() | self._clock.save() | offsets | waiting

    @classmethod
    def load(cls, saved: Mapping[str, NDArray[Any]], first: int) -> Self:
        """The partition as it was saved, which goes on at its `position` then; answers begin at `first`."""
        position, *told = saved["offsets"].tolist()
        partition = cls(position, first)
        partition._counts = RunningCounts.load(saved)
        partition._clock = Clock.load(saved)
        partition._now = partition._clock.now
        partition._told = (told[0], told[1])
        partition._begins = dict(saved["begins"].tolist())
        partition._waiting = (_clicks(saved["waiting_0"]), _clicks(saved["waiting_1"]))
        return partition

    def __len__(self) -> int:
        """How many keys are live."""
        return len(self._counts)

    @property
    def nbytes(self) -> int:
        """The memory of the live keys, in bytes."""
        return self._counts.nbytes

    @property
    def caught_up(self) -> bool:
        """Whether everything that was answered before has been counted again."""
        return self.position >= self.first

    @property
    def replay_from(self) -> int:
        """The offset from which the counts at `position` can be rebuilt: where the oldest open day began."""
        return min(self._begins.values(), default=self._told[0])

    def count(self, clicks: Clicks, offset: Callable[[int], int] = int) -> Counted:
        """Counts the next clicks; `offset` gives that of the click at an index."""
        parts, begin, ticks = [], 0, self._clock.tick(clicks)
        plain = self._plain(clicks) and all(now in (None, self._now) for _, now in ticks)
        elsewhere = np.zeros(len(clicks), np.bool_) if plain else self._elsewhere(clicks)
        for end, now in ticks:
            if now not in (None, self._now) or any(self._waiting) or elsewhere[begin:end].any():
                parts.append(self._count(clicks.take(slice(begin, end))))
                begin = end
                if now:
                    self._tell(now)
                    elsewhere = self._elsewhere(clicks)
                else:
                    self._wait_on()
            if now:
                self._told = (self._told[1], offset(end - 1) + 1)
        if plain:
            return Counted(self._counts.count(clicks), elsewhere, elsewhere)
        parts.append(self._count(clicks.take(slice(begin, None))))
        return Counted(*(np.concatenate([getattr(part, name) for part in parts]) for name in Counted.__slots__))

    def _plain(self, clicks: Clicks) -> bool:
        """Whether the clicks are neither early nor late, as most are; it saves a fifth of the time to look."""
        if self._now is None or any(self._waiting) or not len(clicks):
            return False
        begin = max(self._now.over, self._now.days.start * SECONDS_PER_DAY)
        end = min(self._now.over + AHEAD, self._now.days.stop * SECONDS_PER_DAY)
        return bool(begin <= clicks.time.min() and clicks.time.max() < end)

    def _elsewhere(self, clicks: Clicks) -> NDArray[np.bool_]:
        """Which clicks are of a day that is not open."""
        days = self._now.days if self._now else range(0)
        return (clicks.time < days.start * SECONDS_PER_DAY) | (clicks.time >= days.stop * SECONDS_PER_DAY)

    def _count(self, clicks: Clicks) -> Counted:
        """Counts the clicks up to the end of a span, or some of them."""
        over, elsewhere = self._now.over if self._now else 0, self._elsewhere(clicks)
        late = (clicks.time < over) & ~elsewhere
        # After a silence the first clicks are ahead of the clock too, and not wrong: this is for the metric only.
        ahead = clicks.time >= over + AHEAD if self._now else np.zeros(len(clicks), np.bool_)
        if elsewhere.any():
            self._waiting[1].append(clicks.take(elsewhere).bare())
        return Counted(self._counts.count(clicks, late), late | (clicks.time < over), ahead)

    def _tell(self, now: Now) -> None:
        """Takes in what the clock tells: opens and closes days, and ends the waiting of clicks."""
        before, self._now = self._now, now
        stayed = [day for day in now.days if before and day in before.days]
        self._counts.forget(now.over, stayed)
        self._begins = {day: self._begins.get(day, self._told[0]) for day in now.days}
        recent = sum(map(len, self._waiting[1]))
        waited = [*self._waiting[0], *self._waiting[1]]
        self._waiting = ([], [])
        if not waited:
            return
        clicks = Clicks.concat(waited)
        elsewhere = self._elsewhere(clicks)
        opened = ~elsewhere
        if before:  # a day that opens does so with its first click that is not ahead of it
            on_time = np.flatnonzero(opened & (clicks.time <= now.time))
            opened[: on_time[0] if len(on_time) else len(opened)] = False
        elsewhere[: len(clicks) - recent] = False  # these have waited twice
        stay, wait = clicks.take(opened | elsewhere), clicks.take(elsewhere)
        self._counts.count(stay, (stay.time < now.over) & ~self._elsewhere(stay))
        if len(wait):
            self._waiting[0].append(wait)

    def _wait_on(self) -> None:
        """Lets clicks wait of no more than the latest OTHER_DAYS days, where the clock is told seldom."""
        waited = [Clicks.concat(part) for part in self._waiting if part]
        days = np.concatenate([clicks.time for clicks in waited])[::-1] // SECONDS_PER_DAY
        found, behind = np.unique(days, return_index=True)
        if len(found) <= OTHER_DAYS:
            return
        kept = found[np.argsort(behind)[:OTHER_DAYS]].tolist()
        self._counts.forget(0, [*kept, *(self._now.days if self._now else ())])
        for part in self._waiting:
            part[:] = [clicks.take(np.isin(clicks.time // SECONDS_PER_DAY, kept)) for clicks in part]
            part[:] = [Clicks.concat(part)] if part else []


def _rows(clicks: list[Clicks]) -> NDArray[np.int64]:
    """Bare clicks as rows, shape (n, 6)."""
    rows = [np.empty((0, 6), np.int64)]
    for each in clicks:
        columns: list[NDArray[Any]] = [each.ip, each.app, each.device, each.os, each.channel, each.time]
        rows.append(np.column_stack([column.astype(np.int64) for column in columns]))
    return np.concatenate(rows)


def _clicks(rows: NDArray[np.int64]) -> list[Clicks]:
    """The clicks of `_rows`, as one batch or none."""
    ip, *ids, time = rows.T
    app, device, system, channel = (column.astype(np.uint16) for column in ids)
    return [Clicks(ip.astype(np.uint32), app, device, system, channel, time.copy())] if len(rows) else []
