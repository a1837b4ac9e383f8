"""A Parquet file of the lake while it is written."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from typing import IO, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from mlops_assets.lake.manifest import File

ROW_GROUP_ROWS: Final = 262_144

STORY: Final = b"mlops-assets"
"""The key in a Parquet footer under which a file says what its day was made of, and what its writer noted, as JSON."""

_OPTIONS: Final = {"compression": "zstd", "compression_level": 1, "version": "2.6"}
"""Fixed: the bytes of the data are the day's identity."""


class Part(io.RawIOBase):
    """A file being written. `file` is set once it is closed; what was noted by then lies in its footer."""

    file: File

    def __init__(self, key: str, sink: IO[bytes], schema: pa.Schema) -> None:
        self.rows = self.size = 0
        self.notes: dict[str, Any] = {}
        self.sha256: str | None = None  # given only where the rows have had a name before, see migration.py
        self._key, self._sink = key, sink
        self._pending: list[pa.RecordBatch] = []
        self._sha256 = hashlib.sha256()
        self._parquet = pq.ParquetWriter(self, schema, **_OPTIONS)

    def write_rows(self, rows: pa.RecordBatch | pa.Table) -> None:
        """Adds rows. Row groups hold ROW_GROUP_ROWS whatever the sizes of the batches: content alone decides."""
        self._pending += rows.to_batches() if isinstance(rows, pa.Table) else [rows]
        self.rows += rows.num_rows
        self._flush_rows(ROW_GROUP_ROWS)

    def finish(self, inputs: Mapping[str, str], code_version: str) -> None:
        """Writes the rest and the footer, which says what the day was made of."""
        self._flush_rows(1)
        digest = self.sha256 or self._sha256.hexdigest()
        story = {"inputs": dict(inputs), "code_version": code_version, "sha256": digest, "notes": self.notes}
        self._parquet.add_key_value_metadata({STORY: json.dumps(story, sort_keys=True).encode()})
        self._parquet.close()
        self.file = File(self._key, self.rows, self.size, digest, self.notes)

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, data: Any, /) -> int:
        """Takes the bytes of the Parquet file."""
        self._sha256.update(data)
        self.size += len(data)
        self._sink.write(data)
        return len(data)

    def _flush_rows(self, at_least: int) -> None:
        while sum(batch.num_rows for batch in self._pending) >= at_least:
            table = pa.Table.from_batches(self._pending)
            self._parquet.write_table(table.slice(0, ROW_GROUP_ROWS))
            self._pending = table.slice(ROW_GROUP_ROWS).to_batches()


def story(footer: pq.FileMetaData) -> dict[str, Any]:
    """What a file says of its day: `inputs`, `code_version`, `sha256` and `notes`. Empty for another tool's file."""
    found: dict[str, Any] = json.loads((footer.metadata or {}).get(STORY, b"{}"))
    return found
