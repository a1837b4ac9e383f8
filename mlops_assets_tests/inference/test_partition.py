"""What a worker remembers of a partition, and from where it can be rebuilt, whatever its clicks' clocks say."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_assets.clicks import clock
from mlops_assets.clicks.clock import LATENESS, PATIENCE, SPAN
from mlops_assets.clicks.schema import Clicks
from mlops_assets.inference.partition import Counted, Partition

DAY, HOUR = 86_400, 3_600
MONDAY = 17_476 * DAY  # 2017-11-06
IPS = 300


def clicks(times: Any, ips: Any) -> Clicks:
    time = np.asarray(times, np.int64)
    ones = np.ones(len(time), np.uint16)
    return Clicks(np.broadcast_to(np.asarray(ips, np.uint32), time.shape).copy(), ones, ones, ones, ones, time)


def feed(partition: Partition, batch: Clicks, begin: int, sizes: Iterable[int] = ()) -> Counted:
    """Counts the clicks, whose offsets begin at `begin`, in batches of the sizes and then all the rest."""
    parts, at = [], 0
    for size in (*sizes, len(batch)):
        part = batch.take(slice(at, at + size))
        parts.append(partition.count(part, lambda index, first=begin + at: first + index))  # type: ignore[misc]
        at += len(part)
        partition.position = begin + at
    return Counted(*(np.concatenate([getattr(p, name) for p in parts]) for name in Counted.__slots__))


def oracle(batch: Clicks) -> Any:
    """ip_count and ip_day_hour of each click, by two dictionaries that forget nothing."""
    days, hours, rows = Counter[tuple[int, int]](), Counter[tuple[int, int]](), []
    for ip, time in zip(batch.ip.tolist(), batch.time.tolist(), strict=True):
        days[ip, time // DAY] += 1
        hours[ip, time // HOUR] += 1
        rows.append((days[ip, time // DAY], hours[ip, time // HOUR]))
    return np.array(rows)


def traffic(random: np.random.Generator, n: int, begin: int, seconds: int) -> Clicks:
    """Clicks of IPS ips in some time, each up to LATENESS late."""
    times = np.sort(begin + random.integers(0, seconds, n)) - random.integers(0, LATENESS // 2, n)
    return clicks(times, random.zipf(1.3, n) % IPS)


def test_a_partition_is_caught_up_at_the_first_click_to_answer() -> None:
    partition = Partition(position=10, first=20)
    assert not partition.caught_up
    feed(partition, clicks([100] * 10, 1), 10)
    assert partition.caught_up


def test_replay_begins_where_the_oldest_open_day_began() -> None:
    partition, ips = Partition(0, 0), np.arange(SPAN)
    assert partition.replay_from == 0
    for number in range(10):
        feed(partition, clicks(np.full(SPAN, MONDAY + DAY - 100 + number), ips), number * SPAN)
    assert partition.replay_from == 0
    feed(partition, clicks(np.full(SPAN, MONDAY + DAY), ips), 10 * SPAN)
    assert partition.replay_from == 0, "yesterday's clicks may still come, up to the lateness bound"
    feed(partition, clicks(np.full(SPAN, MONDAY + DAY + LATENESS), ips), 11 * SPAN)
    assert 7 * SPAN <= partition.replay_from <= 10 * SPAN


KINDS = [
    *((ips, offset) for ips in ("one ip", "many ips") for offset in (2, 8, -8, 24, -24, 72_000)),
    ("random", 0),
    ("frozen", 0),
]
"""Whose clocks are wrong, and by how many hours."""


def wrong_clocks(random: np.random.Generator, good: Clicks, kind: tuple[str, int]) -> Clicks:
    """The same clicks again, by other ips whose clocks are wrong."""
    name, hours = kind
    if name == "random":
        return clicks(random.integers(0, 2**35, len(good)), 70_000 + good.ip % 100)
    if name == "frozen":
        return clicks(np.full(len(good), MONDAY + 9 * HOUR), 70_001)
    return clicks(good.time + hours * HOUR, np.where(name == "one ip", 70_000, 70_000 + good.ip % 100))


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_other_ips_are_counted_as_if_there_were_no_wrong_clocks(data: st.DataObject) -> None:
    """Any sizes of batches, days, gaps, and wrong clicks that come singly, in bursts, or before any other."""
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    gap = data.draw(st.sampled_from([0, 12 * HOUR, 3 * DAY]))
    parts = [traffic(random, 3_000, MONDAY, DAY), traffic(random, 3_000, MONDAY + DAY + gap, DAY)]
    good = Clicks.concat(parts)
    kind = data.draw(st.sampled_from(KINDS), label="clocks")
    alone = kind[0] in ("one ip", "frozen")
    # However many clicks a single ip sends; but of the ips, most clocks are right at any time.
    some = good.take(np.sort(random.choice(len(good), 2_500 if alone else 400, replace=False)))
    bad = wrong_clocks(random, some, kind)
    place = data.draw(st.sampled_from(["among", "bursts", "first"] if alone else ["among"]), label="place")
    where = np.searchsorted(good.time, some.time)
    if place == "bursts":
        where = where // 1_000 * 1_000
    elif place == "first":
        where[:] = 0
    together = Clicks.concat([good, bad])
    order = np.argsort(np.concatenate((np.arange(len(good)), where - 0.5)), kind="stable")
    together = together.take(order)
    sizes = random.integers(1, data.draw(st.sampled_from([10, 300, 5_000])), 60).tolist()
    counted = feed(Partition(0, 0), together, 0, sizes)
    others = together.ip < IPS
    assert (counted.counts[others][:, :2] == oracle(good)).all()
    assert not counted.late[others].any()


def test_a_hundred_clicks_of_any_clock_reset_nobody() -> None:
    good = clicks(MONDAY + 12 * HOUR + np.arange(10_000) // 10, np.arange(10_000) % 50)
    for kind in KINDS:
        bad = wrong_clocks(np.random.default_rng(1), good.take(slice(0, 2_000 if kind[0] == "one ip" else 100)), kind)
        partition = Partition(0, 0)
        feed(partition, good.take(slice(0, 7_200)), 0)
        feed(partition, bad, 7_200)
        assert (feed(partition, good.take(slice(7_200, 7_250)), 9_200).counts == 145).all(), kind


@pytest.mark.parametrize("ahead", [8 * HOUR, DAY, 3_000 * DAY])
def test_an_ip_that_was_alone_with_its_fast_clock_makes_nobody_late(ahead: int) -> None:
    partition = Partition(0, 0)
    alone = feed(partition, clicks(MONDAY + ahead + np.arange(20_000) // 100, 70_000), 0)
    assert alone.counts[:, 0].tolist() == list(range(1, 20_001))
    good = traffic(np.random.default_rng(2), 5_000, MONDAY, HOUR)
    assert (feed(partition, good, 20_000, [7] * 300).counts[:, :2] == oracle(good)).all()


def test_one_future_click_does_not_pin_the_replay() -> None:
    partition, n = Partition(0, 0), 36_000
    ips, times = np.arange(n) % 400, MONDAY + DAY - 6 * HOUR + np.arange(n) * 6 * HOUR // n
    feed(partition, clicks(times[:5_000], ips[:5_000]), 0)
    feed(partition, clicks([MONDAY + DAY + 5 * HOUR], 70_000), 5_000)
    feed(partition, clicks(times[5_000:], ips[5_000:]), 5_001)
    assert partition.replay_from == 0
    counts = feed(partition, clicks(times + 6 * HOUR, ips), n + 1).counts
    assert counts[400:, 0].min() > 1
    assert n - 3 * SPAN < partition.replay_from <= n + 1


def test_memory_is_bounded_by_the_traffic_of_the_open_day_however_wrong_the_clocks_are() -> None:
    random = np.random.default_rng(3)
    partition, offset, most, size = Partition(0, 0), 0, 0, 0
    for hour in range(24 * 3):
        good = traffic(random, 1_000, MONDAY + hour * HOUR, HOUR)
        years = clicks(random.integers(0, 2**35, 50), 70_000 + np.arange(50))
        feed(partition, good, offset)
        feed(partition, years, offset + 1_000)
        offset += 1_050
        most, size = max(most, len(partition)), max(size, partition.nbytes)
    # The ips of two days, their keys of two hours, and what waits for at most three spans.
    assert most <= 2 * IPS + 2 * 5 * IPS + 6 * 3 * SPAN
    assert size < 4 * 2**20
    assert offset - partition.replay_from < 25 * 1_050


def test_a_single_ip_for_years_keeps_memory_and_replay_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    patience = PATIENCE // 16  # 4,096 clicks and so hours without another ip: else it would be seven years
    monkeypatch.setattr(clock, "PATIENCE", patience)
    partition = Partition(0, 0)
    times = MONDAY + np.arange(3 * patience + 5_000) * HOUR
    counted = feed(partition, clicks(times, 7), 0, [1_000] * 26)
    assert partition.replay_from >= patience
    assert len(partition) < 6 * 30 * 24
    last = slice(3 * patience + 24, None)
    assert (counted.counts[last, 1] == 1).all()
    assert counted.counts[last, 0].max() == 24


def test_clicks_of_an_hour_that_is_over_count_in_their_day_alone() -> None:
    partition, ips = Partition(0, 0), np.arange(SPAN)
    feed(partition, clicks(np.full(4 * SPAN, MONDAY + 12 * HOUR), np.tile(ips, 4)), 0)
    late = feed(partition, clicks([MONDAY + 3 * HOUR] * 3, 9), 4 * SPAN)
    assert late.late.all()
    assert late.counts.tolist() == [[n, 1, 1, 1, 1, 1] for n in (5, 6, 7)]
    again = feed(partition, clicks([MONDAY + 12 * HOUR], 9), 4 * SPAN + 3)
    assert again.counts.tolist() == [[8, 5, 5, 5, 5, 5]]


def test_clicks_that_are_ahead_within_the_day_count_as_their_hour_will() -> None:
    partition, ips = Partition(0, 0), np.arange(SPAN)
    feed(partition, clicks(np.full(SPAN, MONDAY + 3 * HOUR), ips), 0)
    early = feed(partition, clicks([MONDAY + 11 * HOUR] * 3, 9), SPAN)
    assert early.ahead.all()
    assert early.counts.tolist() == [[n + 1, n, n, n, n, n] for n in (1, 2, 3)]
    feed(partition, clicks(np.full(4 * SPAN, MONDAY + 11 * HOUR), np.tile(ips + 1_000, 4)), SPAN + 3)
    then = feed(partition, clicks([MONDAY + 11 * HOUR], 9), 5 * SPAN + 3)
    assert then.counts.tolist() == [[5, 4, 4, 4, 4, 4]]


def test_whoever_sends_an_older_day_again_is_counted_from_its_first_click() -> None:
    partition, random = Partition(0, 0), np.random.default_rng(5)
    feed(partition, traffic(random, 5_000, MONDAY + DAY, 3 * HOUR), 0)
    older = traffic(random, 5_000, MONDAY + LATENESS, 3 * HOUR)
    assert (feed(partition, older, 5_000, [30] * 50).counts[:, :2] == oracle(older)).all()


def bad_days(data: st.DataObject, random: np.random.Generator) -> Clicks:
    """Two days of clicks, some with wrong clocks."""
    n = data.draw(st.sampled_from([200, 4_000, 12_000]))
    good = traffic(random, n, MONDAY + 12 * HOUR, 2 * DAY)
    bad = wrong_clocks(random, good.take(random.random(n) < 0.1), data.draw(st.sampled_from(KINDS), label="clocks"))
    return Clicks.concat([good, bad]).take(
        np.argsort(
            random.random(n + len(bad)) * 0.05 + np.concatenate((np.arange(n) / n, np.linspace(0, 1, len(bad)))),
            kind="stable",
        )
    )


def uninterrupted(together: Clicks, random: np.random.Generator) -> tuple[Partition, Any, list[tuple[int, int, Any]]]:
    """The counts of all clicks, and where a worker may have stopped: offset, where to replay from, what was saved."""
    partition, counts, stops = Partition(0, 0), [], []
    begin, n = 0, len(together)
    while begin < n:
        end = min(n, begin + int(random.integers(1, 1_500)))
        counts.append(feed(partition, together.take(slice(begin, end)), begin).counts)
        stops.append((end, partition.replay_from, partition.save()))
        begin = end
    return partition, np.concatenate(counts), stops


@dataclass(frozen=True)
class Stopped:
    """A stream in which a worker stops somewhere: its clicks, what an uninterrupted one makes of them, and where."""

    random: np.random.Generator
    together: Clicks
    partition: Partition
    expected: Any
    stop: int
    replay_from: int
    saved: Any

    def rest(self, successor: Partition) -> Any:
        """The successor's counts of what comes behind the stop, its batches cut anywhere."""
        behind, cuts = self.together.take(slice(self.stop, None)), self.random.integers(1, 900, 5).tolist()
        return feed(successor, behind, self.stop, cuts).counts


