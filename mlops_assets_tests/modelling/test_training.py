from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from mlops_assets.clicks.features import FEATURES, RunningCounts, features
from mlops_assets.clicks.schema import Clicks
from mlops_assets.inference.model import Model
from mlops_assets.modelling import training
from mlops_assets.modelling.candidates import CANDIDATES
from mlops_assets.modelling.evaluation import evaluate
from mlops_assets.modelling.sample import Batch, Sample, sample
from mlops_assets.modelling.training import NothingToLearn, train_candidate
from mlops_assets_tests.modelling.windows import day, true_probability, window

RealDays = dict[str, Batch]
DAYS = ["2017-11-06", "2017-11-07"]


def test_a_candidate_comes_near_the_law_of_its_window_and_is_calibrated() -> None:
    candidate = train_candidate(window(15_000), day="2017-11-08", trained_on=DAYS)
    later, label = day(30_000, 2, seed=99)
    probability = candidate.model.probability(later)
    best = roc_auc_score(label, true_probability(later))
    assert roc_auc_score(label, probability) > best - 0.03
    assert probability.sum() == pytest.approx(label.sum(), rel=0.1)
    rare = probability < np.quantile(probability, 0.5)
    assert probability[rare].sum() == pytest.approx(true_probability(later)[rare].sum(), rel=0.35)


def test_probabilities_stay_calibrated_when_negatives_are_sampled_away() -> None:
    whole = window(30_000)
    bounded = sample([(whole.features, whole.label, whole.ip)], cap=3 * whole.installs)
    assert bounded.negative_rate < 0.2
    candidate = train_candidate(bounded, day="2017-11-08", trained_on=DAYS)
    later, label = day(30_000, 2, seed=99)
    assert candidate.model.probability(later).sum() == pytest.approx(label.sum(), rel=0.1)


