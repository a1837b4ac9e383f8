"""The algorithms that compete for a day's candidate, as scikit-learn pipelines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, TargetEncoder
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from mlops_assets.clicks.features import COUNTS, FEATURES

CATEGORIES: Final = [FEATURES.index(name) for name in ("app", "device", "os", "channel")]
HOUR: Final = [FEATURES.index("hour")]
COUNT_COLUMNS: Final = [FEATURES.index(name) for name in COUNTS]
# day_of_week is in nobody's list: a window shorter than a week never saw the weekday it will predict.

SMOOTHING: Final = 50.0
"""Clicks of an id at which its install rate weighs as much as the window's in the target encoding."""

RARE: Final = 5
"""An id with fewer clicks in the window shares one weight with the ids never seen."""

FOLDS: Final = 5
"""Folds of the target encoding; a window needs as many clicks of each class for every fold to have one."""

RATE_FLOOR: Final = 1e-5


def log_rate(rate: NDArray[np.float64]) -> NDArray[np.float64]:
    """The logarithm of an encoded install rate, kept finite."""
    return np.log(np.maximum(rate, RATE_FLOOR))


def _install_rate(seed: int) -> TargetEncoder:
    # Fitted out of fold (cross-fitting), so that a rare id's own label does not leak into its encoding.
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    return TargetEncoder(target_type="binary", smooth=SMOOTHING, cv=folds)


def logistic_regression(seed: int) -> Pipeline:
    """A weight per app, device, os, channel and hour, the ids' smoothed install rates, and log-counts."""
    encoding = ColumnTransformer(
        [
            ("one_hot", OneHotEncoder(min_frequency=RARE, handle_unknown="infrequent_if_exist"), CATEGORIES),
            ("rate", make_pipeline(_install_rate(seed), FunctionTransformer(log_rate)), CATEGORIES),
            ("hour", OneHotEncoder(handle_unknown="ignore"), HOUR),
            ("counts", FunctionTransformer(np.log), COUNT_COLUMNS),
        ]
    )
    return make_pipeline(encoding, LogisticRegression(C=0.3, max_iter=2_000))


def _rates_and_numbers(seed: int) -> Pipeline:
    encoding = ColumnTransformer(
        [("rate", _install_rate(seed), CATEGORIES), ("numbers", "passthrough", HOUR + COUNT_COLUMNS)]
    )
    # Rounded here, ONNX's float32 thresholds split the very numbers that the trees were grown on.
    return make_pipeline(encoding, FunctionTransformer(np.float32))


def random_forest(seed: int) -> Pipeline:
    """Shallow trees on install rates, hour and counts. Bounded leaves bound the file, to some 300 KB."""
    trees = RandomForestClassifier(50, max_leaf_nodes=64, min_samples_leaf=10, random_state=seed, n_jobs=-1)
    return make_pipeline(_rates_and_numbers(seed), trees)


def gradient_boosting(seed: int) -> Pipeline:
    """Few, small, strongly regularised trees: even a big window has few installs."""
    trees = HistGradientBoostingClassifier(
        learning_rate=0.05,
        max_iter=100,
        max_leaf_nodes=8,
        min_samples_leaf=50,
        l2_regularization=10.0,
        early_stopping=False,
        random_state=seed,
    )
    return make_pipeline(_rates_and_numbers(seed), trees)


def fit(algorithm: str, features: NDArray[np.float32], label: NDArray[np.uint8], seed: int) -> Pipeline:
    """The algorithm of CANDIDATES, trained on features (n, 12), columns as in FEATURES, and label (n,).

    OpenMP and BLAS get one thread: the sums, and so the model's bytes, then do not depend on the number of cores.
    """
    with threadpool_limits(1):
        return CANDIDATES[algorithm](seed).fit(features, label)


CANDIDATES: Final[dict[str, Callable[[int], Pipeline]]] = {
    "LogisticRegression": logistic_regression,
    "HistGradientBoosting": gradient_boosting,
    "RandomForest": random_forest,
}
"""Fastest first: of equally good ones the first is chosen."""
