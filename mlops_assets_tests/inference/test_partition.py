"""What a worker remembers of a partition, and from where it can be rebuilt."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_assets.clicks.schema import Clicks
from mlops_assets.inference.partition import OUTLIERS, Partition

DAY, HOUR, LATENESS = 86_400, 3_600, 600


def clicks(times: Any, ips: Any = 1) -> Clicks:
    time = np.asarray(times, np.int64)
    ones = np.ones(len(time), np.uint16)
    return Clicks(np.broadcast_to(np.asarray(ips, np.uint32), time.shape).copy(), ones, ones, ones, ones, time)


def feed(partition: Partition, times: Any, begin: int, ips: Any = 1) -> Any:
    batch = clicks(times, ips)
    counts = partition.counts.count(batch)
    partition.advance(batch, begin, begin + len(batch))
    return counts


def test_a_partition_is_caught_up_at_the_first_click_to_answer() -> None:
    partition = Partition(position=10, first=20, lateness=LATENESS)
    assert not partition.caught_up
    feed(partition, [100] * 10, 10)
    assert partition.caught_up


def test_replay_begins_where_the_oldest_day_that_counts_began() -> None:
    partition = Partition(0, 0, LATENESS)
    assert partition.replay_from == 0
    feed(partition, [5 * DAY + 100] * 200, 0)
    feed(partition, [6 * DAY] * 200, 200)
    assert partition.replay_from == 0, "yesterday's clicks may still come, up to the lateness bound"
    feed(partition, [6 * DAY + LATENESS] * 200, 400)
    assert partition.replay_from == 200


def test_a_few_clicks_from_a_wrong_clock_do_not_age_the_others() -> None:
    partition = Partition(0, 0, LATENESS)
    feed(partition, [5 * DAY] * 500, 0)
    feed(partition, [9_000 * DAY] * OUTLIERS, 500)
    counts = feed(partition, [5 * DAY + 1], 600)
    assert partition.horizon == 5 * DAY + 1 - LATENESS
    assert counts[0, 0] == 501


def test_state_stays_bounded_however_long_it_runs() -> None:
    partition = Partition(0, 0, LATENESS)
    sizes = []
    for hour in range(24 * 5):
        feed(partition, np.full(1_000, 5 * DAY + hour * HOUR), hour * 1_000, ips=np.arange(1_000) + hour * 1_000)
        sizes.append(len(partition.counts))
    # At most: the ips of a day and the 5 hourly keys of two hours.
    assert max(sizes) <= 25 * 1_000 + 2 * 5 * 1_000
    assert len(partition._day_begins) <= 2


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_rebuilt_counts_equal_uninterrupted_ones(data: st.DataObject) -> None:
    """Wherever a worker stops, another that reads again from `replay_from` counts on as if nothing had happened."""
    seed = data.draw(st.integers(0, 2**32))
    random = np.random.default_rng(seed)
    n = 2_000
    late = random.integers(0, LATENESS, n)  # clicks come out of order, within the bound
    times = np.sort(5 * DAY + random.integers(0, 2 * DAY, n)) - late
    ips = random.integers(0, 5, n)
    uninterrupted = Partition(0, 0, LATENESS)
    expected, replay = [], []
    begin = 0
    while begin < n:
        end = min(n, begin + int(random.integers(1, 300)))
        expected.append(feed(uninterrupted, times[begin:end], begin, ips[begin:end]))
        replay.append((end, uninterrupted.replay_from))
        begin = end
    stop, offset = replay[data.draw(st.integers(0, len(replay) - 1))]
    rebuilt = Partition(offset, stop, LATENESS)
    feed(rebuilt, times[offset:stop], offset, ips[offset:stop])
    assert rebuilt.caught_up
    if stop < n:
        assert (feed(rebuilt, times[stop:], stop, ips[stop:]) == np.concatenate(expected)[stop:]).all()


@pytest.mark.parametrize("size", [1, 7, 1_000])
def test_counts_do_not_depend_on_the_batches(size: int) -> None:
    random = np.random.default_rng(3)
    times = np.sort(random.integers(5 * DAY, 7 * DAY, 1_000))
    ips = random.integers(0, 20, 1_000)
    whole = clicks(times, ips)
    expected = Partition(0, 0, LATENESS).counts.count(whole)
    partition = Partition(0, 0, LATENESS)
    parts = [feed(partition, times[i : i + size], i, ips[i : i + size]) for i in range(0, 1_000, size)]
    assert (np.concatenate(parts) == expected).all()
