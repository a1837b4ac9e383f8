"""The features of a click: one definition, called by the Spark job and by the pod."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from mlops_assets.clicks.schema import SECONDS_PER_DAY, SECONDS_PER_HOUR, Clicks

COUNTS: Final = ("ip_count", "ip_day_hour", "ip_hour_channel", "ip_hour_os", "ip_hour_app", "ip_hour_device")
FEATURES: Final = ("app", "device", "os", "channel", "hour", "day_of_week", *COUNTS)
"""Names and order of a model's inputs."""

_OTHER: Final = (None, None, "channel", "os", "app", "device")  # what a count's key holds beside the ip
_BY_DAY: Final = (0,)
_BY_HOUR: Final = (1, 2, 3, 4, 5)
_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)  # 2**64 divided by the golden ratio
_REST: Final = np.uint64(13)  # bits of a slot that are not its key
_LOW_BITS: Final = 12
_LOW: Final = np.uint64(2**12 - 1)
_MORE: Final = np.uint64(2**12)
_COUNT: Final = _LOW | _MORE
_CHUNK: Final = 2**13  # a key (kind 3 bits, ip 32, other 16) leaves 13 of 64 bits for the click's position in its chunk


class RunningCounts:
    """The causal counts: how many clicks with the same key came up to and including this one, in arrival order.

    `ip_count` counts within the UTC day, the others within the UTC hour. One instance sees the clicks of an ip in
    arrival order, in batches of any size: the counts do not depend on where a batch ends.

    Every window (a day or an hour) has a hash table of its own, so forgetting one frees it at once. A key's 64 bits
    hold all of its parts: counts are exact.
    """

    def __init__(self) -> None:
        self._tables: dict[tuple[int, int], _Table] = {}

    def __len__(self) -> int:
        """How many keys are live."""
        return sum(len(table) for table in self._tables.values())

    @property
    def nbytes(self) -> int:
        """The memory of the live keys, in bytes."""
        return sum(table.nbytes for table in self._tables.values())

    def count(self, clicks: Clicks, late: NDArray[np.bool_] | None = None) -> NDArray[np.uint32]:
        """Counts of the next n clicks, shape (n, 6), columns as in COUNTS.

        Those that are `late`, shape (n,), count in their day but in no hour, and their hourly counts are 1.
        """
        result = np.ones((len(clicks), len(COUNTS)), dtype=np.uint32)
        if late is not None and not late.any():
            late = None
        if (
            late is None
            and len(clicks)
            and clicks.time.min() // SECONDS_PER_HOUR == clicks.time.max() // SECONDS_PER_HOUR
        ):
            # Most batches lie within an hour: then one sort does for all counts.
            hour = int(clicks.time[0]) // SECONDS_PER_HOUR
            day = hour * SECONDS_PER_HOUR // SECONDS_PER_DAY
            both = [self._table(SECONDS_PER_DAY, day), self._table(SECONDS_PER_HOUR, hour)]
            for low in range(0, len(clicks), _CHUNK):
                part = slice(low, low + _CHUNK)
                result[part] = _count(both, clicks, part, (*_BY_DAY, *_BY_HOUR))
            return result
        for seconds, kinds in ((SECONDS_PER_DAY, _BY_DAY), (SECONDS_PER_HOUR, _BY_HOUR)):
            windows = clicks.time // seconds
            order = None
            if late is not None and kinds == _BY_HOUR:
                order = np.flatnonzero(~late)
                windows = windows[order]
            if (windows[1:] < windows[:-1]).any():  # clicks that are late by a window: bring each window's together
                sort = np.argsort(windows, kind="stable")
                order, windows = sort if order is None else order[sort], windows[sort]
            edges = [0, *(np.flatnonzero(np.diff(windows)) + 1).tolist(), len(windows)]
            for start, stop in pairwise(edges if len(windows) else ()):
                for low in range(start, stop, _CHUNK):
                    part = slice(low, min(low + _CHUNK, stop))
                    rows = part if order is None else order[part]
                    table = self._table(seconds, int(windows[low]))
                    result[rows, kinds[0] : kinds[-1] + 1] = _count([table], clicks, rows, kinds)
        return result

    def save(self) -> dict[str, NDArray[Any]]:
        """All counts as arrays, for `load`: of each window its length in seconds, its number and how many keys it has,
        shape (w, 3); and the keys and counts of all windows, one after another."""
        windows = [(*window, len(table)) for window, table in self._tables.items()]
        items = [table.items() for table in self._tables.values()]
        keys, counts = zip(*items, strict=True) if items else ((), ())
        return {
            "windows": np.array(windows, np.int64).reshape(-1, 3),
            "keys": np.concatenate((np.empty(0, np.uint64), *keys)),
            "counts": np.concatenate((np.empty(0, np.uint32), *counts)),
        }

    @classmethod
    def load(cls, saved: Mapping[str, NDArray[Any]]) -> Self:
        """Counts that go on where those that were saved stopped."""
        counts, end = cls(), 0
        for seconds, window, size in saved["windows"].tolist():
            begin, end = end, end + size
            table = counts._tables[seconds, window] = _Table(size)
            for low in range(begin, end, 8 * _CHUNK):  # not at once: that takes ten times a key's memory
                part = slice(low, min(low + 8 * _CHUNK, end))
                table.add(saved["keys"][part], saved["counts"][part].astype(np.int64))
        return counts

    def _table(self, seconds: int, window: int) -> _Table:
        """A window's table. A new one has room for as many keys as the window before had, so that it seldom grows."""
        if (table := self._tables.get((seconds, window))) is None:
            table = self._tables[seconds, window] = _Table(len(self._tables.get((seconds, window - 1), ())))
        return table

    def forget(self, before: int, all_days_but: Container[int] | None = None) -> None:
        """Drops the keys of windows (hours, for `ip_count` days) that ended at or before `before`, epoch seconds, and
        of all days but those given, numbered since 1970."""
        for seconds, window in list(self._tables):
            day = window * seconds // SECONDS_PER_DAY
            if (window + 1) * seconds <= before or (all_days_but is not None and day not in all_days_but):
                del self._tables[seconds, window]


