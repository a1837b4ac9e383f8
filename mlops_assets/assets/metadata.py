"""What people read about a materialization in Dagster's UI: tables, columns, their origin, pictures."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from typing import Any

import dagster as dg
import pyarrow as pa

from mlops_assets.lake.manifest import Manifest
from mlops_assets.resources.spark import Usage

OWNERS = ["team:click-fraud"]


def of_partition(manifest: Manifest) -> dict[str, Any]:
    """A partition's size and identity, and whatever its writer noted."""
    noted = {
        name: dg.MetadataValue.json(value) if isinstance(value, Mapping | list) else value
        for name, value in manifest.metadata.items()
    }
    size = sum(file.bytes for file in manifest.files)
    return {"dagster/row_count": manifest.rows, "bytes": size, "version": manifest.version[:12], **noted}


def of_usage(usage: Usage) -> dict[str, Any]:
    """What the Spark job took that made a partition: the whole job, which may have made other days too."""
    cost = {} if usage.cost is None else {"spark/estimated_cost": usage.cost}
    return {
        "spark/where": usage.where,
        "spark/days": len(usage.days),
        "spark/rows": usage.rows,
        "spark/seconds": usage.seconds,
        "spark/cluster_seconds": usage.cluster_seconds,
        **cost,
    }


def column_schema(schema: pa.Schema, descriptions: Mapping[str, str]) -> dg.TableSchema:
    """The columns of a Parquet dataset as Dagster shows them."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                field.name,
                str(field.type),
                description=descriptions.get(field.name),
                constraints=dg.TableColumnConstraints(nullable=field.nullable),
            )
            for field in schema
        ]
    )


def column_lineage(asset: str, origins: Mapping[str, Iterable[str]]) -> dg.TableColumnLineage:
    """Which columns of the upstream `asset` each column is made of."""
    return dg.TableColumnLineage(
        {
            column: [dg.TableColumnDep(asset_key=dg.AssetKey(asset), column_name=origin) for origin in columns]
            for column, columns in origins.items()
        }
    )


def picture(png: bytes) -> dg.MarkdownMetadataValue:
    """A PNG shown in place."""
    return dg.MetadataValue.md(f"![plot](data:image/png;base64,{base64.b64encode(png).decode()})")


def table(rows: Iterable[Mapping[str, Any]]) -> dg.TableMetadataValue:
    """Rows of plain values as a table; a value that is missing or None is shown as an empty cell."""
    rows = list(rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [{name: row.get(name) for name in names} for row in rows]
    records = [dg.TableRecord({name: "" if cell is None else cell for name, cell in row.items()}) for row in cells]
    return dg.MetadataValue.table(records, schema=dg.TableSchema(columns=[dg.TableColumn(name) for name in names]))
