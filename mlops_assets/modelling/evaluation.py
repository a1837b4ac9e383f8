"""How good a model's probabilities are: ROC-AUC, its bootstrap, drift and importance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

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
    ranking = Ranking.of(label, probability)
    replicates = bootstrap_auc([ranking], seed)[:, 0]
    return Evaluation(len(label), installs, ranking.auc(), replicates, float(replicates.mean()))


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


@dataclass(frozen=True, slots=True)
class Ranking:
    """How a model ranks n clicks: a cell per click, such that the number of clicks in each cell determines the AUC.

    The distinct scores of positives are the levels. Cells 2i and 2i+1 hold the negatives between levels i-1 and i, and
    those equal to level i; cell 2*levels+1+i holds the positives of level i.
    """

    cell: NDArray[np.int32]
    levels: int

    @classmethod
    def of(cls, label: NDArray[np.bool_], score: NDArray[np.float64]) -> Ranking:
        """The ranking by n scores, in O(n log p) for p positives."""
        levels = np.unique(score[label])
        left = np.searchsorted(levels, score, side="left")
        cell = left + np.searchsorted(levels, score, side="right")
        cell[label] = 2 * len(levels) + 1 + left[label]
        return cls(cell.astype(np.int32), len(levels))

    def auc(self, times: NDArray[np.float64] | None = None) -> float:
        """How often a positive outranks a negative, ties counting half. NaN unless both classes occur.

        `times` (n,) is how often each click counts, once if not given.
        """
        negatives, positives = self._counts(times)
        below = np.cumsum(negatives)
        pairs = positives.sum() * below[-1]
        return float(positives @ (below[:-1:2] + negatives[1::2] / 2) / pairs) if pairs else float("nan")

    def placements(self) -> NDArray[np.float64]:
        """Placement values (n,): of a positive, the share of negatives that it outranks; of a negative, the share of
        positives that outrank it; ties count half. Either class's mean is the AUC. Both classes must occur."""
        negatives, positives = self._counts(None)
        below, above = np.cumsum(negatives), positives.sum() - np.cumsum(np.concatenate(([0], positives)))
        of_cell = np.empty(3 * self.levels + 1)
        of_cell[: 2 * self.levels + 1 : 2] = above / positives.sum()
        of_cell[1 : 2 * self.levels + 1 : 2] = (above[:-1] - positives / 2) / positives.sum()
        of_cell[2 * self.levels + 1 :] = (below[:-1:2] + negatives[1::2] / 2) / below[-1]
        return of_cell[self.cell]

    def _counts(self, times: NDArray[np.float64] | None) -> tuple[NDArray[Any], NDArray[Any]]:
        counts = np.bincount(self.cell, times, minlength=3 * self.levels + 1)
        return counts[: 2 * self.levels + 1], counts[2 * self.levels + 1 :]


def auc(label: NDArray[np.bool_], score: NDArray[np.float64]) -> float:
    """ROC-AUC: how often a positive outranks a negative, ties counting half. NaN unless both classes occur.

    Of a sample whose negatives were thinned out at random it is an estimate of the whole's as it is: sampling weights
    are the same within a class, and cancel.
    """
    return Ranking.of(label, score).auc()


def bootstrap_auc(
    rankings: Sequence[Ranking],
    seed: int,
    replicates: int = REPLICATES,
    cluster: NDArray[np.intp] | None = None,
) -> NDArray[np.float64]:
    """AUCs (replicates, k) of k models on resamples of the same n clicks, every model on the same resamples.

    With `cluster` (n,), numbers from 0 on, whole clusters are drawn with replacement; else single clicks. A resample
    without both classes is drawn again. A replicate costs O(n).
    """
    random = np.random.default_rng(seed)
    units = len(rankings[0].cell) if cluster is None else int(cluster.max()) + 1
    result = np.empty((replicates, len(rankings)))
    for replicate in range(replicates):
        result[replicate] = np.nan
        while np.isnan(result[replicate, 0]):
            drawn = random.integers(0, units, units)
            times = np.bincount(drawn, minlength=units).astype(np.float64)
            if cluster is not None:
                times = times[cluster]
            result[replicate] = [ranking.auc(times) for ranking in rankings]
    return result


def calibration(
    label: NDArray[Any], probability: NDArray[Any], weight: NDArray[np.float64], groups: int = 10
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean probability and share of installs, in groups of as many expected installs each, by growing probability.

    `weight` (n,) is how many clicks each of the n clicks stands for. Groups of equal size would put nearly all installs
    into the last one. A group without an install is left out.
    """
    order = np.argsort(probability, kind="stable")
    weight, expected = weight[order], probability[order] * weight[order]
    cumulated = np.cumsum(expected)
    group = np.minimum((cumulated / max(cumulated[-1], 1e-12) * groups).astype(int), groups - 1)
    clicks, predicted, installs = (
        np.bincount(group, each, groups) for each in (weight, expected, label[order] * weight)
    )
    shown = installs > 0
    return predicted[shown] / clicks[shown], installs[shown] / clicks[shown]


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
    histogram: dict[str, list[float]], values: NDArray[np.float32], weight: NDArray[np.float64]
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


def psi(reference: dict[str, list[float]], values: ArrayLike, weight: NDArray[np.float64]) -> float:
    """Population stability index of one feature's values against its histogram: sum of (a - e) ln(a / e).

    `weight` (n,) is how many clicks each value stands for. Below 0.1 is commonly read as stable, above 0.25 as drifted.
    An empty bin counts as a share of 0.0001. Raises ValueError without values.
    """
    values = np.asarray(values, dtype=np.float32)
    if not len(values):
        raise ValueError("no values to compare with the reference")
    expected = np.maximum(reference["share"], 1e-4)
    actual = np.maximum(_shares(reference, values, weight), 1e-4)
    return float(np.sum((actual - expected) * np.log(actual / expected)))