def _count(
    tables: Sequence[_Table], clicks: Clicks, rows: slice | NDArray[np.intp], kinds: Sequence[int]
) -> NDArray[np.uint32]:
    """Counts of at most _CHUNK clicks of one window, shape (n, len(kinds)); of two tables the first has the first kind,
    and the second the others."""
    ip = clicks.ip[rows].astype(np.uint64) << np.uint64(29)
    ip |= np.arange(len(ip), dtype=np.uint64)
    keys: NDArray[np.uint64] = np.empty((len(kinds), len(ip)), dtype=np.uint64)
    for key, kind in zip(keys, kinds, strict=True):
        name = _OTHER[kind]
        np.bitwise_or(ip, np.uint64((kind + 1) << 61), out=key)
        if name is not None:
            key |= getattr(clicks, name)[rows].astype(np.uint64) << np.uint64(13)
    # Equal keys become neighbours, and the position in the low bits keeps them in arrival order; so do a kind's.
    ordered = np.sort(keys, axis=None)
    position = (ordered & np.uint64(_CHUNK - 1)).astype(np.intp)
    ordered >>= np.uint64(13)
    starts = np.empty(len(ordered), np.bool_)  # for few clicks, np.diff and its like take longer than what they do
    starts[:1] = True
    np.not_equal(ordered[1:], ordered[:-1], out=starts[1:])
    first = starts.nonzero()[0]
    size = np.empty_like(first)
    np.subtract(first[1:], first[:-1], out=size[:-1])
    size[-1:] = len(ordered) - first[-1:]
    cut = int(first.searchsorted(len(ip))) if len(tables) > 1 else len(first)
    parts = zip(tables, (slice(0, cut), slice(cut, None)), strict=False)
    before = np.concatenate([table.add(ordered[first[part]], size[part]) for table, part in parts])
    counts = np.arange(1, len(ordered) + 1) - (first - before).repeat(size)
    result = np.empty((len(ip), len(kinds)), dtype=np.uint32)
    for column, (where, of) in enumerate(zip(position.reshape(keys.shape), counts.reshape(keys.shape), strict=True)):
        result[where, column] = of
    return result


