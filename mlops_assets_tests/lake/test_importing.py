"""Importing: every line lands on its day, in order of time, or is kept as a reject."""

import csv as python_csv
import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_assets.clicks import csv
from mlops_assets.clicks.csv import TRAIN_COLUMNS
from mlops_assets.lake import importing
from mlops_assets.lake.importing import Imported, import_files, sources_of
from mlops_assets.lake.landing import HEADER, LandedError, Landing

DAYS = ["2017-11-06", "2017-11-07", "2017-11-08"]


def ignore(_: int) -> None:
    pass


def run(root: Path, *sources: Path, replace: bool = False) -> Imported:
    return import_files(sources, Landing(str(root)), replace=replace, advance=ignore)


def landed(root: Path) -> dict[str, bytes]:
    landing = Landing(str(root))
    return {day: gzip.decompress(Path(landing.uri(day)).read_bytes()).removeprefix(HEADER) for day in landing.days()}


def line(day: str, second: int, ip: object = 1) -> bytes:
    clock = f"{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}"
    return f"{ip},2,3,4,5,{day} {clock},,0".encode()


def write(path: Path, lines: list[bytes], header: bytes = HEADER) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = header + b"".join(line + b"\n" for line in lines)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


clicks = st.tuples(st.sampled_from(DAYS), st.integers(0, 86_399) | st.integers(0, 3))
bad = st.sampled_from([b"", b"1,2,3", b"1,2,3,4,5,2017-11-31 00:00:00,,0", b"1,2,3,4,5,,,0", b"\xff\x00\r,"])


@settings(max_examples=60, deadline=None)
@given(st.lists(clicks | bad, max_size=60), st.integers(1, 7))
def test_lines_land_on_their_days_in_order_of_time_and_none_gets_lost(
    tmp_path_factory: pytest.TempPathFactory, items: list[bytes | tuple[str, int]], lines_at_a_time: int
) -> None:
    root = tmp_path_factory.mktemp("lake")
    lines = [item if isinstance(item, bytes) else line(*item, ip=number) for number, item in enumerate(items)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importing, "SORTED_LINES", lines_at_a_time)
        patch.setattr(csv, "BLOCK", 200)
        result = run(root, write(root / "in.csv", lines))
    numbered = [(item[1], number, item[0]) for number, item in enumerate(items) if isinstance(item, tuple)]
    expected = {day: [number for _, number, its_day in sorted(numbered) if its_day == day] for day in DAYS}
    assert landed(root) == {
        day: b"".join(lines[i] + b"\n" for i in numbers) for day, numbers in expected.items() if numbers
    }
    rejected = [number for number, item in enumerate(items, start=2) if isinstance(item, bytes)]
    assert result.rejected == {"in.csv": len(rejected)}
    assert result.lines == len(lines)
    rejects = root / "landing/rejects/in.csv.csv"
    assert rejects.exists() == bool(rejected)
    if rejected:
        with rejects.open(newline="") as file:
            kept = list(python_csv.DictReader(file))
        assert [int(row["line"]) for row in kept] == rejected
        assert [row["raw"].encode("utf-8", "backslashreplace") for row in kept] == [
            lines[number - 2].decode("utf-8", "backslashreplace").encode() for number in rejected
        ]


def test_a_line_with_a_day_and_another_fault_lands_as_it_is(tmp_path: Path) -> None:
    lines = [line(DAYS[0], 1, ip="abc"), line(DAYS[0], 2, ip=-1)]
    assert run(tmp_path, write(tmp_path / "in.csv", lines)).lines == 2
    assert landed(tmp_path) == {DAYS[0]: b"".join(line + b"\n" for line in lines)}


def test_rejects_name_line_reason_and_text_and_go_when_the_source_is_mended(tmp_path: Path) -> None:
    good, broken = line(DAYS[0], 1), b'1,2,"3'
    source = write(tmp_path / "in.csv", [good, broken, good])
    run(tmp_path, source)
    rejects = tmp_path / "landing/rejects/in.csv.csv"
    assert rejects.read_text() == 'line,reason,raw\n3,3 fields instead of 8,"1,2,""3"\n'
    run(tmp_path, write(source, [good, good]))
    assert not rejects.exists()


def test_again_changes_nothing_and_duplicates_are_kept(tmp_path: Path) -> None:
    source = write(tmp_path / "in.csv", [line(DAYS[0], 1)] * 3 + [line(DAYS[1], 5)])
    assert run(tmp_path, source).changed == DAYS[:2]
    before = landed(tmp_path)
    assert before[DAYS[0]] == (line(DAYS[0], 1) + b"\n") * 3
    again = run(tmp_path, source)
    assert again.changed == []
    assert again.landed == {DAYS[0]: 3, DAYS[1]: 1}
    assert landed(tmp_path) == before


