"""The CSV parser against Python's own int() and strptime(), and what a user sees for each kind of bad line or file."""

import gzip
import io
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_assets.clicks import csv
from mlops_assets.clicks.csv import TEST_COLUMNS, TRAIN_COLUMNS, parse
from mlops_assets.clicks.schema import IDS

GOOD = b"48646,12,1,19,178,2017-11-06 16:00:00,,0"
HEADER = ",".join(TRAIN_COLUMNS).encode()

ids16 = st.integers(0, 2**16 - 1)
times = st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31, 23, 59, 59)).map(lambda t: t.replace(microsecond=0))
clicks = st.tuples(
    st.integers(0, 2**32 - 1), ids16, ids16, ids16, ids16, times, st.none() | times, st.integers(0, 1)
)  # fmt: skip


def text(value: object) -> str:
    return "" if value is None else str(value)


def epoch(time: datetime | None) -> int:
    return -1 if time is None else int(time.replace(tzinfo=UTC).timestamp())


@given(st.lists(clicks), st.sampled_from(["\n", "\r\n"]), st.booleans(), st.booleans(), st.permutations(range(8)))
def test_every_valid_click_is_read_exactly(
    rows: list[tuple[object, ...]], newline: str, ended: bool, bom: bool, order: list[int]
) -> None:
    lines = newline.join(",".join(text(row[i]) for i in order) for row in rows) + newline * (ended and bool(rows))
    parsed = parse(csv.BOM * bom + lines.encode(), [TRAIN_COLUMNS[i] for i in order])
    assert parsed.rejected == []
    assert parsed.line.tolist() == list(range(1, len(rows) + 1))
    read = parsed.clicks
    assert read.label is not None
    assert read.attributed_time is not None
    assert list(zip(*(getattr(read, name).tolist() for name in IDS), strict=True)) == [row[:5] for row in rows]
    assert read.time.tolist() == [epoch(row[5]) for row in rows]  # type: ignore[arg-type]
    assert read.attributed_time.tolist() == [epoch(row[6]) for row in rows]  # type: ignore[arg-type]
    assert read.label.tolist() == [row[7] for row in rows]
    canonical = "".join(",".join(text(value) for value in row) + "\n" for row in rows)
    assert csv.write(read) == canonical.encode()


@given(st.lists(st.text("0123456789 :-,\n\r\x00é", max_size=60) | st.just(GOOD.decode()), max_size=20))
def test_no_line_gets_lost(lines: list[str]) -> None:
    data = "\n".join(lines).encode()
    parsed = parse(data, TRAIN_COLUMNS)
    numbers = sorted([*parsed.line.tolist(), *(bad.line for bad in parsed.rejected)])
    raw = data.removesuffix(b"\n").split(b"\n") if data else []
    assert numbers == list(range(1, len(raw) + 1))
    assert all(raw[bad.line - 1].removesuffix(b"\r") == bad.raw and bad.reason for bad in parsed.rejected)
    assert all(raw[line - 1].removesuffix(b"\r") == GOOD for line in parsed.line)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", "empty line"),
        (b"1,2,3", "3 fields instead of 8"),
        (GOOD + b",9", "9 fields instead of 8"),
        (GOOD.replace(b"48646", b"x8646"), "ip is not a whole number from 0 to 4294967295"),
        (GOOD.replace(b"48646", b"4294967296"), "ip is not a whole number from 0 to 4294967295"),
        (GOOD.replace(b"48646", b"12345678901"), "ip is not a whole number from 0 to 4294967295"),
        (GOOD.replace(b"48646", b"-1"), "ip is not a whole number from 0 to 4294967295"),
        (GOOD.replace(b"178", b""), "channel is not a whole number from 0 to 65535"),
        (GOOD.replace(b"178", b"17.8"), "channel is not a whole number from 0 to 65535"),
        (GOOD.replace(b"178", b"65536"), "channel is not a whole number from 0 to 65535"),
        (GOOD.replace(b"11-06", b"02-29"), "click_time is not a time like 2017-11-06 14:32:21"),
        (GOOD.replace(b"11-06", b"13-06"), "click_time is not a time like 2017-11-06 14:32:21"),
        (GOOD.replace(b"11-06", b"00-06"), "click_time is not a time like 2017-11-06 14:32:21"),
        (GOOD.replace(b"11-06", b"11-00"), "click_time is not a time like 2017-11-06 14:32:21"),
        (GOOD.replace(b"16:00", b"24:00"), "click_time is not a time like 2017-11-06 14:32:21"),
        (GOOD.replace(b"16:00", b"16:60"), "click_time is not a time like 2017-11-06 14:32:21"),
        (GOOD.replace(b" 16", b"T16"), "click_time is not a time like 2017-11-06 14:32:21"),
        (GOOD.replace(b",,0", b",soon,1"), "attributed_time is neither empty nor a time like 2017-11-06 14:32:21"),
        (GOOD.replace(b",,0", b",,2"), "is_attributed is neither 0 nor 1"),
        (GOOD.replace(b",,0", b",,"), "is_attributed is neither 0 nor 1"),
    ],
)
def test_a_bad_line_is_named_with_its_reason(line: bytes, reason: str) -> None:
    parsed = parse(b"\n".join([GOOD, line, GOOD, b""]), TRAIN_COLUMNS)
    assert parsed.line.tolist() == [1, 3]
    assert parsed.rejected == [(2, line, reason)]
    assert parsed.clicks.ip.tolist() == [48646, 48646]


