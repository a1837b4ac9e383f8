"""The shape of synthetic clicks, their determinism, and installs that can be learnt on one day for the next."""

import datetime
from functools import cache

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from mlops_assets.clicks import synthetic
from mlops_assets.clicks.features import COUNTS, RunningCounts, features
from mlops_assets.clicks.schema import Clicks
from mlops_assets.clicks.synthetic import INSTALL_RATE, generate_day

MONDAY = datetime.date(2017, 11, 6)
N = 200_000


@cache
def day(date: datetime.date = MONDAY, clicks: int = N, seed: int = 7, drift: float = 0) -> Clicks:
    return Clicks.concat(list(generate_day(date, clicks, seed, drift)))


def label(clicks: Clicks) -> np.ndarray:
    assert clicks.label is not None
    return clicks.label


def same(a: Clicks, b: Clicks) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("ip", "app", "os", "time", "label"))


def test_a_day_has_the_asked_clicks_in_time_order_within_it() -> None:
    clicks = day()
    assert len(clicks) == N
    assert (np.diff(clicks.time) >= 0).all()
    assert set(clicks.time // 86_400) == {1_509_926_400 // 86_400}


def test_it_is_of_talkingdatas_shape() -> None:
    clicks = day(clicks=1_000_000)
    for name, bound in (("ip", 364_778), ("app", 730), ("device", 3_799), ("os", 856), ("channel", 202)):
        assert getattr(clicks, name).max() < bound
    assert len(np.unique(clicks.app)) > 0.9 * 730
    assert len(np.unique(clicks.channel)) > 0.9 * 202
    assert len(np.unique(clicks.ip)) > 100_000
    heaviest = np.sort(np.bincount(clicks.ip))[::-1]
    assert heaviest[:100].sum() > 0.1 * len(clicks)  # heavy talkers
    hours = np.bincount(clicks.time % 86_400 // 3_600, minlength=24)
    assert hours.max() > 3 * hours.min()  # a daily rhythm
    assert (RunningCounts().count(clicks)[:, COUNTS.index("ip_hour_app")] > 50).mean() > 0.03  # click farms


@pytest.mark.parametrize(("seed", "clicks"), [(1, 400_000), (2, 400_000), (3, 50_000), (7, 1_500_000)])
def test_one_click_in_400_is_an_install(seed: int, clicks: int) -> None:
    installs = sum(int(label(batch).sum()) for batch in generate_day(MONDAY, clicks, seed))
    low, high = binomtest(installs, clicks).proportion_ci(0.999)
    assert low < 1.15 * INSTALL_RATE
    assert high > 0.85 * INSTALL_RATE


def test_only_installs_are_attributed_and_after_their_click() -> None:
    clicks = day()
    assert clicks.attributed_time is not None
    assert np.array_equal(clicks.attributed_time > 0, label(clicks) == 1)
    delay = (clicks.attributed_time - clicks.time)[label(clicks) == 1]
    assert delay.min() > 0
    assert delay.max() <= 86_401


def test_the_same_arguments_give_the_same_clicks_and_others_do_not() -> None:
    again = Clicks.concat(list(generate_day(MONDAY, N, 7)))
    assert same(day(), again)
    assert not same(day(), day(seed=8))
    assert not same(day(), day(date=MONDAY + datetime.timedelta(1)))
    assert not same(day(), day(drift=0.1))


def test_a_model_of_one_day_serves_the_next_until_the_clicks_drift() -> None:
    def inputs(clicks: Clicks) -> np.ndarray:
        return features(clicks, RunningCounts().count(clicks))[:, :4]

    first = day(clicks=1_000_000)
    model = make_pipeline(OneHotEncoder(handle_unknown="ignore"), LogisticRegression(max_iter=200))
    chosen = (label(first) == 1) | (np.arange(len(first)) % 10 == 0)
    model.fit(inputs(first)[chosen], label(first)[chosen])

    def auc(drift: float) -> float:
        clicks = day(date=MONDAY + datetime.timedelta(1), clicks=400_000, drift=drift)
        return float(roc_auc_score(label(clicks), model.predict_proba(inputs(clicks))[:, 1]))

    assert auc(0) > 0.9
    assert auc(0) > auc(0.4) + 0.02 > auc(1) + 0.2


def test_it_needs_bounded_memory() -> None:
    assert max(len(batch) for batch in generate_day(MONDAY, N, 7)) <= 65_536


@pytest.mark.parametrize(("clicks", "drift"), [(-1, 0), (10, -0.1), (10, 1.1)])
def test_impossible_arguments_are_refused(clicks: int, drift: float) -> None:
    with pytest.raises(ValueError, match=r"clicks is -1|drift is"):
        next(synthetic.generate_day(MONDAY, clicks, 7, drift))


def test_an_empty_day_has_no_batch() -> None:
    assert list(generate_day(MONDAY, 0, 7)) == []
