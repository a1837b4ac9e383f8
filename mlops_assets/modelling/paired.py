"""The paired test: whether one model ranks the same clicks better than another, where clicks come in clusters.

Clicks of an ip are no independent evidence: some ips make a tenth of a day, and a model that is wrong about one of
them is wrong about all its clicks. So the variance is taken over ips.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlops_assets.modelling.evaluation import Ranking


@dataclass(frozen=True, slots=True)
class Gain:
    """The gain in AUC of one model over another on the same clicks, and how sure it is.

    `variance` and `freedom` (degrees of freedom) are NaN where only one cluster holds a class: nothing tells then how
    much the gain would be with other clusters.
    """

    gain: float
    variance: float
    freedom: float

    @property
    def p_value(self) -> float:
        """One-sided: how likely equal models show such a gain. NaN where the variance is, 1 where it is 0."""
        if self.variance <= 1e-18:  # rounding alone: no cluster differs from another
            return 1.0
        from scipy.stats import t  # it takes seconds, in every process that has the graph

        return float(t.sf(self.gain / np.sqrt(self.variance), self.freedom))


def numbered(cluster: ArrayLike) -> NDArray[np.intp]:
    """Clusters of any names, shape (n,), as numbers from 0 on."""
    return np.unique(np.asarray(cluster), return_inverse=True)[1]


def paired_gain(ranking: Ranking, other: Ranking, label: NDArray[np.bool_], cluster: NDArray[np.intp]) -> Gain:
    """The gain of `ranking` over `other` on n clicks of both classes; `cluster` (n,) as `numbered` gives it.

    Obuchowski 1997 ("Nonparametric analysis of clustered ROC curve data", Biometrics 53): DeLong's variance with the
    placement values summed per cluster. Her factor I / (I - 1) for I clusters takes them as equally heavy. Where one
    holds a large share of a class the variance is then too small, so each cluster is corrected by its own share, as
    leaving it out would do (the cluster jackknife; MacKinnon, Nielsen & Webb 2023, "Fast and reliable jackknife and
    bootstrap methods for cluster-robust inference"): the same for equal clusters, and DeLong's for single clicks. Few
    heavy clusters also make the variance itself uncertain; Student's t with Satterthwaite's degrees of freedom takes
    that in (1946; Fay & Graubard 2001, "Small-sample adjustments for Wald-type tests using sandwich estimators").
    """
    difference = ranking.placements() - other.placements()
    gain = float(difference[label].mean())
    clusters = int(cluster.max()) + 1
    deviations, holding = [], []
    for mask in (label, ~label):
        clicks = np.bincount(cluster[mask], minlength=clusters)
        sums = np.bincount(cluster[mask], difference[mask] - gain, clusters)
        with np.errstate(divide="ignore", invalid="ignore"):
            deviations.append(sums / (clicks.sum() - clicks))
        holding.append(int(np.count_nonzero(clicks)))
    if min(holding) < 2:
        return Gain(gain, np.nan, np.nan)
    positive, negative = deviations
    variance = sum(
        (1 - 1 / count) * float(first @ second)
        for count, first, second in (
            (holding[0], positive, positive),
            (holding[1], negative, negative),
            (clusters, positive, 2 * negative),
        )
    )
    squares = np.square(positive + negative)
    fourth = float(squares @ squares)
    # Of normal deviations the fourth power is 3 times the squared variance. Theirs sum up to 0: one is not free.
    freedom = min(3 * float(squares.sum()) ** 2 / fourth, min(holding) - 1) if fourth else 1.0
    return Gain(gain, variance, freedom)
