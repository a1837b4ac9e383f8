"""When days run: landed, late, landed again, and with the daemon down. Landing files and Dagster's records are real."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver
from dagster._core.loader import LoadingContextForTest

from mlops_assets.assets.notices import NOTICES
from mlops_assets.automation import arrivals
from mlops_assets.automation.arrivals import VERDICT, WATCHED_DAYS, expected_days, landed_days, late_days
from mlops_assets.definitions import defs
from mlops_assets.resources.environment import embedded
from mlops_assets_tests.assets.graph import land, run

LANDING = dg.AssetKey("landing")


class World:
    """The daemon's part: evaluates the sensor at some time, records what it says, starts no run key's run twice."""

    def __init__(self, home: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home = home
        self.instance = instance
        self.cursor: str | None = None
        self.reason: str | None = None
        self.run_keys: set[str | None] = set()
        self._monkeypatch = monkeypatch

    def tick(self, time: str) -> list[str]:
        """One evaluation at that time (UTC); the days whose runs it starts."""
        now = datetime.fromisoformat(time).replace(tzinfo=UTC)
        self._monkeypatch.setattr(arrivals, "utc_now", lambda: now)
        resources = {"lake": embedded(self.home)["lake"]}
        with dg.build_sensor_context(
            self.instance, cursor=self.cursor, resources=resources, definitions=defs
        ) as context:
            result = landed_days.evaluate_tick(context)
        for event in result.asset_events:
            self.instance.report_runless_asset_event(event)
        self.cursor, self.reason = result.cursor, result.skip_message
        new = [request for request in result.run_requests or [] if request.run_key not in self.run_keys]
        self.run_keys |= {request.run_key for request in new}
        return [str(request.partition_key) for request in new]

    def ticks(self, *times: str) -> list[str]:
        """Two evaluations at each of the times: what one sees, the next may act on."""
        return [day for time in times for _ in range(2) for day in self.tick(time)]

    def land(self, *days: str, seed: int = 7) -> None:
        """Delivers days."""
        for day in days:
            land(self.home, day, 100, seed=seed)

    def observe(self) -> None:
        """The hourly listing."""
        assert run(self.home, self.instance, ["landing"]).success

    def notices(self) -> list[str]:
        """The titles of what people are told, the first first."""
        records = self.instance.fetch_observations(NOTICES, limit=99, ascending=True).records
        return [str(r.asset_observation.metadata["title"].value) for r in records if r.asset_observation]


@pytest.fixture
def world(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    if getattr(request, "param", "settled") == "settled":  # else what is recorded now is read again at the tests' times
        monkeypatch.setattr(arrivals, "SETTLED_SECONDS", float("-inf"))
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        yield World(tmp_path, instance, monkeypatch)


def test_what_had_landed_before_the_sensor_was_turned_on_is_left_to_a_backfill(world: World) -> None:
    world.land("2017-11-06", "2017-11-07", "2017-11-08")
    assert world.ticks("2017-11-09 10:00") == []
    world.observe()  # only now does Dagster hear of them
    assert world.ticks("2017-11-09 10:20", "2017-11-09 23:00") == []
    world.land("2017-11-05")  # more of history, from before the first day of data
    world.land("2017-11-09")
    world.observe()
    assert world.ticks("2017-11-10 03:00") == ["2017-11-09"]


@pytest.mark.parametrize("world", ["settled", "read again"], indirect=True)
def test_a_day_that_landed_runs_at_its_hour_and_once(world: World) -> None:
    world.land("2017-11-06")
    world.tick("2017-11-07 10:00")
    world.land("2017-11-07")
    assert world.ticks("2017-11-08 00:10", "2017-11-08 02:59") == []
    assert "2017-11-07 has landed and runs at 03:00" in str(world.reason)
    world.land("2017-11-07", seed=8)  # delivered again, corrected, before its hour
    world.observe()
    assert world.ticks("2017-11-08 02:59") == []
    assert world.ticks("2017-11-08 03:00") == ["2017-11-07"]
    world.observe()
    assert world.ticks("2017-11-08 03:01", "2017-11-08 12:00", "2017-11-09 02:00") == []


def test_a_missing_day_is_skipped_with_its_reason_and_runs_once_when_it_lands(world: World) -> None:
    world.land("2017-11-06")
    world.tick("2017-11-07 10:00")
    assert world.ticks("2017-11-08 03:00") == []
    assert world.reason == f"2017-11-07 has not landed: {world.home}/lake/landing/2017-11-07.csv.gz is not there"
    world.land("2017-11-07")
    assert world.ticks("2017-11-08 04:07") == ["2017-11-07"]
    world.observe()
    assert world.ticks("2017-11-08 04:20", "2017-11-08 09:01") == []


def test_days_that_landed_while_the_daemon_was_down_run_in_order_and_once(world: World) -> None:
    world.land("2017-11-06")
    world.tick("2017-11-07 10:00")
    world.land("2017-11-09", "2017-11-07", "2017-11-08")
    assert world.ticks("2017-11-10 12:00") == ["2017-11-07", "2017-11-08", "2017-11-09"]
    world.observe()
    assert world.ticks("2017-11-10 12:20") == []


def test_a_day_that_is_longer_away_than_days_are_watched_is_found_by_the_listing(world: World) -> None:
    world.land("2017-11-06")
    world.tick("2017-11-07 10:00")
    assert world.ticks("2017-11-30 12:00") == []
    world.land("2017-11-07")
    assert world.ticks("2017-11-30 12:10") == []
    world.observe()
    assert world.ticks("2017-11-30 12:20") == ["2017-11-07"]


def test_a_late_day_is_told_once_and_runs_when_it_lands(world: World) -> None:
    world.land("2017-11-06")
    world.tick("2017-11-07 10:00")
    assert world.ticks("2017-11-08 08:59") == []
    assert world.notices() == []
    assert world.ticks("2017-11-08 09:00", "2017-11-08 09:01", "2017-11-08 15:00") == []
    assert world.notices() == ["2017-11-07 is late: its clicks have not landed"]
    world.land("2017-11-07")
    assert world.ticks("2017-11-08 16:00") == ["2017-11-07"]
    assert len(world.notices()) == 1


def test_a_day_that_landed_but_has_no_verdict_is_late_too(world: World) -> None:
    world.land("2017-11-06")
    world.tick("2017-11-07 10:00")
    world.land("2017-11-07", "2017-11-08")
    world.ticks("2017-11-08 03:00")
    world.instance.report_runless_asset_event(dg.AssetMaterialization(VERDICT, partition="2017-11-07"))
    world.ticks("2017-11-08 09:00", "2017-11-09 03:00", "2017-11-09 09:00")
    assert world.notices() == ["2017-11-08 is late: it has no verdict yet"]


def test_what_the_sensor_saw_by_itself_is_the_days_version(world: World) -> None:
    world.land("2017-11-06")
    world.tick("2017-11-07 10:00")
    world.land("2017-11-07")
    assert world.ticks("2017-11-08 03:00") == ["2017-11-07"]
    assert run(world.home, world.instance, ["raw_clicks"], ["2017-11-07"]).success
    statuses = []
    for seed in (7, 8):
        world.land("2017-11-07", seed=seed)
        world.observe()
        graph = defs.resolve_asset_graph()
        resolver = CachingStaleStatusResolver(world.instance, graph, LoadingContextForTest(world.instance))
        statuses.append(resolver.get_status(dg.AssetKey("raw_clicks"), "2017-11-07").value)
    assert statuses == ["FRESH", "STALE"]
    assert world.ticks("2017-11-08 12:00") == ["2017-11-07"]


def test_a_landing_area_that_cannot_be_read_delays_no_day_that_is_known(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.land("2017-11-06")
    world.tick("2017-11-07 10:00")
    world.land("2017-11-07")

    def refused(landing: object, day: str) -> str:
        raise OSError("connection refused")

    monkeypatch.setattr("mlops_assets.lake.landing.Landing.version", refused)
    assert world.ticks("2017-11-08 03:00") == []
    assert world.reason == "the landing area can't be read: connection refused"
    world.observe()
    assert world.ticks("2017-11-09 03:20") == ["2017-11-07"]


def test_days_are_late_only_after_their_deadline_and_without_a_verdict() -> None:
    now = datetime(2017, 11, 10, 9, 0, tzinfo=UTC)
    days = expected_days("2017-11-07", now)
    assert days == ["2017-11-07", "2017-11-08", "2017-11-09"]
    assert late_days(days, {"2017-11-08"}, now) == ["2017-11-07", "2017-11-09"]
    assert late_days(days, set(), now.replace(hour=8, minute=59)) == ["2017-11-07", "2017-11-08"]
    assert len(expected_days("2017-11-06", now.replace(month=12))) == WATCHED_DAYS


def test_what_runs_days_is_on_by_itself_where_days_are_delivered() -> None:
    program = "from mlops_assets.automation import arrivals as a; "
    program += "print(a.observe_landing_hourly.default_status.value, a.landed_days.default_status.value)"
    environment = {**os.environ, "MLOPS_ENVIRONMENT": "real"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["RUNNING", "RUNNING"]
