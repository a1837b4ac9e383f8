"""A model folder small enough to write by hand: a logistic regression as three ONNX nodes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mlops_assets.clicks.features import FEATURES

WEIGHTS = np.array([-0.02, 0.03, -0.01, 0.001, 0.05, -0.07, -3e-6, -1.1e-5, -2e-5, 1.3e-5, -1.7e-5, 1.9e-5], np.float32)


def sigmoid(features: NDArray[Any]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(3.0 - features.astype(np.float64) @ WEIGHTS.astype(np.float64)))


def write_model(folder: Path, version: str = "tiny-1", **changes: Any) -> Path:
    """Writes `model.onnx` and `model.json`; `changes` replace entries of the latter."""
    n = len(FEATURES)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["features", "weights"], ["product"]),
            helper.make_node("Add", ["product", "bias"], ["logit"]),
            helper.make_node("Sigmoid", ["logit"], ["probability"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, n])],
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, [None])],
        [numpy_helper.from_array(WEIGHTS, "weights"), numpy_helper.from_array(np.array([-3.0], np.float32), "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    rows = np.arange(3 * n, dtype=np.float32).reshape(3, n)
    text = {
        "version": version,
        "algorithm": "tiny",
        "features": list(FEATURES),
        "threshold": 0.05,
        "golden": {"features": rows.tolist(), "probability": sigmoid(rows).tolist()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(folder / "model.onnx"))
    (folder / "model.json").write_text(json.dumps(text | changes))
    return folder