def test_a_folder_of_daily_files_is_imported_as_one_source(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write(folder / "b.csv.gz", [line(DAYS[0], 7), line(DAYS[1], 2)])
    write(folder / "a.csv", [line(DAYS[1], 9)])
    write(folder / "notes.txt", [])
    assert [path.name for path in sources_of(folder)] == ["a.csv", "b.csv.gz"]
    assert run(tmp_path, *sources_of(folder)).landed == {DAYS[0]: 1, DAYS[1]: 2}
    assert landed(tmp_path)[DAYS[1]] == line(DAYS[1], 2) + b"\n" + line(DAYS[1], 9) + b"\n"


def test_other_clicks_of_a_landed_day_need_replace(tmp_path: Path) -> None:
    run(tmp_path, write(tmp_path / "a.csv", [line(DAYS[0], 1)]))
    other = write(tmp_path / "b.csv", [line(DAYS[0], 2), line(DAYS[1], 2), b"bad"])
    with pytest.raises(LandedError, match=DAYS[0]):
        run(tmp_path, other)
    assert landed(tmp_path) == {DAYS[0]: line(DAYS[0], 1) + b"\n"}
    assert not (tmp_path / "landing/rejects").exists()
    assert run(tmp_path, other, replace=True).changed == DAYS[:2]
    assert landed(tmp_path)[DAYS[0]] == line(DAYS[0], 2) + b"\n"


def test_a_reordered_header_bom_and_crlf_give_the_same_files(tmp_path: Path) -> None:
    lines = [line(day, second, ip) for day in DAYS for second, ip in ((5, 1), (3, 2))]
    run(tmp_path / "plain", write(tmp_path / "plain.csv", lines))
    order = [5, 0, 7, 1, 2, 6, 3, 4]
    header = ",".join(TRAIN_COLUMNS[i] for i in order).encode() + b"\n"
    rows = [b",".join(line.split(b",")[i] for i in order) for line in lines]
    other = write(tmp_path / "other.csv", [*rows[:-1]], csv.BOM + header)
    other.write_bytes(other.read_bytes().replace(b"\n", b"\r\n") + rows[-1])
    run(tmp_path / "other", other)
    assert landed(tmp_path / "other") == landed(tmp_path / "plain")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda whole: whole[: len(whole) // 2], r"in.csv.gz: the gzip stream is truncated or damaged after line \d+ "),
        (lambda whole: b"", r"in.csv.gz, line 1: no header"),
        (lambda whole: b"hello", r"in.csv.gz: the gzip stream .* line 0"),
        (lambda whole: gzip.compress(b"ip,app\n1,2\n"), r"in.csv.gz, line 1: the header lacks the column 'device'"),
        (lambda whole: gzip.compress(line(DAYS[0], 1) + b"\n"), r"in.csv.gz, line 1: no header but"),
    ],
)
def test_a_source_that_cannot_be_read_is_named_and_nothing_lands(
    tmp_path: Path, spoil: Callable[[bytes], bytes], message: str
) -> None:
    ips = np.random.default_rng(1).integers(0, 2**32, 20_000)
    source = write(tmp_path / "in.csv.gz", [line(DAYS[0], 1, ip) for ip in ips])
    source.write_bytes(spoil(source.read_bytes()))
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "lake", source)
    assert [path for path in (tmp_path / "lake").rglob("*") if path.is_file()] == []


def test_a_broken_time_column_does_not_open_a_file_for_every_day(tmp_path: Path) -> None:
    days = np.arange("2001-01-01", "2004-01-01", dtype="M8[D]")
    with pytest.raises(ValueError, match=r"in.csv: clicks of more than 366 days; is click_time right\?"):
        run(tmp_path, write(tmp_path / "in.csv", [line(str(day), 1) for day in days]))


def test_progress_ends_at_the_size_of_the_sources(tmp_path: Path) -> None:
    sources = [write(tmp_path / name, [line(DAYS[0], 1)] * 10) for name in ("a.csv", "b.csv.gz")]
    advanced: list[int] = []
    import_files(sources, Landing(str(tmp_path)), replace=False, advance=advanced.append)
    assert sum(advanced) == sum(source.stat().st_size for source in sources)


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing.csv: no such file"):
        sources_of(tmp_path / "nothing.csv")
    with pytest.raises(FileNotFoundError, match=r"no file in this folder ends in .csv"):
        sources_of(tmp_path)
