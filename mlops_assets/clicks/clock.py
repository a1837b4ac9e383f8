"""The time of a stream of clicks, which its bulk tells: clocks that are wrong neither move it nor hold it back.

The one rule for wrong clocks, in batch and service alike. `click_time` is what a producer's clock said.

- A click counts in the day and in the hour that its own click_time names, and every key holds its ip: whatever a clock
  says, no other ip's counts change.
- An hour is over once the stream's time is LATENESS past its end. A click of an hour that is over comes too late: it
  still counts in its ip's day, but in no hour, and its hourly counts are 1.
- A click of another day than the stream's counts in neither. (Yesterday is over once midnight is LATENESS past.)
- A click that is ahead within the day counts exactly, as its hour will be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from mlops_assets.clicks.schema import SECONDS_PER_DAY, SECONDS_PER_HOUR, Clicks

LATENESS: Final = 600
"""Seconds by which a click may always be late and still be counted exactly."""

SPAN: Final = 256
VOTERS: Final = 64
PATIENCE: Final = 65_536
"""Clicks after which fewer than VOTERS ips decide: what is kept must not grow for ever where few ips click."""

_NEVER: Final = -(2**62)


@dataclass(frozen=True, slots=True)
class Now:
    """What a stream's time, in epoch seconds, says of a click's hour and day."""

    time: int

    @property
    def over(self) -> int:
        """Hours that ended by this time, in epoch seconds, are over; a multiple of an hour."""
        return (self.time - LATENESS) // SECONDS_PER_HOUR * SECONDS_PER_HOUR

    @property
    def days(self) -> range:
        """The days that are open: the stream's and, for LATENESS after midnight, the one before. Days since 1970."""
        return range((self.time - LATENESS) // SECONDS_PER_DAY, self.time // SECONDS_PER_DAY + 1)

    @property
    def same(self) -> tuple[int, int]:
        """From when to before when `over` and `days` are what they are."""
        begin = max(self.over + LATENESS, self.time // SECONDS_PER_DAY * SECONDS_PER_DAY)
        end = min(self.over + LATENESS + SECONDS_PER_HOUR, (self.time // SECONDS_PER_DAY + 1) * SECONDS_PER_DAY)
        return begin, end


class Tick(NamedTuple):
    """A span of clicks ends behind the first `end` clicks of a batch, and the stream's time is told, or not yet."""

    end: int
    now: Now | None


class Clock:
    """The time of a stream of clicks: the median of what the ips of its latest clicks say, an ip having one vote.

    It is told every SPAN clicks, if at least VOTERS ips were among those since it was told last, else some spans later.
    So a burst of a single ip, however long, does not move it, and neither do many ips with wrong clocks, as long as
    more are right. It depends on the clicks since it was told last only: a clock that begins where another tells goes
    on as that one. It may go back: whoever sends older clicks again is right too.
    """

    def __init__(self) -> None:
        self._now: Now | None = None
        self._ips, self._times = np.empty(0, np.uint32), np.empty(0, np.int64)  # of the span that is not yet complete
        self._votes: dict[int, int] = {}  # what each ip said last
        self._clicks = 0

    def tick(self, clicks: Clicks) -> list[Tick]:
        """Takes the next clicks; the spans that end among them do not depend on how they are divided into batches."""
        known = len(self._ips)
        ips, times = np.concatenate((self._ips, clicks.ip)), np.concatenate((self._times, clicks.time))
        spans = len(ips) // SPAN
        self._ips, self._times = ips[spans * SPAN :].copy(), times[spans * SPAN :].copy()
        if not spans:
            return []
        said, when = ips[: spans * SPAN].reshape(spans, SPAN), times[: spans * SPAN].reshape(spans, SPAN)
        told = self._tell(said, when)
        return [Tick((number + 1) * SPAN - known, now) for number, now in enumerate(told)]

    def save(self) -> dict[str, NDArray[Any]]:
        """All that the clock knows, as arrays, for `load`."""
        time = self._now.time if self._now else _NEVER
        votes = np.array([*self._votes.items()], np.int64).reshape(-1, 2)
        return {"ips": self._ips, "times": self._times, "votes": votes, "clock": np.array([time, self._clicks])}

    @classmethod
    def load(cls, saved: Mapping[str, NDArray[Any]]) -> Self:
        """A clock that goes on where the one that was saved stopped."""
        clock = cls()
        clock._ips, clock._times = saved["ips"], saved["times"]
        clock._votes = dict(saved["votes"].tolist())
        time, clock._clicks = saved["clock"].tolist()
        clock._now = None if time == _NEVER else Now(time)
        return clock

    @property
    def now(self) -> Now | None:
        """What it told last."""
        return self._now

    def _tell(self, ips: NDArray[np.uint32], times: NDArray[np.int64]) -> list[Now | None]:
        """The time behind each span, shape (spans, SPAN), or None where it is not told."""
        ordered = np.sort(ips, axis=1)
        voters = (1 + np.count_nonzero(ordered[:, 1:] != ordered[:, :-1], axis=1)).tolist()
        begin, end = self._now.same if self._now else (0, 0)
        calm = bool(begin <= times.min() and times.max() < end)
        told: list[Now | None] = []
        for number in range(len(ips)):
            self._clicks += SPAN
            if self._votes or voters[number] < VOTERS or not calm:
                self._votes |= zip(ips[number].tolist(), times[number].tolist(), strict=True)
                if len(self._votes) < VOTERS and self._clicks < PATIENCE:
                    told.append(None)
                    continue
                now = Now(sorted(self._votes.values())[(len(self._votes) - 1) // 2])
                if self._now is None or self._now.same != now.same:
                    self._now = now
            # In the calm the median, whatever it is, says the same as before.
            told.append(self._now)
            self._votes.clear()
            self._clicks = 0
        return told
