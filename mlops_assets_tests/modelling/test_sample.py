from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_assets.clicks.features import FEATURES
from mlops_assets.modelling.sample import Batch, sample


def numbered(n: int, installs: int, seed: int = 0) -> Batch:
    """Clicks whose first feature is their position, and whose ip is ten million more."""
    features = np.zeros((n, len(FEATURES)), dtype=np.float32)
    features[:, 0] = np.arange(n)
    label = np.zeros(n, dtype=np.uint8)
    label[np.random.default_rng(seed).choice(n, installs, replace=False)] = 1
    return features, label, np.arange(10_000_000, 10_000_000 + n, dtype=np.uint32)


def split(batch: Batch, cuts: list[int]) -> list[Batch]:
    return list(zip(*(np.split(array, cuts) for array in batch), strict=True))


@given(
    n=st.integers(0, 400),
    share=st.floats(0, 1),
    cap=st.integers(2, 150),
    cuts=st.lists(st.integers(0, 400), max_size=8),
    seed=st.integers(0, 5),
)
def test_a_sample_is_bounded_in_order_and_independent_of_the_batches(
    n: int, share: float, cap: int, cuts: list[int], seed: int
) -> None:
    batch = numbered(n, round(n * share), seed)
    label = batch[1]
    whole = sample([batch], cap, seed)
    pieces = sample(split(batch, sorted(min(cut, n) for cut in cuts)), cap, seed)
    assert np.array_equal(whole.features, pieces.features)
    assert whole.negative_rate == pieces.negative_rate

    positions = whole.features[:, 0].astype(int)
    assert len(whole) <= cap
    assert np.all(np.diff(positions) > 0), "in the order they came, none twice"
    assert np.array_equal(whole.label, label[positions])
    assert np.array_equal(whole.ip, positions + 10_000_000), "each click has its own ip"
    installs = int(label.sum())
    assert whole.installs == min(installs, cap // 2), "every install, up to half the cap"
    assert len(whole) - whole.installs == min(n - installs, cap - whole.installs), "the rest of the cap is filled"
    if 0 < installs < n:
        kept = (len(whole) - whole.installs) / (n - installs) / (whole.installs / installs)
        assert whole.negative_rate == pytest.approx(kept)


def test_every_negative_is_as_likely_to_be_kept_wherever_it_lies() -> None:
    batch = numbered(1_000, 0)
    kept = np.zeros(1_000)
    for seed in range(400):
        kept[sample(split(batch, [100, 250, 900]), 200, seed).features[:, 0].astype(int)] += 1
    by_fifth = kept.reshape(5, 200).sum(axis=1)
    assert by_fifth.sum() == 400 * 200
    # each of the five sums has a standard deviation of at most sqrt(400 * 200 * 0.2 * 0.8) = 113
    assert np.all(np.abs(by_fifth - 16_000) < 5 * 113)


def test_the_weights_stand_for_the_whole_window() -> None:
    result = sample([numbered(50_000, 100)], 1_100)
    assert result.installs == 100
    assert result.weight.sum() == pytest.approx(50_000)


def test_bad_batches_and_caps_are_named() -> None:
    features, label, ip = numbered(10, 2)
    with pytest.raises(ValueError, match=r"shape \(10, 11\) for 10 labels"):
        sample([(features[:, :11], label, ip)])
    with pytest.raises(ValueError, match="0 or 1, found 2"):
        sample([(features, label * 2, ip)])
    with pytest.raises(ValueError, match="raise the cap"):
        sample([(features, label, ip)], cap=1)


def test_an_empty_window_is_an_empty_sample() -> None:
    assert len(sample([])) == 0
