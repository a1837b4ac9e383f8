"""A file of the lake while it is written."""

from __future__ import annotations

import hashlib
import io
from typing import IO, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from mlops_assets.lake.manifest import Staged

ROW_GROUP_ROWS: Final = 262_144


class Part(io.RawIOBase):
    """A file being staged: takes Arrow data, or bytes. `staged` is set once its context ends."""

    parquet: pq.ParquetWriter
    staged: Staged

    def __init__(self, sink: IO[bytes]) -> None:
        self._sink = sink
        self._pending: list[pa.RecordBatch] = []
        self.rows = self.size = 0
        self.sha256 = hashlib.sha256()

    def write_rows(self, rows: pa.RecordBatch | pa.Table) -> None:
        """Adds rows. Row groups hold ROW_GROUP_ROWS whatever the sizes of the batches: content alone decides."""
        self._pending += rows.to_batches() if isinstance(rows, pa.Table) else [rows]
        self.rows += rows.num_rows
        self.flush_rows(ROW_GROUP_ROWS)

    def flush_rows(self, at_least: int) -> None:
        """Writes the pending rows in full row groups, as long as there are at least so many."""
        while sum(batch.num_rows for batch in self._pending) >= at_least:
            table = pa.Table.from_batches(self._pending)
            self.parquet.write_table(table.slice(0, ROW_GROUP_ROWS))
            self._pending = table.slice(ROW_GROUP_ROWS).to_batches()

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, data: Any, /) -> int:
        """Adds bytes."""
        self.sha256.update(data)
        self.size += len(data)
        self._sink.write(data)
        return len(data)