class _Table:
    """A hash table from keys of 51 bits (none is 0) to counts: open addressing, triangular probing, many at a time.

    A slot is 64 bits: the key, a bit that says that the count has more than 12 bits, and the low 12 of them. The others
    are in `_high`: few keys are counted 4,096 times in a day or an hour, and for all others a slot is a third smaller.
    """

    def __init__(self, expected: int = 0) -> None:
        self._bits, self._used = 5, 0
        self._high: dict[int, int] = {}
        self._allocate(expected)

    def __len__(self) -> int:
        return self._used

    @property
    def nbytes(self) -> int:
        return self._slots.nbytes

    def add(self, keys: NDArray[np.uint64], amounts: NDArray[np.int64]) -> NDArray[np.uint32]:
        """Adds to the counts of distinct keys. Returns what they were before; 0 for a new key."""
        self._reserve(len(keys))
        at = self._find(keys)
        slots = self._slots[at]
        low = slots & _LOW
        before = low.astype(np.uint32)
        for index in (slots & _MORE).nonzero()[0].tolist():
            before[index] += self._high[int(keys[index])] << _LOW_BITS
        low += amounts.astype(np.uint64)
        over = (low > _LOW).nonzero()[0]
        slots &= ~_LOW
        slots |= low & _LOW
        if len(over):
            slots[over] |= _MORE
            for key, carry in zip(keys[over].tolist(), (low[over] >> np.uint64(_LOW_BITS)).tolist(), strict=True):
                self._high[key] = self._high.get(key, 0) + carry
        self._slots[at] = slots
        return before

    def items(self) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
        """All keys, and their counts."""
        slots = self._slots[self._slots.nonzero()]
        keys, counts = slots >> _REST, (slots & _LOW).astype(np.uint32)
        for index in (slots & _MORE).nonzero()[0].tolist():
            counts[index] += self._high[int(keys[index])] << _LOW_BITS
        return keys, counts

    def _allocate(self, keys: int) -> None:
        """Makes an empty table in which so many keys take at most 5 of 8 slots."""
        while 8 * keys > 5 << self._bits:
            self._bits += 1
        self._used = 0
        self._slots = np.zeros(1 << self._bits, dtype=np.uint64)

    def _reserve(self, more: int) -> None:
        if 8 * (self._used + more) > 5 << self._bits:
            slots = self._slots[self._slots.nonzero()]
            self._allocate(self._used + more)
            self._slots[self._find(slots >> _REST)] = slots

    def _find(self, keys: NDArray[np.uint64]) -> NDArray[np.intp]:
        """Where the slots of distinct keys are; new keys take a free one."""
        # Fibonacci hashing (Knuth, The Art of Computer Programming, volume 3, section 6.4), twice: once would leave
        # keys of consecutive ips in long runs of neighbouring slots.
        hashes = keys * _GOLDEN
        hashes ^= hashes >> np.uint64(32)
        hashes *= _GOLDEN
        places = (hashes >> np.uint64(64 - self._bits)).astype(np.intp)
        pending, at, step, keys = np.arange(len(keys)), places, 0, keys << _REST
        while len(pending):
            found = self._slots[at]
            free = (found == 0).nonzero()[0]
            if len(free):
                # Several keys may want one free slot: the last written gets it, and the others see that below.
                self._slots[at[free]] = keys[free]
                found[free] = self._slots[at[free]]
            found ^= keys
            lost = found > _COUNT
            self._used += len(free) - int(np.count_nonzero(lost[free]))
            step += 1  # triangular probing: it reaches every slot, and makes no long runs of used ones
            pending, keys = pending[lost], keys[lost]
            places[pending] = at = at[lost] + step & (1 << self._bits) - 1
        return places


def features(clicks: Clicks, counts: NDArray[np.uint32]) -> NDArray[np.float32]:
    """The model's input, shape (n, 12), columns as in FEATURES.

    float32 holds every id exactly, and counts up to 2**24.
    """
    seconds_into_day = clicks.time % SECONDS_PER_DAY
    day_of_week = (clicks.time // SECONDS_PER_DAY + 3) % 7  # 1970-01-01 was a Thursday; Monday is 0
    columns = (clicks.app, clicks.device, clicks.os, clicks.channel, seconds_into_day // SECONDS_PER_HOUR, day_of_week)
    result = np.empty((len(clicks), len(FEATURES)), dtype=np.float32)
    for index, column in enumerate(columns):
        result[:, index] = np.asarray(column)
    result[:, len(columns) :] = counts
    return result
