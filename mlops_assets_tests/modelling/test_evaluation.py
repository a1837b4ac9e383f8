from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from mlops_assets.clicks.features import FEATURES
from mlops_assets.modelling import evaluation
from mlops_assets.modelling.sample import sample
from mlops_assets_tests.modelling.windows import day, ips, true_probability


def scored(
    n: int, seed: int, models: int = 1, digits: int | None = None
) -> tuple[NDArray[np.bool_], list[NDArray[np.float64]]]:
    random = np.random.default_rng(seed)
    label = random.random(n) < 0.2
    label[:4] = [True, True, False, False]
    shared = random.normal(size=n) + label
    scores = [shared + 0.5 * random.normal(size=n) for _ in range(models)]
    return label, scores if digits is None else [np.round(score, digits) for score in scores]


def placements(label: NDArray[np.bool_], score: NDArray[np.float64]) -> NDArray[np.float64]:
    """The O(mn) definition: for every positive and negative, 1 where the positive scores higher, 1/2 for a tie."""
    difference = score[label][:, None] - score[~label][None, :]
    return np.asarray((difference > 0) + 0.5 * (difference == 0))


@given(st.integers(6, 80), st.integers(0, 10_000), st.sampled_from([0, 1, 9]))
def test_auc_is_that_of_scikit_learn_with_and_without_ties(n: int, seed: int, digits: int) -> None:
    label, (score,) = scored(n, seed, digits=digits)
    assert evaluation.auc(label, score) == pytest.approx(roc_auc_score(label, score), abs=1e-12)


@given(st.integers(6, 60), st.integers(0, 10_000), st.sampled_from([0, 1, 9]))
def test_placements_are_the_share_of_the_other_class_that_is_ranked_right(n: int, seed: int, digits: int) -> None:
    label, (score,) = scored(n, seed, digits=digits)
    wins, found = placements(label, score), evaluation.Ranking.of(label, score).placements()
    assert found[label] == pytest.approx(wins.mean(axis=1), abs=1e-12)
    assert found[~label] == pytest.approx(wins.mean(axis=0), abs=1e-12)


@given(st.integers(6, 60), st.integers(0, 10_000))
def test_a_click_that_counts_several_times_is_as_good_as_its_copies(n: int, seed: int) -> None:
    label, (score,) = scored(n, seed, digits=1)
    times = np.random.default_rng(seed).integers(0, 4, n)
    times[[0, 2]] = 1
    repeated = evaluation.auc(np.repeat(label, times), np.repeat(score, times))
    assert evaluation.Ranking.of(label, score).auc(times.astype(float)) == pytest.approx(repeated, abs=1e-12)


def test_the_bootstrap_has_the_distribution_of_resampling_with_scikit_learn() -> None:
    label, (score,) = scored(400, 11, digits=1)
    random = np.random.default_rng(0)
    resampled: list[float] = []
    while len(resampled) < 1_000:
        rows = random.integers(0, 400, 400)
        resampled.append(roc_auc_score(label[rows], score[rows]))
    replicates = evaluation.bootstrap_auc([evaluation.Ranking.of(label, score)], seed=1, replicates=1_000)[:, 0]
    spread = np.std(resampled)
    assert abs(replicates.mean() - np.mean(resampled)) < 4 * spread / np.sqrt(500)
    assert replicates.std() == pytest.approx(spread, rel=0.12)


def test_whole_ips_are_resampled_with_all_their_clicks() -> None:
    label, (score,) = scored(600, 12, digits=1)
    cluster = np.random.default_rng(2).integers(0, 60, 600)
    score = score + np.random.default_rng(3).normal(size=60)[cluster]
    random = np.random.default_rng(0)
    resampled = []
    for _ in range(400):
        rows = np.concatenate([np.flatnonzero(cluster == drawn) for drawn in random.integers(0, 60, 60)])
        resampled.append(roc_auc_score(label[rows], score[rows]))
    ranking = evaluation.Ranking.of(label, score)
    replicates = evaluation.bootstrap_auc([ranking], seed=1, replicates=400, cluster=cluster)[:, 0]
    assert abs(replicates.mean() - np.mean(resampled)) < 4 * np.std(resampled) / np.sqrt(200)
    assert replicates.std() == pytest.approx(np.std(resampled), rel=0.15)


