"""What a day must be before anything is made of it, and how a person takes one that is not."""

import gzip
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pytest

from mlops_assets.assets.quality import BLOCKING, accept, day_is_whole, no_line_lost
from mlops_assets.assets.thresholds import Thresholds
from mlops_assets.assets.training_window import window_versions
from mlops_assets.automation.accept import accept_day
from mlops_assets.lake import ingest as ingest_module
from mlops_assets.lake.importing import import_files, sources_of
from mlops_assets.lake.ingest import ingest
from mlops_assets.lake.landing import HEADER, Landing
from mlops_assets.lake.store import Lake
from mlops_assets.resources.lake import LakeResource
from mlops_assets_tests.assets.graph import run

DAYS = ["2017-11-06", "2017-11-07", "2017-11-08"]
ALL_DAY = range(24)
SCHEMA = pa.schema([pa.field("app", pa.uint16(), nullable=False)])


def lines(day: str, clicks: int, hours: Sequence[int] = ALL_DAY, installs: int = 3) -> bytes:
    """Clicks spread evenly over the hours; the first ones led to an install."""
    return b"".join(
        f"{n},3,1,19,178,{day} {hours[n % len(hours)]:02}:{n % 60:02}:00,".encode()
        + (f"{day} 23:59:59,1\n".encode() if n < installs else b",0\n")
        for n in range(clicks)
    )


def land(root: Path, day: str, content: bytes) -> None:
    """Lands a day's lines below the lake's root, replacing what is there."""
    (root / "landing").mkdir(parents=True, exist_ok=True)
    (root / "landing" / f"{day}.csv.gz").write_bytes(gzip.compress(HEADER + content))


def ingested(root: Path, day: str, clicks: int = 2_400, hours: Sequence[int] = ALL_DAY, installs: int = 3) -> Lake:
    land(root, day, lines(day, clicks, hours, installs))
    lake = Lake(str(root))
    ingest(Landing(str(root)), lake, day)
    return lake


def blocked(lake: Lake, day: str) -> list[str]:
    """The blocking checks of raw_clicks that the day fails."""
    return [name for name, judge in BLOCKING["raw_clicks"].items() if not judge(lake, day)[0]]


def test_a_lost_block_of_lines_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = ingest_module._blocks

    def forgetful(stream: Any, name: str, day: str) -> Iterator[Any]:
        yield from list(blocks(stream, name, day))[:-1]

    monkeypatch.setattr("mlops_assets.clicks.csv.BLOCK", 10_000)
    monkeypatch.setattr(ingest_module, "_blocks", forgetful)
    lake = ingested(tmp_path, DAYS[0])
    passed, numbers = no_line_lost(lake, DAYS[0])
    assert not passed
    assert numbers["lines"] == 2_400
    assert numbers["rows"] < 2_400


@pytest.mark.parametrize(
    "content",
    [
        lines(DAYS[0], 50),
        lines(DAYS[0], 50).removesuffix(b"\n"),
        lines(DAYS[0], 50).replace(b"\n", b"\r\n"),
        lines(DAYS[0], 50) + b"\nno click\n",
    ],
    ids=["plain", "no last newline", "CRLF", "an empty and a bad line"],
)
def test_every_line_of_a_landing_file_counts(tmp_path: Path, content: bytes) -> None:
    land(tmp_path, DAYS[0], content)
    lake = Lake(str(tmp_path))
    ingest(Landing(str(tmp_path)), lake, DAYS[0])
    passed, numbers = no_line_lost(lake, DAYS[0])
    assert passed
    assert numbers["lines"] == 50 + 2 * content.endswith(b"no click\n")


def test_a_landing_file_of_several_gzip_members_is_counted_whole(tmp_path: Path) -> None:
    (tmp_path / "landing").mkdir()
    half = lines(DAYS[0], 50)
    path = tmp_path / "landing" / f"{DAYS[0]}.csv.gz"
    path.write_bytes(gzip.compress(HEADER + half) + gzip.compress(half))
    assert Landing(str(tmp_path)).lines(DAYS[0]) == 100
    path.write_bytes(gzip.compress(HEADER))
    assert Landing(str(tmp_path)).lines(DAYS[0]) == 0


