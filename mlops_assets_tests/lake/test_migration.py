"""A lake in the layout before Iceberg becomes Iceberg tables: the same rows, the same versions, or nothing."""

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from mlops_assets.cli.migrate_lake import migrate_lake
from mlops_assets.lake import catalog
from mlops_assets.lake.ingest import INGEST_VERSION, ingest, quarantined
from mlops_assets.lake.landing import Landing
from mlops_assets.lake.migration import MigrationError, migrate
from mlops_assets.lake.store import LEDGER, Lake, Ledger, OldLayoutError
from mlops_assets.lake.tables import TABLES
from mlops_assets_tests.lake.test_ingest import DAY, HEADER, land, lines
from mlops_assets_tests.lake.test_ledger_table import decision

OLD_TYPES = {"arrival": pa.uint32(), "ip": pa.uint32(), "is_attributed": pa.uint8(), "probability": pa.float32()}
IDS = ("app", "device", "os", "channel")


def old_schema(dataset: str) -> pa.Schema:
    """The columns as they were: no day, unsigned numbers, milliseconds."""
    types = {**OLD_TYPES, **dict.fromkeys(IDS, pa.uint16())}
    times = dict.fromkeys(("click_time", "attributed_time"), pa.timestamp("ms", tz="UTC"))
    fields = [field for field in TABLES[dataset] if field.name != "day"]
    return pa.schema([pa.field(f.name, {**types, **times}.get(f.name, pa.uint32()), f.nullable) for f in fields])