def stopped(data: st.DataObject) -> Stopped:
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    together = bad_days(data, random)
    partition, expected, stops = uninterrupted(together, random)
    return Stopped(random, together, partition, expected, *stops[data.draw(st.integers(0, len(stops) - 1))])


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_rebuilt_counts_equal_uninterrupted_ones(data: st.DataObject) -> None:
    """Wherever a worker stops, another that reads again from `replay_from` counts on as if nothing had happened."""
    case = stopped(data)
    offset, stop = case.replay_from, case.stop
    rebuilt = Partition(offset, stop)
    feed(rebuilt, case.together.take(slice(offset, stop)), offset, case.random.integers(1, 900, 5).tolist())
    assert rebuilt.caught_up
    if stop < len(case.together):
        assert not (case.rest(rebuilt) != case.expected[stop:]).any(axis=1).any()
        assert rebuilt.replay_from == case.partition.replay_from


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_counts_go_on_from_where_they_were_saved(data: st.DataObject) -> None:
    """However old what was saved is, and however its successor's batches are cut."""
    case = stopped(data)
    loaded = Partition.load(case.saved, first=len(case.together) + 1)
    assert loaded.position == case.stop
    assert not loaded.caught_up
    assert not (case.rest(loaded) != case.expected[case.stop :]).any(axis=1).any()
    assert loaded.replay_from == case.partition.replay_from
    assert len(loaded) == len(case.partition)
    mine, yours = loaded.save(), case.partition.save()
    assert mine.keys() == yours.keys()
    assert all(np.array_equal(np.sort(mine[name], axis=None), np.sort(yours[name], axis=None)) for name in mine)
