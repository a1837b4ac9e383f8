"""Ingest: rows in = rows out + rows quarantined, and what can't be a day's clicks says so."""

import gzip
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest

from mlops_assets.clicks import csv
from mlops_assets.lake import ingest as ingest_module
from mlops_assets.lake.duplicates import Duplicates
from mlops_assets.lake.ingest import IngestError, ingest, quarantined
from mlops_assets.lake.landing import Landing
from mlops_assets.lake.store import Lake
from mlops_assets_tests.lake.test_store import snapshot

DAY = "2017-11-07"
HEADER = b"ip,app,device,os,channel,click_time,attributed_time,is_attributed\n"


def lines(n: int, seed: int = 0) -> list[bytes]:
    rng = np.random.default_rng(seed)
    seconds = np.sort(rng.integers(0, 80_000, n))
    times = (pd.Timestamp(DAY) + pd.to_timedelta(seconds, unit="s")).strftime("%Y-%m-%d %H:%M:%S")
    ids = rng.integers(0, 3_000, (n, 5))
    installs = rng.random(n) < 0.1
    ends = [f"{time},1" if install else ",0" for time, install in zip(times, installs, strict=True)]
    return [
        f"{','.join(map(str, row))},{time},{end}\n".encode()
        for row, time, end in zip(ids.tolist(), times, ends, strict=True)
    ]


def land(root: Path, content: bytes, *, compressed: bool = True) -> None:
    (root / "landing").mkdir(parents=True, exist_ok=True)
    (root / "landing" / f"{DAY}.csv.gz").write_bytes(gzip.compress(content) if compressed else content)


def run(root: Path):  # type: ignore[no-untyped-def]
    return ingest(Landing(str(root)), Lake(str(root)), DAY)


def test_the_partition_equals_what_pandas_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlops_assets.clicks.csv.BLOCK", 10_000)  # many blocks
    content = HEADER + b"".join(lines(3_000))
    land(tmp_path, content)
    manifest = run(tmp_path)
    raw = pl.read_parquet(f"{tmp_path}/raw_clicks/**/*.parquet").to_pandas()
    (tmp_path / "plain.csv").write_bytes(content)
    expected = pd.read_csv(tmp_path / "plain.csv", parse_dates=["click_time", "attributed_time"])
    assert raw["arrival"].tolist() == list(range(3_000))
    for name in ("ip", "app", "device", "os", "channel", "is_attributed"):
        assert raw[name].tolist() == expected[name].tolist(), name
    for name in ("click_time", "attributed_time"):
        assert raw[name].dt.tz_convert(None).astype("datetime64[ns]").equals(expected[name])
    assert manifest.metadata["installs"] == expected["is_attributed"].sum()
    assert (manifest.rows, manifest.metadata["rows_in"], manifest.others) == (3_000, 3_000, ())


def test_reordered_columns_bom_and_crlf_change_nothing(tmp_path: Path) -> None:
    plain, odd = tmp_path / "plain", tmp_path / "odd"
    land(plain, HEADER + b"".join(lines(50)))
    order = [7, 5, 6, 0, 1, 2, 3, 4]
    rows = [line.rstrip(b"\n").split(b",") for line in [HEADER, *lines(50)]]
    land(odd, b"\xef\xbb\xbf" + b"".join(b",".join(row[i] for i in order) + b"\r\n" for row in rows))
    assert run(plain).version == run(odd).version


def test_bad_lines_are_quarantined_with_line_and_reason_and_none_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlops_assets.clicks.csv.BLOCK", 4_000)
    good = lines(300)
    bad = {
        3: b"x,1,1,1,1,2017-11-07 00:00:01,,0",
        40: b"1,70000,1,1,1,2017-11-07 00:00:01,,0",
        41: b"1,1,1,1,1,2017-11-31 00:00:01,,0",
        150: b"1,1,1,1,1,2017-11-08 00:00:00,,0",
        151: b"1,1,1,1,1,2017-11-06 23:59:59,,0",
        200: b"1,1,1",
        250: b"\xff\xfe,1,1,1,1,2017-11-07 00:00:01,,0",
    }
    every = iter(good)
    body = [bad[number] + b"\n" if number in bad else next(every) for number in range(2, 302 + len(bad))]
    land(tmp_path, HEADER + b"".join(body))
    manifest = run(tmp_path)
    kept = quarantined(Lake(str(tmp_path)), DAY)
    assert [entry["line"] for entry in kept] == list(bad)
    assert [entry["raw"] for entry in kept] == [raw.decode("utf-8", "backslashreplace") for raw in bad.values()]
    assert [entry["reason"] for entry in kept][3:5] == ["click_time is not on 2017-11-07"] * 2
    assert manifest.rows == 300
    assert manifest.metadata["rows_in"] == 307 == manifest.rows + sum(manifest.metadata["quarantined"].values())
    clean = tmp_path / "clean"
    land(clean, HEADER + b"".join(good))
    assert run(clean).version == manifest.version


