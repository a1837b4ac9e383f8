"""The lake's tables, column by column, and the way between their rows and the domain's Clicks.

Iceberg knows no unsigned integers, so an id of 16 bits is an `int` and one of 32 bits a `long`. A column's number is
its field id: columns may be added at the end and renamed, and old files stay readable.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mlops_assets.clicks.features import COUNTS, features
from mlops_assets.clicks.schema import IDS, SECONDS_PER_DAY, Clicks

DAY: Final = "day"
"""The column by which every table is partitioned."""

SORTED_BY: Final = ("arrival", "line", "time")
"""A file's rows are in the order of this column of its table."""

_TIME: Final = pa.timestamp("us", tz="UTC")
_CLICK: Final = {
    DAY: (pa.date32(), "UTC day; the partition"),
    "arrival": (pa.int64(), "the click's number within its day, in the order of the landing file"),
    "click_time": (_TIME, "UTC, in whole seconds; ties are real, `arrival` tells them apart"),
    "ip": (pa.int64(), "anonymised address of the click"),
    "app": (pa.int32(), "id of the advertised app"),
    "device": (pa.int32(), "id of the device's type"),
    "os": (pa.int32(), "id of the operating system's version"),
    "channel": (pa.int32(), "id of the ad publisher's channel"),
}
_LABEL: Final = {"is_attributed": (pa.int32(), "1 where the click led to an install")}

GROUPED_BY: Final = {
    "ip_count": ("ip",),
    "ip_day_hour": ("ip",),
    "ip_hour_channel": ("ip", "channel"),
    "ip_hour_os": ("ip", "os"),
    "ip_hour_app": ("ip", "app"),
    "ip_hour_device": ("ip", "device"),
}
"""By which columns each count counts; all but `ip_count` within the hour."""


def _counted(name: str) -> str:
    within = "day" if name == "ip_count" else "hour"
    return f"clicks with the same {' and '.join(GROUPED_BY[name])} so far in the UTC {within}, this one included"


def _schema(columns: dict[str, tuple[pa.DataType, str]], nullable: tuple[str, ...] = ()) -> pa.Schema:
    return pa.schema(
        [
            pa.field(name, type_, name in nullable, {"PARQUET:field_id": str(number), "doc": doc})
            for number, (name, (type_, doc)) in enumerate(columns.items(), 1)
        ]
    )


RAW_CLICKS: Final = _schema(
    {**_CLICK, "attributed_time": (_TIME, "UTC time of the install, where there was one"), **_LABEL},
    nullable=("attributed_time",),
)
QUARANTINE: Final = _schema(
    {
        DAY: (pa.date32(), "the landing file's day; the partition"),
        "line": (pa.int64(), "number of the line in the landing file"),
        "reason": (pa.string(), "why it is no click of the day"),
        "raw": (pa.string(), "the line itself, what is no UTF-8 as backslash escapes"),
    }
)
TRAINING_SET: Final = _schema(
    {
        **_CLICK,
        "hour": (pa.int32(), "hour of the click, UTC"),
        "day_of_week": (pa.int32(), "Monday = 0, UTC"),
        **{name: (pa.int32(), _counted(name)) for name in COUNTS},
        **_LABEL,
    }
)
BATCH_PREDICTIONS: Final = _schema(
    {**_CLICK, "probability": (pa.float32(), "P(install) by the champion as of the day")}
)

_TEXT: Final = pa.string()
PROMOTION_LEDGER: Final = _schema(
    {
        "time": (_TEXT, "when it was decided, UTC, as 2017-11-06T03:00:00.000000+00:00; the order of the ledger"),
        DAY: (pa.date32(), "the day that was judged; for a person's decision the newest judged by then"),
        "kind": (_TEXT, "verdict (by the gate), or a person's forced, revoked or released"),
        "decided_by": (_TEXT, "who decided"),
        "reason": (_TEXT, "why"),
        "model_version": (_TEXT, "the model that was decided on; empty where the day had no candidate"),
        "run_id": (_TEXT, "its MLflow run"),
        "promoted": (pa.bool_(), "whether a verdict made it production's"),
        "historical": (pa.bool_(), "whether a later day had been judged before, so that nothing moved"),
        "pinned": (pa.bool_(), "whether no verdict may replace it until a person releases it"),
        "held": (_TEXT, "why a person's word kept the candidate out; empty if none did"),
        "champion_before": (_TEXT, "production's model before"),
        "champion_after": (_TEXT, "production's model after; for a verdict the day's champion"),
        "verdict": (_TEXT, "the gate's numbers, as JSON"),
        "gate": (_TEXT, "the settings that it was given by, as JSON"),
        "data_versions": (_TEXT, "the versions of the training sets it rests on by day, as JSON"),
    },
    nullable=(DAY, "champion_before", "champion_after"),
)
"""Every decision ever made about production's model. Rows are only ever appended, so it is not partitioned."""

_JSON: Final = ("verdict", "gate", "data_versions")

TABLES: Final = {
    "raw_clicks": RAW_CLICKS,
    "quarantine": QUARANTINE,
    "training_set": TRAINING_SET,
    "batch_predictions": BATCH_PREDICTIONS,
}
"""The tables of days, by name."""


def doc(field: pa.Field) -> str:
    """What a column of one of these tables is."""
    return str(field.metadata[b"doc"].decode())


def ledger_rows(records: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows of PROMOTION_LEDGER from decisions as plain values."""
    rows = [
        {
            **record,
            DAY: date.fromisoformat(record[DAY]) if record[DAY] else None,
            **{name: json.dumps(record[name], sort_keys=True) for name in _JSON},
        }
        for record in records
    ]
    return pa.Table.from_pylist(rows, schema=PROMOTION_LEDGER)


def ledger_records(rows: pa.Table) -> list[dict[str, Any]]:
    """The inverse."""
    return [
        {**row, DAY: str(row[DAY] or ""), **{name: json.loads(row[name]) for name in _JSON}} for row in rows.to_pylist()
    ]


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


def quarantine_rows(day: str, lines: list[dict[str, Any]]) -> pa.RecordBatch:
    """Rows of QUARANTINE from bad lines with their `line`, `reason` and `raw`."""
    rows = [{DAY: date.fromisoformat(day), **line} for line in lines]
    return pa.RecordBatch.from_pylist(rows, schema=QUARANTINE)


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
    day = (clicks.time // SECONDS_PER_DAY).astype("datetime64[D]")
    ids = {name: getattr(clicks, name) for name in IDS}
    return {DAY: day, "arrival": arrival, "click_time": _time(clicks.time), **ids}


def _time(values: NDArray[np.int64]) -> NDArray[np.datetime64]:
    return values.astype("datetime64[s]").astype("datetime64[us]")


def _batch(columns: dict[str, Any], schema: pa.Schema) -> pa.RecordBatch:
    arrays = [
        value
        if isinstance(value, pa.Array)
        else pa.array(np.ascontiguousarray(value)).cast(field.type)  # raises for a value out of the type's range
        for field, value in zip(schema, columns.values(), strict=True)
    ]
    return pa.record_batch(arrays, schema=schema)