def write_old(root: Path, dataset: str, rows: list[pa.Table], inputs: dict[str, str], **more: Any) -> dict[str, Any]:
    """A day as it lay, of one file for each table."""
    folder = root / dataset / f"date={DAY}"
    folder.mkdir(parents=True)
    files: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    for number, table in enumerate(rows):
        pq.write_table(table, folder / f"part-{number:05}.parquet", compression="zstd")
    if bad := more.pop("bad", None):
        (folder / "_quarantine.jsonl.gz").write_bytes(
            gzip.compress(b"".join(json.dumps(b).encode() + b"\n" for b in bad))
        )
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        count = pq.read_metadata(path).num_rows if path.suffix == ".parquet" else 0
        file = {"name": path.name, "rows": count, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        (others if path.name.startswith("_") else files).append(file)
    partition = {
        "dataset": dataset,
        "date": DAY,
        "version": hashlib.sha256("".join(file["sha256"] for file in files).encode()).hexdigest(),
        "rows": sum(file["rows"] for file in files),
        "files": files,
        "others": others,
        "inputs": inputs,
        **more,
    }
    (folder / "_manifest.json").write_text(json.dumps({"partition": partition}))
    return partition


@pytest.fixture
def old(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """An old lake in tmp_path/lake, by table, made of what today's ingest makes of the same landing file."""
    content = HEADER + b"".join(lines(300)) + b"nonsense\n"
    land(tmp_path / "new", content)
    new = Lake(str(tmp_path / "new"))
    raw = ingest(Landing(new.root), new, DAY)
    clicks = pa.Table.from_batches(new.read("raw_clicks", DAY))
    land(tmp_path / "lake", content)
    found: dict[str, dict[str, Any]] = {}
    for dataset in ("raw_clicks", "training_set", "batch_predictions"):
        schema = old_schema(dataset)
        columns = [clicks[f.name] if f.name in clicks.schema.names else pa.array([1] * 300, pa.int64()) for f in schema]
        table = pa.table([column.cast(f.type) for column, f in zip(columns, schema, strict=True)], schema=schema)
        raws = dataset == "raw_clicks"
        inputs = dict(raw.inputs) if raws else {"raw_clicks": found["raw_clicks"]["version"]}
        found[dataset] = write_old(
            tmp_path / "lake",
            dataset,
            [table] if raws else [table[:100], table[100:]],
            inputs,
            code_version=INGEST_VERSION if raws else "1",
            metadata=dict(raw.metadata) if raws else {"installs": 30},
            bad=quarantined(new, DAY) if raws else None,
        )
    return found


def run(root: Path, *options: str) -> str:
    result = CliRunner().invoke(migrate_lake, ["--lake", str(root), *options])
    assert result.exit_code == 0, result.output
    return result.output


def test_an_old_lake_is_refused_and_says_what_to_do(old: dict[str, Any], tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    for call in (
        lake.days,
        lambda name: lake.manifest(name, DAY),
        lambda name: lake.stage(name, DAY, inputs={}, code_version=""),
    ):
        with pytest.raises(OldLayoutError, match="run `mlops-assets migrate-lake`"):
            call("training_set")


def test_migrated_days_have_the_same_rows_versions_and_stories(old: dict[str, Any], tmp_path: Path) -> None:
    output = run(tmp_path / "lake")
    lake, new = Lake(str(tmp_path / "lake")), Lake(str(tmp_path / "new"))
    for dataset, before in old.items():
        after = lake.require(dataset, DAY)
        assert (after.rows, after.version, after.inputs) == (before["rows"], before["version"], before["inputs"])
        assert (after.code_version, after.metadata) == (before["code_version"], before["metadata"])
        assert f"{dataset} of {DAY}: 300 rows, version {before['version'][:12]}, as before" in output
    assert list(lake.read("raw_clicks", DAY)) == list(new.read("raw_clicks", DAY))
    assert quarantined(lake, DAY) == quarantined(new, DAY) != []
    assert ingest(Landing(lake.root), lake, DAY).version == old["raw_clicks"]["version"], "nothing is computed again"


def test_the_ledger_says_what_it_said(tmp_path: Path) -> None:
    lake, records = Lake(str(tmp_path)), [decision(number) for number in range(3)]
    for record in records:
        lake.append_record(LEDGER, record["time"].replace(":", ""), record)
    with pytest.raises(OldLayoutError, match="migrate-lake"):
        lake.ledger()
    with pytest.raises(OldLayoutError, match="migrate-lake"):
        lake.append_decision(decision(3), Ledger([], ()))
    assert "promotion_ledger: 3 decisions, as before" in run(tmp_path)
    assert lake.ledger().records == records
    lake.append_decision(decision(3), lake.ledger())
    assert "promotion_ledger: nothing to do" in run(tmp_path)
    assert "promotion_ledger: 3 old files deleted" in run(tmp_path, "--delete-old")
    assert lake.ledger().records == [*records, decision(3)]


def test_old_files_stay_until_told_and_a_second_run_does_nothing(old: dict[str, Any], tmp_path: Path) -> None:
    root = tmp_path / "lake"
    run(root)
    kept = {path: path.read_bytes() for path in root.rglob("date=*/*")}
    assert len(kept) == 9
    assert run(root).count("nothing to do") == 4
    assert "3 old files deleted" in run(root, "--delete-old")
    assert not list(root.rglob("date=*/*"))
    assert Lake(str(root)).days("raw_clicks") == [DAY]


def test_nothing_old_is_deleted_before_it_is_migrated(old: dict[str, Any], tmp_path: Path) -> None:
    result = CliRunner().invoke(migrate_lake, ["--lake", str(tmp_path / "lake"), "--delete-old"])
    assert result.exit_code == 1
    assert "raw_clicks has not been migrated: nothing was deleted" in result.output
    assert len(list((tmp_path / "lake").rglob("date=*/*"))) == 9


def test_a_damaged_file_stops_the_migration_before_its_table_is_there(old: dict[str, Any], tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    part = tmp_path / "lake" / "training_set" / f"date={DAY}" / "part-00001.parquet"
    whole = part.read_bytes()
    part.write_bytes(whole[:-1])
    with pytest.raises(MigrationError, match=r"part-00001.parquet is damaged"):
        migrate(lake, print)
    assert catalog.load(lake.root, "training_set") is None
    assert not list((tmp_path / "lake" / "training_set").rglob("data/**/*.parquet"))
    part.write_bytes(whole)
    migrate(lake, print)
    assert lake.require("training_set", DAY).rows == 300