def test_a_leap_day_is_a_day() -> None:
    line = GOOD.replace(b"2017-11-06", b"2016-02-29")
    assert parse(line, TRAIN_COLUMNS).clicks.time.tolist() == [epoch(datetime(2016, 2, 29, 16))]


def test_clicks_to_be_scored_have_an_id_and_no_label() -> None:
    parsed = parse(b"987654321012345678,1,2,3,4,5,2017-11-10 04:00:00\n", TEST_COLUMNS)
    assert parsed.clicks.click_id is not None
    assert parsed.clicks.click_id.tolist() == [987654321012345678]
    assert parsed.clicks.label is None
    with pytest.raises(ValueError, match="label"):
        csv.write(parsed.clicks)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (GOOD, "no header but .*48646.*must name the columns ip,app"),
        (HEADER.replace(b",os", b""), "lacks the column 'os'"),
        (HEADER + b",country", "unknown column 'country'"),
        (HEADER + b",os", "repeats the column 'os'"),
        (HEADER.replace(b"ip", b"click_id,ip"), "unknown column 'click_id'"),
    ],
)
def test_a_wrong_header_is_explained(header: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=f"^f.csv, line 1: .*{message}"):
        csv.read(io.BytesIO(header + b"\n" + GOOD), "f.csv")


@pytest.mark.parametrize("content", [b"", b"\n", csv.BOM, b"\r\n" + GOOD])
def test_an_empty_file_is_an_error(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"f.csv, line 1: no header"):
        csv.read(io.BytesIO(content), "f.csv")


def test_a_header_may_come_in_any_order_with_bom_and_crlf() -> None:
    header = ",".join(reversed(TRAIN_COLUMNS)).encode()
    columns, blocks = csv.read(io.BytesIO(csv.BOM + header + b"\r\nrest"), "f.csv")
    assert columns == TRAIN_COLUMNS[::-1]
    assert list(blocks) == [(2, b"rest")]


def test_blocks_hold_whole_lines_and_know_their_line_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [b"%d" % i * (i % 7) for i in range(1000)]
    monkeypatch.setattr(csv, "BLOCK", 100)
    _, blocks = csv.read(io.BytesIO(b"\n".join([HEADER, *lines])), "f.csv")
    expected = 2
    collected = []
    for first, block in blocks:
        assert first == expected
        part = block.removesuffix(b"\n").split(b"\n")
        expected += len(part)
        collected += part
    assert collected == lines


def test_a_truncated_gzip_names_the_last_good_line() -> None:
    lines = b"".join(b"%d," % seed + GOOD + b"\n" for seed in np.random.default_rng(1).integers(0, 2**32, 50_000))
    whole = gzip.compress(HEADER + b"\n" + lines)
    stream = gzip.GzipFile(fileobj=io.BytesIO(whole[: len(whole) // 2]))
    with pytest.raises(ValueError, match=r"f.csv.gz: the gzip stream is truncated or damaged after line 2\d{4} "):
        list(csv.read(stream, "f.csv.gz")[1])


def test_a_plain_file_named_gz_is_explained() -> None:
    with pytest.raises(
        ValueError, match=r"f.csv.gz: the gzip stream is truncated or damaged after line 0 .*Not a gzip"
    ):
        csv.read(gzip.GzipFile(fileobj=io.BytesIO(HEADER)), "f.csv.gz")


def test_a_file_without_line_ends_is_not_read_into_memory() -> None:
    _, blocks = csv.read(io.BytesIO(HEADER + b"\n" + bytes(1 << 24)), "f.csv")
    with pytest.raises(ValueError, match=r"f.csv, line 2: longer than"):
        list(blocks)
