"""In which order the re-keying step passes on what several partitions hold, and under which keys."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_assets.inference.rekey import MOST, Source, _key, until_when

LINGER = 0.2  # seconds


class Message:
    def __init__(self, offset: int, time: int, value: bytes | None = None) -> None:
        self._offset, self._time, self._value = offset, time, value or b"%d,7,3,1,13,379,2017-11-10 04:00:00" % offset

    def offset(self) -> int:
        return self._offset

    def key(self) -> None:
        return None

    def value(self) -> bytes | None:
        return self._value

    def timestamp(self) -> tuple[int, int]:
        return 1, self._time


@pytest.mark.parametrize(
    ("value", "key", "click_id"),
    [
        (b"5,7,3,1,13,379,2017-11-10 04:00:00", b"7", 5),
        (b"5,0007,3,1,13,379,2017-11-10 04:00:00", b"7", 5),
        (b'{"click_id":5,"ip":7,"app":3,"device":1,"os":13,"channel":379,"click_time":"2017-11-10 04:00:00"}', b"7", 5),
        (b"garbage", b"own", 0),
        (b"5,x,3", b"own", 0),
        (None, b"own", 0),
    ],
)
def test_the_key_is_the_ip_in_decimal(value: bytes | None, key: bytes, click_id: int) -> None:
    assert _key(b"own", value) == (key, click_id)


def test_a_click_waits_for_earlier_ones_of_a_partition_that_is_behind_but_not_for_ever() -> None:
    ahead, behind = Source(0), Source(0)
    ahead.put([Message(0, 100), Message(1, 200)], now=0.0)
    ahead.behind = False
    assert until_when([ahead, behind], LINGER / 2, LINGER) == 0
    assert until_when([ahead, behind], 2 * LINGER, LINGER) == 0
    behind.put([Message(0, 150)], now=0.0)
    assert until_when([ahead, behind], 2 * LINGER, LINGER) == 150
    assert [line.time for line in ahead.take(150)] == [100]
    assert (ahead.replay_from, ahead.position, len(ahead)) == (1, 2, 1)
    behind.behind = False
    assert until_when([ahead, behind], 2 * LINGER, LINGER) == 200
    behind.behind = True
    assert until_when([ahead, behind], MOST * LINGER, LINGER) == 200


def test_a_producer_whose_clock_is_slow_holds_nobody_up() -> None:
    fast, slow = Source(0), Source(0)
    for turn in range(40):
        now = turn / 10
        fast.put([Message(turn, 1_000_000 + turn)], now)
        slow.put([Message(turn, turn)], now)
        fast.behind = slow.behind = False
        until = until_when([fast, slow], now, LINGER)
        fast.take(until), slow.take(until)
    assert len(fast) <= 3
    assert len(slow) <= 3


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30)), max_size=60), st.integers(1, 10))
def test_whatever_the_timestamps_offsets_go_on_without_gaps(written: list[tuple[int, int]], size: int) -> None:
    sources, passed = [Source(0) for _ in range(3)], [list[int]() for _ in range(3)]
    logs: list[list[Any]] = [[], [], []]
    for number, time in written:
        logs[number].append(Message(len(logs[number]), time))
    for turn in range(200):
        for source, log in zip(sources, logs, strict=True):
            if messages := log[source.position : source.position + size]:
                source.put(messages, turn / 10)
            source.behind = source.position < len(log)
        until = until_when(sources, turn / 10, LINGER)
        for source, done in zip(sources, passed, strict=True):
            done += [line.offset for line in source.take(until)]
            assert source.replay_from == len(done)
    for log, done in zip(logs, passed, strict=True):
        assert np.array_equal(done, np.arange(len(log)))
