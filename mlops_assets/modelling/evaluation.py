"""How good a model's probabilities are: ROC-AUC, its bootstrap, DeLong's test, drift and importance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm, rankdata

from mlops_assets.clicks.features import COUNTS, FEATURES

REPLICATES: Final = 100


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A model on one day's clicks. `auc` and `mean` are None, and `bootstrap` is empty, unless both classes occur."""

    clicks: int
    installs: int
    auc: float | None
    bootstrap: NDArray[np.float64]
    mean: float | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON and for metadata, without the single replicates."""
        return {"clicks": self.clicks, "installs": self.installs, "auc": self.auc, "mean_bootstrap_auc": self.mean}


def evaluate(label: ArrayLike, probability: ArrayLike, seed: int = 0) -> Evaluation:
    """ROC-AUC on n clicks, and on REPLICATES bootstrap resamples of them. Raises ValueError as `checked` does."""
    label, probability = checked(label, probability)
    installs = int(np.count_nonzero(label))
    if installs in (0, len(label)):
        return Evaluation(len(label), installs, None, np.empty(0), None)
    replicates = bootstrap_auc(label, [probability], seed)[:, 0]
    return Evaluation(len(label), installs, auc(label, probability), replicates, float(replicates.mean()))


def checked(label: ArrayLike, score: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Both as arrays of shape (n,). Raises ValueError for other shapes, labels other than 0 and 1, NaN or infinity."""
    label, score = np.asarray(label), np.asarray(score)
    if label.ndim != 1 or label.shape != score.shape:
        raise ValueError(f"{label.shape} labels and {score.shape} scores; want one score per label")
    if not np.isin(label, (0, 1)).all():
        raise ValueError("a label must be 0 or 1")
    if not np.isfinite(score).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(score))} scores are not finite numbers")
    return label.astype(bool), score.astype(np.float64)


def auc(label: NDArray[np.bool_], score: NDArray[np.float64]) -> float:
    """ROC-AUC: how often a positive outranks a negative, ties counting half. Both classes must occur."""
    cell, levels = _cells(label, score)
    return _auc(np.bincount(cell, minlength=3 * levels + 1), levels)


def _cells(label: NDArray[np.bool_], score: NDArray[np.float64]) -> tuple[NDArray[np.int32], int]:
    """A cell per click, such that the number of clicks in each cell determines the AUC.

    The distinct scores of positives are the levels. Cells 2i and 2i+1 hold the negatives between levels i-1 and i, and
    those equal to level i; cell 2*levels+1+i holds the positives of level i.
    """
    levels = np.unique(score[label])
    left = np.searchsorted(levels, score, side="left")
    cell = left + np.searchsorted(levels, score, side="right")
    cell[label] = 2 * len(levels) + 1 + left[label]
    return cell.astype(np.int32), len(levels)


def _auc(counts: NDArray[np.intp], levels: int) -> float:
    negatives, positives = counts[: 2 * levels + 1], counts[2 * levels + 1 :]
    below = np.cumsum(negatives)
    wins = positives @ (below[:-1:2] + negatives[1::2] / 2)
    return float(wins / (positives.sum() * below[-1]))


def bootstrap_auc(
    label: NDArray[np.bool_], scores: Sequence[NDArray[np.float64]], seed: int, replicates: int = REPLICATES
) -> NDArray[np.float64]:
    """AUCs (replicates, k) of k models on resamples of the n clicks, every model on the same resamples.

    A resample without both classes is drawn again. The scores are sorted once; a replicate costs O(n).
    """
    random = np.random.default_rng(seed)
    cells = [_cells(label, score) for score in scores]
    result = np.empty((replicates, len(scores)))
    for replicate in range(replicates):
        while True:
            drawn = random.integers(0, len(label), len(label))
            if 0 < np.count_nonzero(label[drawn]) < len(label):
                break
        for model, (cell, levels) in enumerate(cells):
            result[replicate, model] = _auc(np.bincount(cell[drawn], minlength=3 * levels + 1), levels)
    return result


