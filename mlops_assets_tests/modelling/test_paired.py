from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import norm

from mlops_assets.modelling.evaluation import Ranking, auc
from mlops_assets.modelling.paired import Gain, numbered, paired_gain
from mlops_assets_tests.modelling.test_evaluation import placements, scored

Floats = NDArray[np.float64]


def gain_of(label: NDArray[np.bool_], score: Floats, other: Floats, cluster: NDArray[np.int64]) -> Gain:
    return paired_gain(Ranking.of(label, score), Ranking.of(label, other), label, numbered(cluster))


def difference(label: NDArray[np.bool_], score: Floats, other: Floats) -> Floats:
    return placements(label, score) - placements(label, other)


def delong(label: NDArray[np.bool_], score: Floats, other: Floats) -> float:
    """The variance of the gain by DeLong, DeLong & Clarke-Pearson 1988, from the definition in O(mn)."""
    wins = difference(label, score, other)
    by_positive, by_negative = wins.mean(axis=1), wins.mean(axis=0)
    return float(by_positive.var(ddof=1) / len(by_positive) + by_negative.var(ddof=1) / len(by_negative))


def obuchowski(label: NDArray[np.bool_], score: Floats, other: Floats, cluster: NDArray[np.int64]) -> float:
    """The variance of the gain by Obuchowski 1997, loop by loop: S10 / M + S01 / N + 2 S11 / MN."""
    wins = difference(label, score, other)
    theta = wins.mean()
    by_positive, by_negative = wins.mean(axis=1), wins.mean(axis=0)
    of_positive, of_negative = cluster[label], cluster[~label]
    m, n = len(of_positive), len(of_negative)
    s10 = s01 = s11 = 0.0
    for name in set(cluster.tolist()):
        x = sum(value - theta for value, of in zip(by_positive, of_positive, strict=True) if of == name)
        y = sum(value - theta for value, of in zip(by_negative, of_negative, strict=True) if of == name)
        s10, s01, s11 = s10 + x * x, s01 + y * y, s11 + x * y
    i10, i01, i = len(set(of_positive.tolist())), len(set(of_negative.tolist())), len(set(cluster.tolist()))
    s10, s01, s11 = s10 * i10 / ((i10 - 1) * m), s01 * i01 / ((i01 - 1) * n), s11 * i / (i - 1)
    return s10 / m + s01 / n + 2 * s11 / (m * n)


@given(st.integers(8, 60), st.integers(0, 10_000), st.sampled_from([0, 1, 9]))
def test_of_clicks_that_are_their_own_clusters_the_variance_is_delongs(n: int, seed: int, digits: int) -> None:
    label, (score, other) = scored(n, seed, models=2, digits=digits)
    found = gain_of(label, score, other, np.arange(n))
    assert found.gain == pytest.approx(auc(label, score) - auc(label, other), abs=1e-12)
    assert found.variance == pytest.approx(delong(label, score, other), abs=1e-12)


@given(st.integers(2, 8), st.integers(1, 3), st.integers(1, 3), st.integers(0, 10_000), st.sampled_from([0, 1, 9]))
def test_of_equal_clusters_the_variance_is_obuchowskis(
    clusters: int, positives: int, negatives: int, seed: int, digits: int
) -> None:
    random = np.random.default_rng(seed)
    label = np.tile(np.arange(positives + negatives) < positives, clusters)
    cluster = np.repeat(np.arange(clusters) * 7, positives + negatives)
    score, other = (np.round(random.normal(size=(2, clusters))[:, cluster // 7] + label, digits)) + 0.0
    order = random.permutation(len(label))
    label, cluster, score, other = label[order], cluster[order], score[order], other[order]
    found = gain_of(label, score, other, cluster)
    assert found.variance == pytest.approx(obuchowski(label, score, other, cluster), abs=1e-12)


@pytest.mark.parametrize("digits", [0, 9])
def test_of_many_light_clusters_it_is_obuchowskis_too(digits: int) -> None:
    label, (score, other) = scored(900, 5, models=2, digits=digits)
    cluster = np.random.default_rng(6).integers(0, 150, len(label))
    shared = 2 * np.random.default_rng(7).normal(size=150)[cluster]
    found = gain_of(label, score + shared, other, cluster)
    assert found.variance == pytest.approx(obuchowski(label, score + shared, other, cluster), rel=0.05)


def test_it_is_the_jackknife_over_clusters_where_they_are_uneven() -> None:
    random = np.random.default_rng(3)
    n, clusters = 3_000, 60
    share = 1 / np.arange(1, clusters + 1)
    errors = np.zeros(3)
    for _ in range(8):
        cluster = random.choice(clusters, n, p=share / share.sum())
        label = random.random(n) < 0.1
        score, other = random.normal(size=(2, n)) + label + random.normal(size=(2, clusters))[:, cluster]
        gain = auc(label, score) - auc(label, other)
        left_out = [auc(label[kept], score[kept]) - auc(label[kept], other[kept]) for kept in masks(cluster)]
        jackknife = (clusters - 1) / clusters * np.sum(np.square(np.array(left_out) - gain))
        ours, hers = gain_of(label, score, other, cluster).variance, obuchowski(label, score, other, cluster)
        errors += np.array([abs(ours - jackknife), abs(hers - jackknife), jackknife])
    assert errors[0] < 0.2 * errors[2]
    assert errors[1] > 1.5 * errors[0], "which takes all clusters as equally heavy"


def masks(cluster: NDArray[np.int64]) -> list[NDArray[np.bool_]]:
    """The clicks that remain when each cluster is left out."""
    return [cluster != name for name in np.unique(cluster)]


def test_many_even_clusters_leave_the_normal_law_and_two_heavy_ones_do_not() -> None:
    label, (score, other) = scored(50_000, 4, models=2)
    even = gain_of(label, score, other, np.arange(len(label)))
    assert even.p_value == pytest.approx(norm.sf(even.gain / np.sqrt(even.variance)), abs=1e-4)
    cluster = np.arange(len(label)) % 100 * (np.arange(len(label)) % 3)  # a third of the clicks come from cluster 0
    shared = np.random.default_rng(4).normal(size=200)[cluster]
    assert gain_of(label, score + shared, other, cluster).freedom < 20


def test_equal_rankings_are_no_gain_and_one_cluster_tells_nothing() -> None:
    label, (score, other) = scored(200, 3, models=2)
    cluster = np.arange(200) // 4
    assert gain_of(label, score, score, cluster).p_value == 1.0
    assert gain_of(label, score, np.exp(score), cluster).p_value == 1.0, "a monotone transform ranks alike"
    assert np.isnan(gain_of(label, score, other, np.zeros(200, int)).p_value)
    assert np.isnan(gain_of(label, score, other, np.where(label, 5, cluster)).p_value), "installs of one ip"
    single = np.zeros(50, dtype=bool)
    single[3] = True
    assert np.isnan(gain_of(single, score[:50], -score[:50], np.arange(50)).p_value)