def test_the_manifest_says_from_which_arrival_on_an_hour_is_over(tmp_path: Path) -> None:
    every, wrong = lines(20_000), lines(500, seed=1)
    for number in range(500):
        every[40 * number] = wrong[-number]  # clicks of any time of the day
    land(tmp_path, HEADER + b"".join(every))
    manifest = run(tmp_path)
    midnight = int(pd.Timestamp(DAY).timestamp())
    arrivals, over = np.array(manifest.metadata["hours_over"]).T
    hours = (over - midnight) // 3_600
    assert hours.tolist() == list(range(-1, 22))
    # A click comes every 4 seconds, and half of 256 clicks must be past the hour.
    delays = arrivals[1:] * 4 - (hours[1:] * 3_600 + 600)
    assert delays.min() >= 4 * 128
    assert delays.max() < 4 * (2 * 256 + 128)
    shuffled = tmp_path / "shuffled"
    land(shuffled, HEADER + b"".join(np.random.default_rng(0).permutation(np.array(every, dtype=object))))
    assert run(shuffled).metadata["hours_over"] == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1: no header"),
        (HEADER, "line 2: no clicks.*deliver the day again"),
        (HEADER.replace(b"os,", b"") + b"1,1\n", "line 1: the header lacks the column 'os'.*must name"),
        (HEADER.replace(b"os,", b"os,brand,") + b"1,1\n", "line 1: the header has the unknown column 'brand'"),
        (
            HEADER + b"".join(lines(10)) + b"nonsense\n" * 5,
            "line 12: 1 fields instead of 8: 5 of 15 lines are no clicks",
        ),
        (HEADER + b"".join(lines(9)).replace(b"11-07", b"11-06"), "line 2: click_time is not on 2017-11-07"),
    ],
)
def test_a_file_that_is_not_the_days_clicks_stops_the_day(tmp_path: Path, content: bytes, message: str) -> None:
    land(tmp_path, content)
    with pytest.raises(IngestError, match=rf"{DAY}.csv.gz, {message}"):
        run(tmp_path)
    assert list(snapshot(tmp_path)) == [f"landing/{DAY}.csv.gz"]


def test_a_truncated_gzip_stops_the_day_and_keeps_the_old_partition(tmp_path: Path) -> None:
    land(tmp_path, HEADER + b"".join(lines(5_000)))
    before = run(tmp_path)
    whole = gzip.compress(HEADER + b"".join(lines(5_000, seed=1)))
    land(tmp_path, whole[: len(whole) // 2], compressed=False)
    with pytest.raises(IngestError, match=r"2017-11-07.csv.gz.*truncated or damaged after line \d+"):
        run(tmp_path)
    assert Lake(str(tmp_path)).manifest("raw_clicks", DAY) == before
    assert not (tmp_path / "_staging").exists()


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(IngestError, match=r"2017-11-07.csv.gz is missing: import or generate"):
        run(tmp_path)


def test_an_unchanged_file_is_not_read_again_and_a_late_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    land(tmp_path, HEADER + b"".join(lines(20)))
    first = run(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Landing, "open", None)
        assert run(tmp_path) == first
    land(tmp_path, HEADER + b"".join(lines(25)))
    assert run(tmp_path).rows == 25


def test_a_file_replaced_while_it_is_read_stops_the_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    land(tmp_path, HEADER + b"".join(lines(20)))
    judge = ingest_module._judge

    def late(*args) -> None:  # type: ignore[no-untyped-def]
        judge(*args)
        land(tmp_path, HEADER + b"".join(lines(25)))

    monkeypatch.setattr(ingest_module, "_judge", late)
    with pytest.raises(IngestError, match="replaced while it was read"):
        run(tmp_path)


def test_duplicates_and_clicks_out_of_order_are_kept_and_counted(tmp_path: Path) -> None:
    some = lines(60)
    land(tmp_path, HEADER + b"".join([*some[10:], *some[:10], *some[:7]]))
    manifest = run(tmp_path)
    assert (manifest.rows, manifest.metadata["duplicates"], manifest.metadata["out_of_order"]) == (67, 7, 17)


def test_duplicates_are_estimated_beyond_the_capacity() -> None:
    every = b"".join(lines(40_000) + lines(40_000)[:10_000])
    exact, estimated = Duplicates(), Duplicates(capacity=4_000)
    cut = every.index(b"\n", len(every) // 2) + 1
    for part in (every[:cut], every[cut:]):
        clicks = csv.parse(part, csv.TRAIN_COLUMNS).clicks
        exact.add(clicks)
        estimated.add(clicks)
    assert exact.count() == 10_000
    assert estimated.count() == pytest.approx(10_000, rel=0.1)


@pytest.mark.skipif("CLICKS_SAMPLE" not in os.environ, reason="CLICKS_SAMPLE names no folder with real clicks")
def test_real_clicks_all_arrive(tmp_path: Path) -> None:
    paths = sorted(path for path in Path(os.environ["CLICKS_SAMPLE"]).rglob("*") if DAY in path.name)
    content = gzip.decompress(paths[0].read_bytes()) if paths[0].suffix == ".gz" else paths[0].read_bytes()
    land(tmp_path, content)
    manifest = run(tmp_path)
    rows = content.decode().splitlines()[1:]
    assert manifest.rows == len(rows)
    assert manifest.metadata["duplicates"] == len(rows) - len(Counter(rows))
