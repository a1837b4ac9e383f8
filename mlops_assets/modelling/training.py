"""Trains a day's candidate: the best algorithm on the training window, chosen inside the window, as an ONNX model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve

from mlops_assets.clicks.features import FEATURES
from mlops_assets.inference.model import DESCRIPTION_FILE, ONNX_FILE, Model, session
from mlops_assets.modelling.candidates import CANDIDATES, CATEGORIES, FOLDS, fit
from mlops_assets.modelling.evaluation import Ranking, reference
from mlops_assets.modelling.onnx import check_parity, corrected, export
from mlops_assets.modelling.paired import numbered, paired_gain
from mlops_assets.modelling.sample import Sample

SELECTION_ALPHA: Final = 0.05
GOLDEN_ROWS: Final = 32
PARITY_ROWS: Final = 50_000
_UNKNOWN_ID: Final = 65_535.0


class NothingToLearn(ValueError):  # noqa: N818 - a state of the data, not a fault
    """The training window lacks a class, so no model can be trained on it."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A trained model in memory: the content of its folder. Equal input gives equal bytes and an equal version."""

    algorithm: str
    onnx: bytes
    description: dict[str, Any]

    @property
    def version(self) -> str:
        """Names the model: equal for equal content."""
        return str(self.description["version"])

    @property
    def model(self) -> Model:
        """The verified model, ready to score."""
        return Model(self.onnx, self.description, f"candidate {self.version}")

    def write(self, folder: Path) -> None:
        """Writes `model.onnx` and `model.json` into the folder, which is created where missing."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ONNX_FILE).write_bytes(self.onnx)
        (folder / DESCRIPTION_FILE).write_text(json.dumps(self.description, indent=1, sort_keys=True) + "\n")


def train_candidate(window: Sample, *, day: str, trained_on: Sequence[str], seed: int = 0) -> Candidate:
    """The best candidate for `day`, trained on the sample of the days `trained_on` (in order, before `day`).

    The algorithms are compared on the tail of the window's last day, trained on what came before; the chosen one is
    trained again on the whole window. Raises NothingToLearn where the window lacks a class, and onnx.ParityError where
    the exported model computes something else than the trained one.
    """
    if window.installs in (0, len(window)):
        days = ", ".join(trained_on) or "no day"
        raise NothingToLearn(
            f"no candidate for {day}: {window.installs} of the {len(window)} clicks of its training window ({days}) "
            "led to an install, and a model needs both kinds of click"
        )
    algorithm, selection, validation = _select(window, seed)
    pipeline = fit(algorithm, window.features, window.label, seed)
    onnx = export(pipeline, window.negative_rate)
    check_parity(onnx, pipeline, _parity_rows(window), window.negative_rate)
    golden = _golden_rows(window)
    description: dict[str, Any] = {
        "algorithm": algorithm,
        "features": list(FEATURES),
        "threshold": validation.pop("threshold"),
        "trained_on": list(trained_on),
        "selection": selection,
        "validation": validation,
        "negative_rate": window.negative_rate,
        "clicks": len(window),
        "installs": window.installs,
        "reference": reference(window.features, window.weight),
        "golden": {
            "features": golden.tolist(),
            "probability": session(onnx).run(["probability"], {"features": golden})[0].tolist(),
        },
    }
    description["version"] = version_of(onnx, description)
    return Candidate(algorithm, onnx, description)


def version_of(onnx: bytes, description: dict[str, Any]) -> str:
    """12 hexadecimal digits of the SHA-256 of the ONNX file and the description without its own version."""
    canonical = json.dumps({k: v for k, v in description.items() if k != "version"}, sort_keys=True)
    return hashlib.sha256(hashlib.sha256(onnx).digest() + canonical.encode()).hexdigest()[:12]


def _tail(window: Sample) -> NDArray[np.bool_]:
    """Mask of the later half of the window's last day, by whole hours. Days come in order, a day's clicks need not."""
    weekday = window.features[:, FEATURES.index("day_of_week")]
    hour = window.features[:, FEATURES.index("hour")]
    changes = np.flatnonzero(np.diff(weekday))
    first = changes[-1] + 1 if len(changes) else 0
    tail = np.zeros(len(window), dtype=bool)
    tail[first:] = hour[first:] >= np.quantile(hour[first:], 0.5, method="higher")
    return tail


def _select(window: Sample, seed: int) -> tuple[str, dict[str, float], dict[str, float]]:
    """The chosen algorithm, the validation AUC of each, and the chosen one's threshold and calibration.

    CANDIDATES has the simplest first. A later one must be better than the best so far by the gate's paired test over
    ips: a window's tail has few installs, and the highest of three noisy AUCs is not the best model. With fewer than
    FOLDS clicks of a class on either side of the split nothing is compared and the simplest is taken.
    """
    tail = _tail(window)
    head, held_out = window.take(~tail), window.take(tail)
    best = next(iter(CANDIDATES))
    if any(min(part.installs, len(part) - part.installs) < FOLDS for part in (head, held_out)):
        return best, {}, {"threshold": 0.5}
    label, ips = held_out.label.astype(bool), numbered(held_out.ip)
    scores, rankings = {}, {}
    for name in CANDIDATES:
        scores[name] = fit(name, head.features, head.label, seed).predict_proba(held_out.features)[:, 1]
        rankings[name] = Ranking.of(label, scores[name])
        if name != best and paired_gain(rankings[name], rankings[best], label, ips).p_value < SELECTION_ALPHA:
            best = name
    probability = corrected(scores[best], window.negative_rate)
    validation = {
        "threshold": _threshold(held_out, probability),
        "installs": float(held_out.installs),
        "expected_installs": float(probability @ held_out.weight),
    }
    return best, {name: ranking.auc() for name, ranking in rankings.items()}, validation


def _threshold(held_out: Sample, probability: NDArray[np.float64]) -> float:
    """The probability from which on labelling a click an install has the best F1 score."""
    precision, recall, thresholds = precision_recall_curve(
        held_out.label, probability, sample_weight=held_out.weight, drop_intermediate=True
    )
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return float(thresholds[np.argmax(f1[:-1])])


def _with_strangers(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """The rows, and as many again with ids that no window has, one column after another."""
    strangers = features.copy()
    for offset, column in enumerate(CATEGORIES):
        strangers[offset :: len(CATEGORIES), column] = _UNKNOWN_ID
    return np.concatenate([features, strangers])


def _parity_rows(window: Sample) -> NDArray[np.float32]:
    step = max(1, len(window) // PARITY_ROWS)
    return _with_strangers(window.features[::step])


def _golden_rows(window: Sample) -> NDArray[np.float32]:
    """Rows spread over the window, half of them installs where there are as many, half of all with unknown ids."""
    classes = [window.features[window.label == label] for label in (0, 1)]
    spread = [rows[np.linspace(0, len(rows) - 1, GOLDEN_ROWS // 4).astype(int)] for rows in classes]
    return _with_strangers(np.concatenate(spread))
