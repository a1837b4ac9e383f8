"""Model folders small enough to write in a test."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mlops_assets.clicks.features import FEATURES


def write_model(folder: Path, version: str = "abc123", weight: float = 0.25) -> Path:
    """A logistic regression on 12 features with one weight for all, its golden rows computed with numpy."""
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["features", "weights"], ["logit"]),
            helper.make_node("Sigmoid", ["logit"], ["column"]),
            helper.make_node("Reshape", ["column", "flat"], ["probability"]),
        ],
        "logistic",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, 12])],
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, [None])],
        [
            numpy_helper.from_array(np.full((12, 1), weight, dtype=np.float32), "weights"),
            numpy_helper.from_array(np.array([-1], dtype=np.int64), "flat"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    features = np.linspace(-1, 1, 36, dtype=np.float32).reshape(3, 12)
    probability = 1 / (1 + np.exp(-(features.sum(axis=1) * weight)))
    golden = {"features": features.tolist(), "probability": probability.tolist()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(onnx.ModelProto.SerializeToString(model))
    description = {"version": version, "algorithm": "lr", "threshold": 0.5, "features": FEATURES, "golden": golden}
    (folder / "model.json").write_text(json.dumps(description))
    return folder
