"""Other tools read the lake's tables, and never see a partial or doubled day, whatever is replaced meanwhile."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import polars as pl
import pyarrow.compute as pc
import pytest
from pyiceberg.catalog import load_catalog

from mlops_assets.lake import catalog
from mlops_assets.lake.store import Lake
from mlops_assets_tests.lake.test_store import DAY, OTHER_DAY, TABLE, write

pytestmark = pytest.mark.filterwarnings("ignore:Iceberg scan planning")

Found = tuple[int, int]
"""How many clicks of DAY a reader saw, and the sum of their arrival numbers."""

SIZES = (100, 40)


def whole(rows: int) -> Found:
    return rows + 5, sum(range(rows + 5))


def by_pyiceberg(root: Path) -> Found:
    """As docs/lake.md says."""
    table = load_catalog("lake", uri=f"sqlite:///{root}/catalog.db").load_table("mlops_assets.raw_clicks")
    rows = table.scan(f"day == '{DAY}'", selected_fields=("arrival",)).to_arrow()
    return rows.num_rows, pc.sum(rows["arrival"]).as_py()


def by_polars(root: Path) -> Found:
    table = load_catalog("lake", uri=f"sqlite:///{root}/catalog.db").load_table("mlops_assets.raw_clicks")
    rows = pl.scan_iceberg(table).filter(pl.col("day") == pl.lit(DAY).str.to_date()).select("arrival").collect()
    return len(rows), int(rows["arrival"].sum())


def by_duckdb(root: Path) -> Found:
    table = load_catalog("lake", uri=f"sqlite:///{root}/catalog.db").load_table("mlops_assets.raw_clicks")
    connection = table.scan().to_duckdb("clicks")
    query = f"SELECT count(*), sum(arrival)::BIGINT FROM clicks WHERE day = '{DAY}'"
    (found,) = connection.execute(query).fetchall()
    return found[0], found[1]


def by_duckdbs_own(root: Path) -> Found:
    """With DuckDB's extension, where it can be had."""
    connection = duckdb.connect()
    try:
        connection.execute("INSTALL iceberg; LOAD iceberg")
    except duckdb.Error as error:
        pytest.skip(f"no extension: {error}")
    table = catalog.load(str(root), TABLE)
    assert table
    query = f"SELECT count(*), sum(arrival)::BIGINT FROM iceberg_scan('{table.metadata_location}') WHERE day = '{DAY}'"
    (found,) = connection.execute(query).fetchall()
    return found[0], found[1]


@pytest.fixture
def replaced(tmp_path: Path) -> Iterator[Path]:
    """A lake one of whose days is replaced again and again, the other now and then."""
    lake, ended = Lake(str(tmp_path / "lake")), threading.Event()
    write(lake, 0, SIZES[0])

    def replace() -> None:
        number = 0
        while not ended.is_set():
            number += 1
            write(lake, 0, SIZES[number % 2], inputs=str(number))
            write(lake, day=OTHER_DAY, inputs=str(number // 3))

    writer = threading.Thread(target=replace)
    writer.start()
    yield Path(lake.root)
    ended.set()
    writer.join(60)


@pytest.mark.parametrize("read", [by_pyiceberg, by_polars, by_duckdb, by_duckdbs_own])
def test_a_reader_sees_whole_days_while_they_are_replaced(replaced: Path, read: Callable[[Path], Found]) -> None:
    seen = {read(replaced) for _ in range(12)}
    assert seen <= {whole(rows) for rows in SIZES}
    assert len(seen) == 2, "it was replaced meanwhile"