def test_models_share_the_resamples_and_a_seed_fixes_them() -> None:
    label, (first, second) = scored(300, 5, models=2)
    rankings = [evaluation.Ranking.of(label, score) for score in (first, second)]
    pair = evaluation.bootstrap_auc(rankings, seed=9)
    assert pair.shape == (100, 2)
    assert np.array_equal(pair[:, 0], evaluation.evaluate(label, first, seed=9).bootstrap)
    assert np.corrcoef(pair[:, 0], pair[:, 1]).flat[1] > 0.5
    assert not np.array_equal(pair, evaluation.bootstrap_auc(rankings, seed=10))


def test_evaluation_of_a_day_without_installs_has_no_auc() -> None:
    result = evaluation.evaluate(np.zeros(50, np.uint8), np.linspace(0, 1, 50))
    assert result.as_dict() == {"clicks": 50, "installs": 0, "auc": None, "mean_bootstrap_auc": None}
    assert evaluation.evaluate(np.zeros(0), np.zeros(0)).auc is None


def test_a_resample_without_a_positive_is_drawn_again() -> None:
    label = np.zeros(40, np.uint8)
    label[7] = 1
    assert np.isfinite(evaluation.evaluate(label, np.arange(40.0)).bootstrap).all()


@pytest.mark.parametrize(
    ("label", "score", "message"),
    [
        ([0, 1], [0.5], "one score per label"),
        ([0, 2], [0.5, 0.5], "0 or 1"),
        ([0, 1], [0.5, np.nan], "1 scores are not finite"),
    ],
)
def test_bad_scores_are_named(label: list[int], score: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluation.evaluate(label, score)


def test_psi_is_near_zero_for_the_same_law_and_large_after_a_shift() -> None:
    features, _ = day(20_000, 0, 1)
    histograms = evaluation.reference(features, np.ones(len(features)))
    assert "day_of_week" not in histograms
    later, _ = day(20_000, 1, 2)
    once = np.ones(len(later))
    for name, histogram in histograms.items():
        assert sum(histogram["share"]) == pytest.approx(1)
        assert evaluation.psi(histogram, features[:, FEATURES.index(name)], once) == pytest.approx(0, abs=1e-9)
        assert evaluation.psi(histogram, later[:, FEATURES.index(name)], once) < 0.02
    assert evaluation.psi(histograms["ip_count"], later[:, 6] * 8, once) > 0.25
    assert evaluation.psi(histograms["app"], later[:, 0] + 500, once) > 0.25
    with pytest.raises(ValueError, match="no values"):
        evaluation.psi(histograms["app"], [], np.ones(0))


def test_psi_of_two_bins_by_hand() -> None:
    histogram = {"edges": [2.0], "share": [0.75, 0.25]}
    expected = pytest.approx(-0.25 * np.log(2 / 3) + 0.25 * np.log(2))
    assert evaluation.psi(histogram, [1, 1, 4, 8], np.ones(4)) == expected
    assert evaluation.psi(histogram, [1, 4, 8], np.array([2, 1, 1])) == expected, "a row that stands for two"


def test_a_day_above_the_cap_looks_as_the_whole_day_does() -> None:
    """Installs are all kept, others thinned out to a twentieth: the sample's rows alone would say something else."""
    features, label = day(60_000, 0, seed=1)
    features[:, 6] = np.where(label == 1, 64, features[:, 6])  # what installs look like is rare among all clicks
    capped = sample([(features, label, ips(len(label)))], cap=4_000)
    assert capped.negative_rate < 0.1
    histogram = evaluation.reference(features, np.ones(len(features)))["ip_count"]
    column = capped.features[:, 6]
    assert evaluation.psi(histogram, column, capped.weight) < 0.02
    assert evaluation.psi(histogram, column, np.ones(len(capped))) > 0.25, "which is a false alarm"

    probability = true_probability(features)
    whole = evaluation.calibration(label, probability, np.ones(len(label)), groups=5)
    predicted, observed = evaluation.calibration(
        capped.label, true_probability(capped.features), capped.weight, groups=5
    )
    assert predicted == pytest.approx(whole[0], rel=0.25)
    assert observed == pytest.approx(whole[1], rel=0.25)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_importance_finds_the_features_of_the_law(seed: int) -> None:
    features, label = day(40_000, 0, seed)
    lost = evaluation.importance(lambda x: true_probability(x).astype(np.float32), features, label, seed)
    assert {name for name, loss in lost.items() if loss > 0} == {"app", "ip_count"}
    assert {loss for name, loss in lost.items() if name not in ("app", "ip_count")} == {0}
    assert evaluation.importance(lambda x: x[:, 0], features, np.zeros(5_000)) == {}