def test_a_file_that_was_replaced_since_is_not_compared(tmp_path: Path) -> None:
    lake = ingested(tmp_path, DAYS[0])
    land(tmp_path, DAYS[0], lines(DAYS[0], 100))
    passed, numbers = no_line_lost(lake, DAYS[0])
    assert passed
    assert numbers["counted in the file"] is False


def test_a_day_without_installs_stops_and_costs_no_other_day(tmp_path: Path) -> None:
    for day in DAYS:
        land(tmp_path / "lake", day, lines(day, 2_400, installs=0 if day == DAYS[1] else 3))
    with dg.DagsterInstance.ephemeral() as instance:
        result = run(tmp_path, instance, ["raw_clicks"], DAYS)
        assert not result.success
        assert instance.get_materialized_partitions(dg.AssetKey("raw_clicks")) == {DAYS[0], DAYS[2]}
    (failure,) = result.filter_events(lambda event: event.is_step_failure)
    said = str(failure.step_failure_data.error)
    assert f"raw_clicks of {DAYS[1]} fails its check day_has_installs" in said
    assert "accept_day" in said, "it says what a person can do"


def test_a_day_with_under_half_of_its_usual_clicks_stops(tmp_path: Path) -> None:
    for day in DAYS:
        lake = ingested(tmp_path, day)
    lake = ingested(tmp_path, "2017-11-09", clicks=1_250)
    assert blocked(lake, "2017-11-09") == [], "half is enough"
    lake = ingested(tmp_path, "2017-11-10", clicks=1_100)
    assert blocked(lake, "2017-11-10") == ["day_is_whole"]
    assert day_is_whole(lake, "2017-11-10", Thresholds(least_of_usual_clicks=0.4))[0]
    assert day_is_whole(lake, "2017-11-10")[1]["usual clicks"] == 2_400, "one small day before it changes little"


def test_a_day_that_was_cut_off_stops_also_where_no_other_day_says_what_is_usual(tmp_path: Path) -> None:
    lake = ingested(tmp_path, "2017-11-20", clicks=3_000, hours=range(15))
    passed, numbers = day_is_whole(lake, "2017-11-20", begins=DAYS[0], ends=None)
    assert not passed
    assert numbers["hours without clicks (UTC)"] == "15, 16, 17, 18, 19, 20, 21, 22, 23"
    assert numbers["usual clicks"] is None


def test_hours_that_never_have_clicks_are_not_missing(tmp_path: Path) -> None:
    by_day = range(6, 23)
    for day in DAYS:
        lake = ingested(tmp_path, day, hours=by_day)
    lake = ingested(tmp_path, "2017-11-09", hours=by_day)
    assert blocked(lake, "2017-11-09") == []
    lake = ingested(tmp_path, "2017-11-10", hours=range(6, 20))
    assert day_is_whole(lake, "2017-11-10")[1]["hours without clicks (UTC)"] == "20, 21, 22"


def test_a_small_day_may_have_empty_hours(tmp_path: Path) -> None:
    assert blocked(ingested(tmp_path, "2017-11-20", clicks=60, hours=range(12)), "2017-11-20") == []


def test_data_may_begin_and_end_within_a_day_but_have_no_gap_there(tmp_path: Path) -> None:
    day = "2017-11-20"
    lake = ingested(tmp_path, day, hours=range(16, 24))
    assert day_is_whole(lake, day, begins=day, ends=None)[0]
    assert not day_is_whole(lake, day, begins=DAYS[0], ends=day)[0]
    lake = ingested(tmp_path, day, hours=range(16))
    assert day_is_whole(lake, day, begins=DAYS[0], ends=day)[0]
    assert not day_is_whole(lake, day, begins=day, ends=None)[0]
    lake = ingested(tmp_path, day, hours=[*range(4, 10), *range(12, 20)])
    assert not day_is_whole(lake, day, begins=day, ends=day)[0]


def test_a_person_may_accept_a_day_until_it_is_delivered_anew(tmp_path: Path) -> None:
    day = "2017-11-20"
    lake = ingested(tmp_path, day, hours=range(15), installs=0)
    assert blocked(lake, day) == ["day_has_installs", "day_is_whole"]
    for _ in range(2):
        accept(lake, day, "ann", "the feed was down from 15:00")
    assert blocked(lake, day) == []
    assert BLOCKING["raw_clicks"]["day_is_whole"](lake, day)[1]["accepted by"] == "ann"
    lake = ingested(tmp_path, day, hours=range(14))
    assert blocked(lake, day) == ["day_is_whole"]


