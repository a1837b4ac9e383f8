"""A model as it is shipped: a folder of `model.onnx` and `model.json`. Needs numpy and onnxruntime only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions

from mlops_assets.clicks.features import FEATURES

ONNX_FILE: Final = "model.onnx"
DESCRIPTION_FILE: Final = "model.json"
GOLDEN_TOLERANCE: Final = 1e-5
"""How far, relatively, a machine's answer to a golden row may be from the answer of the machine that trained."""

KINDS: Final = {"version": str, "algorithm": str, "threshold": float, "features": list, "golden": dict}
"""What a description must have, and of which type."""

_BATCH: Final = 65_536


class ModelError(ValueError):
    """A model folder that can't be used; the message names the file and what is wrong with it."""


def session(onnx: bytes) -> InferenceSession:
    """A single-threaded ONNX session: batches are small, and a pod has a fraction of a core."""
    options = SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False  # it would keep the largest batch's memory for ever
    options.graph_optimization_level = GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    return InferenceSession(onnx, options, providers=["CPUExecutionProvider"])


class Model:
    """P(install) of clicks. Raises ModelError unless the golden rows get the probabilities of their description."""

    def __init__(self, onnx: bytes, description: dict[str, Any], source: str = "the model") -> None:
        self.description = description
        for name, kind in KINDS.items():
            if not isinstance(description.get(name), kind):
                raise ModelError(f"{source}: {DESCRIPTION_FILE} has no usable {name!r}; export the model again")
        if description["features"] != list(FEATURES):
            raise ModelError(
                f"{source}: trained on features {description['features']}, this version computes {list(FEATURES)}; "
                "train a model with this version"
            )
        try:
            self._session = session(onnx)
        except Exception as error:  # onnxruntime's errors share no base class
            raise ModelError(f"{source}: onnxruntime can't read {ONNX_FILE}: {error}") from error
        self._check_golden(source)

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Reads and verifies a model folder. Raises ModelError naming what is missing, unreadable or inconsistent."""
        folder = Path(folder)
        try:
            onnx = (folder / ONNX_FILE).read_bytes()
            description = json.loads((folder / DESCRIPTION_FILE).read_bytes())
        except OSError as error:
            raise ModelError(f"{folder} is no model folder: {error.strerror}: {error.filename}") from error
        except ValueError as error:
            raise ModelError(f"{folder / DESCRIPTION_FILE} is not JSON: {error}") from error
        if not isinstance(description, dict):
            raise ModelError(f"{folder / DESCRIPTION_FILE} holds no JSON object")
        return cls(onnx, description, str(folder))

    @property
    def version(self) -> str:
        """Names the model: equal for equal content."""
        return str(self.description["version"])

    @property
    def algorithm(self) -> str:
        """What kind of model it is."""
        return str(self.description["algorithm"])

    @property
    def threshold(self) -> float:
        """From this probability on a click is labelled an install."""
        return float(self.description["threshold"])

    def probability(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """P(install), shape (n,), for features of shape (n, 12) with columns as in FEATURES."""
        if not len(features):
            return np.empty(0, dtype=np.float32)
        # In bounded batches: the intermediate tensors of 60 M clicks would not fit.
        return np.concatenate(
            [
                self._session.run(["probability"], {"features": features[start : start + _BATCH]})[0]
                for start in range(0, len(features), _BATCH)
            ]
        )

    def _check_golden(self, source: str) -> None:
        golden = self.description["golden"]
        try:
            expected = np.array(golden["probability"], dtype=np.float32)
            actual = self.probability(np.array(golden["features"], dtype=np.float32))
        except Exception as error:  # onnxruntime's errors share no base class
            raise ModelError(f"{source}: the golden rows can't be scored: {error}") from error
        if not len(expected) or actual.shape != expected.shape:
            raise ModelError(f"{source}: {len(expected)} golden probabilities for {len(actual)} golden rows")
        wrong = ~np.isclose(actual, expected, rtol=GOLDEN_TOLERANCE, atol=1e-8)
        if wrong.any():
            row = int(np.argmax(wrong))
            raise ModelError(
                f"{source}: golden row {row} gets {actual[row]}, not {expected[row]}: model.json is of "
                "another model, or this machine's onnxruntime computes otherwise: write the folder again"
            )
