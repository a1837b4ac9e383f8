"""The lake's tables of clicks as Arrow knows them, and the way between their rows and the domain's Clicks.

`arrival` is a click's number within its day, in the order of the landing file.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mlops_assets.clicks.features import COUNTS, features
from mlops_assets.clicks.schema import IDS, Clicks

_TIME: Final = pa.timestamp("ms", tz="UTC")  # Parquet has no seconds
_ID_TYPES: Final = {"ip": pa.uint32(), **{name: pa.uint16() for name in IDS[1:]}}
_CLICK: Final = {"arrival": pa.uint32(), "click_time": _TIME, **_ID_TYPES}


def _schema(types: dict[str, pa.DataType], nullable: tuple[str, ...] = ()) -> pa.Schema:
    return pa.schema([pa.field(name, type_, nullable=name in nullable) for name, type_ in types.items()])


RAW_CLICKS: Final = _schema(
    {**_CLICK, "attributed_time": _TIME, "is_attributed": pa.uint8()}, nullable=("attributed_time",)
)
TRAINING_SET: Final = _schema(
    {
        **_CLICK,
        "hour": pa.uint8(),
        "day_of_week": pa.uint8(),
        **dict.fromkeys(COUNTS, pa.uint32()),
        "is_attributed": pa.uint8(),
    }
)
BATCH_PREDICTIONS: Final = _schema({**_CLICK, "probability": pa.float32()})


def raw_rows(clicks: Clicks, first_arrival: int) -> pa.RecordBatch:
    """Rows of RAW_CLICKS, numbered from `first_arrival`; the clicks have `label` and `attributed_time`."""
    if clicks.attributed_time is None:
        raise ValueError("raw clicks have an attributed_time, -1 where there was no install")
    columns = {
        **_click_columns(clicks, np.arange(first_arrival, first_arrival + len(clicks))),
        "attributed_time": pa.array(_time(clicks.attributed_time), _TIME, mask=clicks.attributed_time < 0),
        "is_attributed": clicks.label,
    }
    return _batch(columns, RAW_CLICKS)


def training_rows(clicks: Clicks, arrival: NDArray[Any], counts: NDArray[np.uint32]) -> pa.RecordBatch:
    """Rows of TRAINING_SET from clicks with their label, their arrival numbers (n,) and their counts (n, 6)."""
    hour, day_of_week = features(clicks, counts)[:, 4:6].T
    columns = {
        **_click_columns(clicks, arrival),
        "hour": hour,
        "day_of_week": day_of_week,
        **dict(zip(COUNTS, counts.T, strict=True)),
        "is_attributed": clicks.label,
    }
    return _batch(columns, TRAINING_SET)


def column(rows: pa.RecordBatch | pa.Table, name: str) -> NDArray[Any]:
    """A column without nulls as numpy."""
    values = rows.column(name)
    return np.asarray(values.to_numpy() if isinstance(values, pa.ChunkedArray) else values.to_numpy(False))


def _click_columns(clicks: Clicks, arrival: NDArray[Any]) -> dict[str, Any]:
    return {"arrival": arrival, "click_time": _time(clicks.time), **{name: getattr(clicks, name) for name in IDS}}


def _time(values: NDArray[np.int64]) -> NDArray[np.datetime64]:
    return values.astype("datetime64[s]").astype("datetime64[ms]")


def _batch(columns: dict[str, Any], schema: pa.Schema) -> pa.RecordBatch:
    arrays = [
        value
        if isinstance(value, pa.Array)
        else pa.array(np.ascontiguousarray(value)).cast(field.type)  # raises for a value out of the type's range
        for field, value in zip(schema, columns.values(), strict=True)
    ]
    return pa.record_batch(arrays, schema=schema)