def test_the_job_accepts_a_day_for_a_reason_and_says_what_is_wrong_with_a_word(tmp_path: Path) -> None:
    def asked(**word: str) -> str:
        """Why the job's step failed; empty if it did not."""
        given = {"day": DAYS[0], "decided_by": "ann", "reason": "a quiet day"} | word
        done = accept_day.execute_in_process(
            run_config={"ops": {"record_acceptance": {"config": given}}},
            resources={"lake": LakeResource(root=str(lake.root))},
            raise_on_error=False,
        )
        failures = [event.step_failure_data.user_failure_data for event in done.all_events if event.is_step_failure]
        return "".join(str(failure and failure.description) for failure in failures)

    lake = ingested(tmp_path, DAYS[0], installs=0)
    assert "give both" in asked(reason=" ")
    assert "2017-11-30" in asked(day="2017-11-30")
    assert blocked(lake, DAYS[0]) == ["day_has_installs"]
    assert asked() == ""
    assert blocked(lake, DAYS[0]) == []


def test_thresholds_come_from_the_environment_and_a_wrong_one_is_named() -> None:
    assert Thresholds.from_environment({"MLOPS_CHECK_CHAMPION_DAYS": ""}) == Thresholds()
    assert Thresholds.from_environment({"MLOPS_CHECK_CHAMPION_DAYS": "7"}).champion_days == 7
    for wrong in ("soon", "-1", "nan"):
        with pytest.raises(ValueError, match=f"MLOPS_CHECK_CHAMPION_DAYS is '{wrong}'"):
            Thresholds.from_environment({"MLOPS_CHECK_CHAMPION_DAYS": wrong})


@pytest.mark.skipif("CLICKS_SAMPLE" not in os.environ, reason="CLICKS_SAMPLE names no folder of real clicks")
def test_real_days_that_begin_at_16_o_clock_pass(tmp_path: Path) -> None:
    landing, lake = Landing(str(tmp_path)), Lake(str(tmp_path))
    import_files(sources_of(Path(os.environ["CLICKS_SAMPLE"])), landing, replace=False, advance=lambda amount: None)
    for day in DAYS:
        ingest(landing, lake, day)
        assert blocked(lake, day) == []


def test_a_good_training_set_stays_in_the_windows_when_bad_clicks_replace_the_days(tmp_path: Path) -> None:
    """Its new clicks were refused, so no other training set was made: it is not to be compared with them."""
    lake = ingested(tmp_path, DAYS[0])
    raw = lake.require("raw_clicks", DAYS[0])
    commit(lake, "training_set", DAYS[0], rows=raw.rows, installs=raw.metadata["installs"], raw_clicks=raw.version)
    assert list(window_versions(lake, DAYS[1])) == [DAYS[0]]
    ingested(tmp_path, DAYS[0], clicks=240)
    assert list(window_versions(lake, DAYS[1])) == [DAYS[0]]


def test_a_training_set_that_lost_clicks_of_its_own_is_in_no_window(tmp_path: Path) -> None:
    lake = ingested(tmp_path, DAYS[0])
    raw = lake.require("raw_clicks", DAYS[0])
    commit(lake, "training_set", DAYS[0], rows=raw.rows - 1, installs=raw.metadata["installs"], raw_clicks=raw.version)
    assert not window_versions(lake, DAYS[1])


def commit(lake: Lake, dataset: str, day: str, *, rows: int, installs: int, raw_clicks: str) -> None:
    """A training set of so many clicks, all alike, that was made of that version of the raw ones."""
    with lake.stage(dataset, day) as staging:
        with staging.part(SCHEMA, 0) as part:
            part.write_rows(pa.record_batch([pa.array(np.zeros(rows), SCHEMA.field(0).type)], schema=SCHEMA))
        metadata = {"installs": installs}
        staging.commit([part.staged], inputs={"raw_clicks": raw_clicks}, code_version="1", metadata=metadata)
