"""A fitted candidate as ONNX: `features` float32 (n, 12) in, `probability` float32 (n,) out.

The encoding of an id is a table look-up (Gather), whatever the algorithm. A logistic regression is then the sum of a
few look-ups, far cheaper than a one-hot encoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, checker, helper, numpy_helper
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline

from mlops_assets.clicks.features import FEATURES
from mlops_assets.inference.model import session
from mlops_assets.modelling.candidates import CATEGORIES, COUNT_COLUMNS, HOUR

OPSET: Final = {"": 18, "ai.onnx.ml": 3}
IR_VERSION: Final = 9

ABSOLUTE_TOLERANCE: Final = 1e-6
RELATIVE_TOLERANCE: Final = 1e-4
"""ONNX computes in float32, scikit-learn in float64: a probability p may differ by 1e-6 + 1e-4 p."""


class ParityError(ValueError):
    """The exported model does not compute what the scikit-learn model computes."""


def export(pipeline: Pipeline, negative_rate: float) -> bytes:
    """The ONNX file of a fitted candidate. The same pipeline gives the same bytes.

    `negative_rate` (Sample.negative_rate) multiplies the odds, which undoes the sampling of negatives.
    """
    graph = _Graph()
    if isinstance(pipeline[-1], LogisticRegression):
        _logistic_regression(graph, pipeline, negative_rate)
    else:
        _trees(graph, pipeline, negative_rate)
    model = graph.model(type(pipeline[-1]).__name__)
    checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def corrected(probability: NDArray[np.float64], negative_rate: float) -> NDArray[np.float64]:
    """Probabilities of a model trained on sampled negatives, brought back to the odds among all clicks."""
    return probability * negative_rate / (probability * negative_rate + 1 - probability)


def check_parity(onnx: bytes, pipeline: Pipeline, features: NDArray[np.float32], negative_rate: float) -> float:
    """The largest difference of a probability on `features`. Raises ParityError beyond the tolerance."""
    expected = corrected(pipeline.predict_proba(features)[:, 1], negative_rate)
    actual = session(onnx).run(["probability"], {"features": features})[0].astype(np.float64)
    difference = np.abs(actual - expected)
    excess = np.nan_to_num(difference, nan=np.inf) - (ABSOLUTE_TOLERANCE + RELATIVE_TOLERANCE * expected)
    worst = int(np.argmax(excess))
    if excess[worst] > 0:
        raise ParityError(
            f"ONNX gives {actual[worst]}, scikit-learn {expected[worst]} for "
            f"{dict(zip(FEATURES, features[worst].tolist(), strict=True))}; the tolerance is {ABSOLUTE_TOLERANCE} + "
            f"{RELATIVE_TOLERANCE} p. The model is not shipped: compare the installed versions of onnx, skl2onnx, "
            "onnxruntime and scikit-learn with the lock file"
        )
    return float(difference.max())


@dataclass
class _Graph:
    nodes: list[NodeProto] = field(default_factory=list)
    constants: list[TensorProto] = field(default_factory=list)

    def add(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def constant(self, name: str, value: NDArray[Any] | np.generic) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def columns(self, columns: Sequence[int], output: str) -> str:
        """The input's columns, which must be neighbours."""
        if list(columns) != list(range(columns[0], columns[-1] + 1)):
            raise ValueError(f"columns {columns} of the features are not neighbours")
        bounds = [self.constant(f"{output}_{i}", np.array([x])) for i, x in enumerate((columns[0], columns[-1] + 1, 1))]
        return self.add("Slice", ["features", *bounds], output)

    def look_up(self, ids: str, tables: Sequence[NDArray[np.float64]], output: str) -> str:
        """Ids (n, k) to values (n, k), a table per column; an id beyond its table gets the table's last value."""
        sizes = np.array([len(table) for table in tables])
        bounded = self.add("Min", [ids, self.constant("last_row", (sizes - 1).astype(np.float32))], "bounded")
        row = self.add("Max", [bounded, self.constant("first_row", np.float32(0))], "row")
        row = self.add("Cast", [row], "row_number", to=TensorProto.INT32)
        offsets = np.cumsum(sizes) - sizes
        position = self.add("Add", [row, self.constant("offset", offsets.astype(np.int32))], "position")
        return self.add("Gather", [self.constant("table", np.concatenate(tables).astype(np.float32)), position], output)

    def model(self, name: str) -> ModelProto:
        features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", len(FEATURES)])
        probability = helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["n"])
        graph = helper.make_graph(self.nodes, name, [features], [probability], self.constants)
        opsets = [helper.make_opsetid(domain, version) for domain, version in OPSET.items()]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


