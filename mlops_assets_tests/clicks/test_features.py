"""The running counts against pandas, whatever the micro-batches."""

from itertools import pairwise

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_np

from mlops_assets.clicks.features import COUNTS, FEATURES, RunningCounts, features
from mlops_assets.clicks.schema import Clicks

MONDAY = 1_509_926_400  # 2017-11-06 00:00:00 UTC


def make_clicks(rng: np.random.Generator, n: int, ids: int, hours: float, ordered: bool) -> Clicks:
    time = MONDAY + rng.integers(0, max(1, int(hours * 3_600)), n)
    app, device, os, channel = (rng.integers(0, ids, (4, n)) * 257 % 2**16).astype(np.uint16)
    ip = rng.choice(np.array([0, 1, 2, 3, 2**16, 2**31, 2**32 - 1], dtype=np.uint32), n)
    return Clicks(ip, app, device, os, channel, np.sort(time) if ordered else time)


def expected_counts(clicks: Clicks) -> np.ndarray:
    frame = pd.DataFrame({name: getattr(clicks, name) for name in ("ip", "app", "device", "os", "channel")})
    time = pd.to_datetime(clicks.time, unit="s")
    frame["day"], frame["hour"] = time.floor("D"), time.floor("h")
    keys = [["ip", "day"], ["ip", "hour"], *(["ip", "hour", other] for other in ("channel", "os", "app", "device"))]
    return np.column_stack([frame.groupby(key).cumcount() + 1 for key in keys])


def count_in_batches(counts: RunningCounts, clicks: Clicks, cuts: list[int]) -> np.ndarray:
    edges = [0, *sorted(cuts), len(clicks)]
    return np.concatenate([counts.count(clicks.take(slice(a, b))) for a, b in pairwise(edges)])


@given(
    st.integers(0, 2**32), st.integers(0, 300), st.integers(1, 40), st.sampled_from([0.5, 3, 60]), st.booleans(),
    st.lists(st.integers(0, 300), max_size=8),
)  # fmt: skip
def test_counts_are_those_of_pandas_for_any_micro_batches(
    seed: int, n: int, ids: int, hours: float, ordered: bool, cuts: list[int]
) -> None:
    clicks = make_clicks(np.random.default_rng(seed), n, ids, hours, ordered)
    got = count_in_batches(RunningCounts(), clicks, [min(cut, n) for cut in cuts])
    np.testing.assert_array_equal(got, expected_counts(clicks).reshape(n, len(COUNTS)))


def test_counts_are_those_of_pandas_on_many_clicks() -> None:
    rng = np.random.default_rng(5)
    clicks = make_clicks(rng, 60_000, 2_000, 30, ordered=False)
    got = count_in_batches(RunningCounts(), clicks, rng.integers(0, 60_000, 9).tolist())
    np.testing.assert_array_equal(got, expected_counts(clicks))


@given(st_np.arrays(np.int64, st.integers(1, 50), elements=st.integers(-(2**40), 2**40)))
def test_any_second_has_its_own_hour_and_day(time: np.ndarray) -> None:
    ones = np.ones(len(time), dtype=np.uint16)
    got = RunningCounts().count(Clicks(ones.astype(np.uint32), ones, ones, ones, ones, time))
    frame = pd.DataFrame({"day": time // 86_400, "hour": time // 3_600})
    np.testing.assert_array_equal(got[:, 0], frame.groupby("day").cumcount() + 1)
    np.testing.assert_array_equal(got[:, 1], frame.groupby("hour").cumcount() + 1)


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(1, 47))
def test_forgetting_ended_windows_changes_no_later_count_and_frees_their_keys(seed: int, hour: int) -> None:
    clicks = make_clicks(np.random.default_rng(seed), 2_000, 30, 48, ordered=True)
    now = MONDAY + hour * 3_600
    cut = int(np.searchsorted(clicks.time, now))
    counts = RunningCounts()
    counts.count(clicks.take(slice(0, cut)))
    counts.forget(now)
    today = clicks.take((clicks.time < now) & (clicks.time >= now // 86_400 * 86_400))
    assert len(counts) == len(np.unique(today.ip))  # the hours ended: only the day's counts live on
    np.testing.assert_array_equal(counts.count(clicks.take(slice(cut, None))), expected_counts(clicks)[cut:])


def test_len_counts_the_live_keys_and_memory_is_bounded() -> None:
    n = 200_000
    ip = np.arange(n, dtype=np.uint32)
    ones = np.ones(n, dtype=np.uint16)
    counts = RunningCounts()
    counts.count(Clicks(ip, ones, ones, ones, ones, np.full(n, MONDAY)))
    assert len(counts) == 6 * n
    assert counts.nbytes < 18 * len(counts)
    counts.forget(MONDAY + 86_400)
    assert len(counts) == counts.nbytes == 0


def test_keys_that_are_counted_often_are_counted_exactly() -> None:
    rng = np.random.default_rng(9)
    clicks = make_clicks(rng, 60_000, 2, 0.9, ordered=True)
    counts, cut = RunningCounts(), 50_000
    got = count_in_batches(counts, clicks.take(slice(0, cut)), rng.integers(0, cut, 30).tolist())
    rest = clicks.take(slice(cut, None))
    loaded = RunningCounts.load(counts.save())
    expected = expected_counts(clicks)
    assert expected.max() > 8_192
    np.testing.assert_array_equal(got, expected[:cut])
    np.testing.assert_array_equal(counts.count(rest), expected[cut:])
    np.testing.assert_array_equal(loaded.count(rest), expected[cut:])


def test_features_are_in_the_documented_order() -> None:
    one = np.ones(1, dtype=np.uint16)
    sunday = np.array([MONDAY + 6 * 86_400 + 23 * 3_600])
    clicks = Clicks(one.astype(np.uint32), 10 * one, 20 * one, 30 * one, 40 * one, sunday)
    counts = np.arange(1, 7, dtype=np.uint32).reshape(1, 6)
    values = features(clicks, counts)
    assert values.dtype == np.float32
    assert dict(zip(FEATURES, values[0].tolist(), strict=True)) == {
        "app": 10, "device": 20, "os": 30, "channel": 40, "hour": 23, "day_of_week": 6,
        "ip_count": 1, "ip_day_hour": 2, "ip_hour_channel": 3, "ip_hour_os": 4, "ip_hour_app": 5, "ip_hour_device": 6,
    }  # fmt: skip