def test_the_same_window_gives_the_same_bytes_and_another_window_another_version(tmp_path: Path) -> None:
    data = window(3_000)
    first, second = (train_candidate(data, day="2017-11-08", trained_on=DAYS, seed=3) for _ in range(2))
    assert first.version == second.version
    first.write(tmp_path / "a")
    second.write(tmp_path / "b")
    for name in ("model.onnx", "model.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    changed = data.label.copy()
    changed[:200] = 1 - changed[:200]
    other = train_candidate(Sample(data.features, changed, data.ip), day="2017-11-08", trained_on=DAYS, seed=3)
    assert other.version != first.version
    assert train_candidate(data, day="2017-11-08", trained_on=DAYS[1:], seed=3).version != first.version


def test_the_description_tells_what_it_is_made_of() -> None:
    data = window(2_000)
    candidate = train_candidate(data, day="2017-11-08", trained_on=DAYS)
    description = json.loads(json.dumps(candidate.description))
    assert description["features"] == list(FEATURES)
    assert description["trained_on"] == DAYS
    assert description["selection"].keys() == {"LogisticRegression", "HistGradientBoosting", "RandomForest"}
    assert description["algorithm"] == candidate.algorithm
    assert 0 < description["threshold"] < 1
    assert (description["clicks"], description["installs"]) == (len(data), data.installs)
    assert len(description["golden"]["features"]) == len(description["golden"]["probability"])
    assert any(row[0] == 65_535 for row in description["golden"]["features"]), "unknown ids are among the golden rows"


def test_the_validation_split_is_the_later_half_of_the_last_day_even_unordered() -> None:
    data = window(2_000, days=3)
    shuffled = np.concatenate([np.arange(4_000), 4_000 + np.random.default_rng(0).permutation(2_000)])
    tail = training._tail(data.take(shuffled))
    assert not tail[:4_000].any()
    hours = data.take(shuffled).features[4_000:, 4]
    assert hours[tail[4_000:]].min() > hours[~tail[4_000:]].max()
    assert 0.4 < tail[4_000:].mean() < 0.6


def test_trees_win_where_the_law_is_beyond_a_logistic_regression() -> None:
    data = window(8_000)
    random = np.random.default_rng(8)
    # an even app on a rare ip, or an odd one on a busy ip: no sum of effects ranks that
    busy = data.features[:, FEATURES.index("ip_count")] > 1
    likely = (data.features[:, 0] % 2 == 0) != busy
    label = (random.random(len(data)) < np.where(likely, 0.1, 0.002)).astype(np.uint8)
    candidate = train_candidate(Sample(data.features, label, data.ip), day="2017-11-08", trained_on=DAYS)
    assert candidate.algorithm != "LogisticRegression"
    chosen = candidate.description["selection"]
    assert chosen[candidate.algorithm] > chosen["LogisticRegression"] + 0.05


@pytest.mark.parametrize(("ips", "chosen"), [(1, "LogisticRegression"), (400, "HistGradientBoosting")])
def test_a_later_algorithm_has_to_be_better_on_many_ips(ips: int, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its gain is the same either way: the installs that it finds come from one ip, or from as many as there are."""
    data, random = window(4_000), np.random.default_rng(3)
    data.features[:, :2] = random.random((len(data), 2))
    found = np.flatnonzero(random.random(len(data)) < 0.05)
    data.label[:], data.label[found] = random.random(len(data)) < 0.05, 1
    data.features[found, 1] = 1
    data.ip[found] = 10**6 + np.arange(len(found)) % ips

    class Fitted:
        def __init__(self, column: int) -> None:
            self.column = column

        def predict_proba(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
            score = features[:, self.column].astype(np.float64)
            return np.column_stack([1 - score, score])

    names = list(CANDIDATES)
    monkeypatch.setattr(training, "fit", lambda name, *_: Fitted(min(names.index(name), 1)))
    algorithm, scores, _ = training._select(data, seed=1)
    assert scores["HistGradientBoosting"] > scores["LogisticRegression"] + 0.1
    assert algorithm == chosen


@pytest.mark.parametrize("label", [0, 1])
def test_a_window_with_one_kind_of_click_says_so(label: int) -> None:
    data = window(500)
    constant = Sample(data.features, np.full(len(data), label, np.uint8), data.ip)
    with pytest.raises(NothingToLearn, match=r"no candidate for 2017-11-08: .* of the 1000 clicks .*2017-11-06"):
        train_candidate(constant, day="2017-11-08", trained_on=DAYS)


def test_the_first_day_has_nothing_to_train_on() -> None:
    with pytest.raises(NothingToLearn, match=r"no candidate for 2017-11-06: 0 of the 0 clicks .*\(no day\)"):
        train_candidate(sample([]), day="2017-11-06", trained_on=[])


@pytest.mark.filterwarnings("ignore:The least populated class")
def test_a_window_with_too_few_installs_to_compare_takes_the_simplest() -> None:
    data = window(1_000)
    label = np.zeros(len(data), np.uint8)
    label[[3, 900, 1_500]] = 1
    candidate = train_candidate(Sample(data.features, label, data.ip), day="2017-11-08", trained_on=DAYS)
    assert candidate.algorithm == "LogisticRegression"
    assert candidate.description["selection"] == {}
    assert np.isfinite(candidate.model.probability(data.features)).all()


@pytest.fixture(scope="module")
def real() -> RealDays:
    folder = os.environ.get("CLICKS_SAMPLE")
    if not folder:
        pytest.skip("CLICKS_SAMPLE names no folder of real clicks")
    days = {}
    for name in (*DAYS, "2017-11-08"):
        rows = pd.read_csv(Path(folder) / f"{name}.csv")
        ids = {column: rows[column].to_numpy(np.uint16) for column in ("app", "device", "os", "channel")}
        time = pd.to_datetime(rows["click_time"]).to_numpy().astype("datetime64[s]").astype(np.int64)
        clicks = Clicks(ip=rows["ip"].to_numpy(np.uint32), time=time, **ids)
        label = rows["is_attributed"].to_numpy(np.uint8)
        days[name] = features(clicks, RunningCounts().count(clicks)), label, clicks.ip
    return days


def test_on_real_clicks_a_candidate_ranks_the_next_day(real: RealDays, tmp_path: Path) -> None:
    candidate = train_candidate(sample([real[name] for name in DAYS]), day="2017-11-08", trained_on=DAYS)
    candidate.write(tmp_path)
    later, label, _ = real["2017-11-08"]
    probability = Model.load(tmp_path).probability(later)
    mean = evaluate(label, probability).mean
    assert mean is not None
    assert mean >= 0.95
    assert 0.7 < probability.sum() / label.sum() < 1.4, "the mean probability is the install rate"