def _table(ids: NDArray[np.int64], values: NDArray[np.float64], unknown: float) -> NDArray[np.float64]:
    """A row per id up to the largest known one, and a last row for every other id."""
    table = np.full(int(ids.max(initial=-1)) + 2, unknown)
    table[ids] = values
    return table


def _logistic_regression(graph: _Graph, pipeline: Pipeline, negative_rate: float) -> None:
    encoding, regression = pipeline[0], pipeline[-1]
    known = [*encoding.named_transformers_["one_hot"].categories_, *encoding.named_transformers_["hour"].categories_]
    # The log-odds are a sum over columns. So the pipeline itself tells what an id adds to a click of unknown ids,
    # whatever the encodings behind it.
    nobody = np.ones((1, len(FEATURES)))  # every count is 1, and its logarithm 0
    for column, ids in zip(CATEGORIES + HOUR, known, strict=True):
        nobody[0, column] = ids.max() + 1
    base = pipeline.decision_function(nobody)[0]
    tables = []
    for column, ids in zip(CATEGORIES + HOUR, known, strict=True):
        clicks = np.repeat(nobody, len(ids), axis=0)
        clicks[:, column] = ids
        tables.append(_table(ids.astype(np.int64), pipeline.decision_function(clicks) - base, 0.0))
    count_weights = regression.coef_[0][encoding.output_indices_["counts"]]

    looked_up = graph.look_up(graph.columns(CATEGORIES + HOUR, "ids"), tables, "id_log_odds")
    axis = graph.constant("columns", np.array([1]))
    ids_sum = graph.add("ReduceSum", [looked_up, axis], "ids_sum", keepdims=0)
    log_counts = graph.add("Log", [graph.columns(COUNT_COLUMNS, "counts")], "log_counts")
    weights = graph.constant("count_weights", count_weights.astype(np.float32))
    counts_sum = graph.add("MatMul", [log_counts, weights], "counts_sum")
    intercept = graph.constant("intercept", np.float32(base + np.log(negative_rate)))
    log_odds = graph.add("Add", [graph.add("Add", [ids_sum, counts_sum], "sum"), intercept], "log_odds")
    graph.add("Sigmoid", [log_odds], "probability")


def _trees(graph: _Graph, pipeline: Pipeline, negative_rate: float) -> None:
    rate = pipeline[0][0].named_transformers_["rate"]
    tables = []
    for column, ids in enumerate(rate.categories_):
        clicks = np.zeros((len(ids), len(CATEGORIES)))
        clicks[:, column] = ids
        tables.append(_table(ids.astype(np.int64), rate.transform(clicks)[:, column], rate.target_mean_))

    rates = graph.look_up(graph.columns(CATEGORIES, "ids"), tables, "rates")
    numbers = [graph.columns(HOUR, "hour"), graph.columns(COUNT_COLUMNS, "counts")]
    encoded = graph.add("Concat", [rates, *numbers], "encoded", axis=1)
    width = len(CATEGORIES + HOUR + COUNT_COLUMNS)
    trees = to_onnx(
        pipeline[-1],
        initial_types=[(encoded, FloatTensorType([None, width]))],
        options={"zipmap": False, "output_class_labels": False},
        target_opset=OPSET,
        name="trees",
    ).graph
    graph.nodes.extend(trees.node)
    graph.constants.extend(trees.initializer)

    second = graph.constant("install", np.array(1))
    sampled = graph.add("Gather", [trees.output[1].name, second], "sampled", axis=1)
    odds = graph.add("Mul", [sampled, graph.constant("negative_rate", np.float32(negative_rate))], "kept")
    other = graph.add("Sub", [graph.constant("one", np.float32(1)), sampled], "other")
    graph.add("Div", [odds, graph.add("Add", [odds, other], "total")], "probability")
