"""Plots of a model's quality, as PNG bytes."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import roc_curve

from mlops_assets.modelling import evaluation
from mlops_assets.modelling.evaluation import auc, checked


def roc(label: ArrayLike, probability: ArrayLike) -> bytes:
    """The ROC curve of n clicks, with its AUC. Both classes must occur. Sampling weights cancel: see `auc`."""
    labels, score = checked(label, probability)
    figure, axes = _figure("ROC", "false positive rate", "true positive rate")
    false_positives, true_positives, _ = roc_curve(labels, score)
    axes.plot(false_positives, true_positives, label=f"AUC {auc(labels, score):.4f}")
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="chance")
    axes.legend(loc="lower right")
    return _png(figure)


def calibration(label: ArrayLike, probability: ArrayLike, weight: NDArray[np.float64]) -> bytes:
    """Mean probability against share of installs, as `evaluation.calibration` gives them, on logarithmic axes."""
    labels, score = checked(label, probability)
    figure, axes = _figure("Calibration", "predicted probability", "share of installs")
    axes.loglog(*evaluation.calibration(labels, score, weight), "o-", label="model")
    ends = [max(float(score.min()), 1e-6), 1.0]
    axes.loglog(ends, ends, color="grey", linestyle=":", label="perfect")
    axes.legend(loc="lower right")
    return _png(figure)


def importance(lost: Mapping[str, float]) -> bytes:
    """Bars of the AUC lost by shuffling each feature, as `evaluation.importance` gives them."""
    figure, axes = _figure("Feature importance", "AUC lost when shuffled", "")
    names = sorted(lost, key=lambda name: lost[name])
    axes.barh(names, [lost[name] for name in names])
    return _png(figure)


def _figure(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5, 4), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    return figure, axes


def _png(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})  # the same figure gives the same bytes
    return buffer.getvalue()