def delong(
    label: NDArray[np.bool_], scores: Sequence[NDArray[np.float64]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """AUCs (k,) of k models on the same clicks, and their covariance (k, k), in O(n log n).

    DeLong, DeLong & Clarke-Pearson 1988, by the midranks of Sun & Xu 2014 ("Fast Implementation of DeLong's
    Algorithm"). Both classes must occur twice at least, else the covariance is NaN.
    """
    positives, negatives = np.count_nonzero(label), np.count_nonzero(~label)
    of_positives, of_negatives = np.empty((len(scores), positives)), np.empty((len(scores), negatives))
    for model, score in enumerate(scores):
        ranks = rankdata(score)
        of_positives[model] = (ranks[label] - rankdata(score[label])) / negatives
        of_negatives[model] = 1 - (ranks[~label] - rankdata(score[~label])) / positives
    if min(positives, negatives) < 2:
        covariance = np.full((len(scores), len(scores)), np.nan)
    else:
        covariance = np.atleast_2d(np.cov(of_positives)) / positives + np.atleast_2d(np.cov(of_negatives)) / negatives
    return of_positives.mean(axis=1), covariance


def p_better(label: NDArray[np.bool_], score: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """One-sided p-value of DeLong's paired test that `score` has a greater AUC than `other` on the same clicks.

    NaN where a class occurs less than twice; 1 where the two rank the clicks alike.
    """
    (first, second), covariance = delong(label, [score, other])
    gain = first - second
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    if variance <= 1e-18:  # rounding alone: no click's placement differs, but for a constant
        return 0.0 if gain > 1e-9 else 1.0
    return float(norm.sf(gain / np.sqrt(variance)))


def importance(
    predict: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    features: NDArray[np.float32],
    label: ArrayLike,
    seed: int = 0,
    cap: int = 50_000,
) -> dict[str, float]:
    """The AUC lost when a feature's values are shuffled among the clicks (permutation importance, Breiman 2001).

    On all positives and as many negatives as make up at most `cap` clicks. Empty unless both classes occur.
    """
    random = np.random.default_rng(seed)
    labels = np.asarray(label).astype(bool)
    positives, negatives = np.flatnonzero(labels)[:cap], np.flatnonzero(~labels)
    if not len(positives) or not len(negatives):
        return {}
    rest = min(len(negatives), max(cap - len(positives), len(positives)))
    chosen = np.concatenate([positives, random.choice(negatives, rest, replace=False)])
    features, labels = features[chosen], labels[chosen]
    whole = auc(labels, predict(features).astype(np.float64))
    lost = {}
    for column, name in enumerate(FEATURES):
        shuffled = features.copy()
        shuffled[:, column] = random.permutation(shuffled[:, column])
        lost[name] = whole - auc(labels, predict(shuffled).astype(np.float64))
    return lost


MONITORED: Final = tuple(name for name in FEATURES if name != "day_of_week")
"""Features whose drift is watched. The weekday of a day is another one every day."""

_TOP_IDS: Final = 20
_COUNT_EDGES: Final = [2.0**i for i in range(1, 13)]


def reference(features: NDArray[np.float32], weight: NDArray[np.float64]) -> dict[str, dict[str, list[float]]]:
    """A histogram per monitored feature, to compare later days with by `psi`.

    `weight` (n,) is how many clicks a row stands for. A count's bins are between powers of two (`edges`), an id's or
    hour's are its most frequent values (`values`) and a last one for all others.
    """
    result = {}
    for name in MONITORED:
        column = features[:, FEATURES.index(name)]
        histogram: dict[str, list[float]]
        if name in COUNTS:
            histogram = {"edges": _COUNT_EDGES}
        else:
            values, index = np.unique(column, return_inverse=True)
            most = np.argsort(-np.bincount(index, weights=weight), kind="stable")[: 24 if name == "hour" else _TOP_IDS]
            histogram = {"values": np.sort(values[most]).astype(float).tolist()}
        histogram["share"] = _shares(histogram, column, weight).tolist()
        result[name] = histogram
    return result


def _shares(
    histogram: dict[str, list[float]], values: NDArray[np.float32], weight: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    if "edges" in histogram:
        index = np.searchsorted(histogram["edges"], values, side="right")
        bins = len(histogram["edges"]) + 1
    else:
        known = np.array(histogram["values"])
        bins = len(known) + 1
        index = np.minimum(np.searchsorted(known, values), bins - 2)
        index = np.where(known[index] == values, index, bins - 1)
    counts = np.bincount(index, weights=weight, minlength=bins)
    return np.asarray(counts / counts.sum())


def psi(reference: dict[str, list[float]], values: ArrayLike) -> float:
    """Population stability index of one feature's values against its histogram: sum of (a - e) ln(a / e).

    Below 0.1 is commonly read as stable, above 0.25 as drifted. An empty bin counts as a share of 0.0001. Raises
    ValueError without values.
    """
    values = np.asarray(values, dtype=np.float32)
    if not len(values):
        raise ValueError("no values to compare with the reference")
    expected = np.maximum(reference["share"], 1e-4)
    actual = np.maximum(_shares(reference, values), 1e-4)
    return float(np.sum((actual - expected) * np.log(actual / expected)))
