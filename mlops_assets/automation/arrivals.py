"""When a day runs: as soon as its clicks have landed and its hour has come, and again when they change.

One sensor requests all runs of days, so that no day is requested twice for the same clicks. It goes by Dagster's own
record of what landed, the observations of `landing`, which stay while it is off or down: nothing is lost, only later.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Final, Self

import dagster as dg
from dagster import DagsterEventType

from mlops_assets.assets.landing import DATA_VERSION
from mlops_assets.assets.notices import notice
from mlops_assets.automation.daily import daily_graph
from mlops_assets.automation.run_queues import operators
from mlops_assets.checks.freshness import DEADLINE_HOUR
from mlops_assets.lake.landing import Landing
from mlops_assets.partitions import FIRST_DAY, LAST_DAY
from mlops_assets.resources.environment import SCHEDULES_START
from mlops_assets.resources.lake import LakeResource

RUN_HOUR: Final = 3
"""A day runs at this hour (UTC) of the day after it, if its clicks have landed by then, else when they land."""

WATCHED_DAYS: Final = 7
"""So many of the newest days are looked for by themselves, and told when late."""

EVENTS_PER_TICK: Final = 200
SETTLED_SECONDS: Final = 60.0
"""Observations younger than this are read again: their numbers are given before they can be seen, so one may still
appear before another. The run key keeps a day from being requested twice for one of them."""

LANDING: Final = dg.AssetKey("landing")
VERDICT: Final = dg.AssetKey("promoted_model")

observe_landing = dg.define_asset_job(
    "observe_landing",
    selection=["landing"],
    tags=operators("observe_landing"),
    description="Lists the landing files and notes which of them are new or changed.",
)

observe_landing_hourly = dg.ScheduleDefinition(
    job=observe_landing,
    cron_schedule="15 * * * *",
    default_status=SCHEDULES_START,
    description="Finds the old files that changed. The listing runs in a job, since that of a large bucket can outlast "
    "a sensor's tick; the days that are due are looked for by the sensor `landed_days`.",
)


def due(day: str) -> datetime:
    """When a day runs, if its clicks have landed."""
    return _at(day, RUN_HOUR)


def deadline(day: str) -> datetime:
    """When a day that has no verdict is late."""
    return _at(day, DEADLINE_HOUR)


def newest_day(now: datetime) -> str:
    """The last day that is over and has data."""
    yesterday = str((now - timedelta(days=1)).date())
    return min(yesterday, LAST_DAY) if LAST_DAY else yesterday


def expected_days(since: str, now: datetime) -> list[str]:
    """The newest days that should have landed by themselves: WATCHED_DAYS at most, none before `since`, in order."""
    last = date.fromisoformat(newest_day(now))
    days = [str(last - timedelta(days=back)) for back in reversed(range(WATCHED_DAYS))]
    return [day for day in days if day >= max(since, FIRST_DAY)]


def late_days(expected: Iterable[str], judged: Collection[str], now: datetime) -> list[str]:
    """Those of the expected days that have no verdict although their deadline is over."""
    return [day for day in expected if day not in judged and now >= deadline(day)]


@dataclass(frozen=True)
class Progress:
    """The sensor's cursor: how far it has read, and what it has still to do.

    `after` is the number of an observation up to which all are read. Days before `since` had their time before the
    sensor was first turned on. `waiting` holds days that have landed before their hour, each with its observation's
    number; `late` the days that were told to be late.
    """

    after: int
    since: str
    waiting: Mapping[str, int] = field(default_factory=dict)
    late: Sequence[str] = ()

    @classmethod
    def from_cursor(cls, cursor: str) -> Self:
        """Reads what `cursor` wrote."""
        return cls(**json.loads(cursor))

    @property
    def cursor(self) -> str:
        """For Dagster to keep."""
        return json.dumps(asdict(self))


def utc_now() -> datetime:
    """The present; tests have others."""
    return datetime.now(UTC)


@dg.sensor(
    job=daily_graph,
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=f"Requests a day at {RUN_HOUR}:00 UTC if its clicks have landed, else when they land, and again when "
    f"they change. A day without a verdict at {DEADLINE_HOUR}:00 is told to be late. What had landed when this was "
    "first turned on is history, for a backfill to take up.",
)
def landed_days(context: dg.SensorEvaluationContext, lake: LakeResource) -> dg.SensorResult:
    """Looks for the days that are due, and requests those that landed or changed."""
    now, landing = utc_now(), lake.landing()
    if context.cursor is None:
        return _first_look(context.instance, landing, now)
    progress = Progress.from_cursor(context.cursor)
    expected = expected_days(progress.since, now)
    seen = _latest(context.instance, LANDING, DagsterEventType.ASSET_OBSERVATION, expected)
    missing = [day for day in expected if day not in seen]
    arrived, trouble = _look_for(landing, missing)
    progress = _read(context.instance, progress, now)
    requested = {day: number for day, number in sorted(progress.waiting.items()) if now >= due(day)}
    judged = _latest(context.instance, VERDICT, DagsterEventType.ASSET_MATERIALIZATION, expected)
    late = late_days(expected, judged, now)
    told = [_late(day, landing, landed=day not in missing) for day in late if day not in progress.late]
    waiting = {day: number for day, number in progress.waiting.items() if day not in requested}
    still_missing = [day for day in missing if day not in arrived]
    return dg.SensorResult(
        # The observation's number makes the run key: a file that changes back to what it once was must be taken up
        # again, and Dagster remembers a run key for ever.
        run_requests=[dg.RunRequest(run_key=f"{day}:{number}", partition_key=day) for day, number in requested.items()],
        skip_reason=None if requested else trouble or _why_none(landing, arrived, still_missing, waiting),
        asset_events=[*(_observation(day, version) for day, version in arrived.items()), *told],
        cursor=replace(progress, waiting=waiting, late=late).cursor,
    )


def _first_look(instance: dg.DagsterInstance, landing: Landing, now: datetime) -> dg.SensorResult:
    """Begins with the first day that has not landed: yesterday, or the day that goes on."""
    latest = instance.fetch_observations(LANDING, limit=1).records
    newest = newest_day(now)
    since = newest if landing.version(newest) is None else str(now.date())
    progress = Progress(after=latest[0].storage_id if latest else 0, since=since)
    return dg.SensorResult(cursor=progress.cursor, skip_reason=f"days run by themselves from {since} on")


def _look_for(landing: Landing, days: Iterable[str]) -> tuple[dict[str, str], str]:
    """The versions of those of the days that have landed, and what kept it from looking."""
    arrived: dict[str, str] = {}
    for day in days:
        try:
            version = landing.version(day)
        except Exception as error:  # noqa: BLE001 - it is looked for again in a minute; what is known is requested now
            return arrived, f"the landing area can't be read: {error}"
        if version is not None:
            arrived[day] = version
    return arrived, ""


def _read(instance: dg.DagsterInstance, progress: Progress, now: datetime) -> Progress:
    """Takes up what was observed since, each day by its last change."""
    since = dg.AssetRecordsFilter(LANDING, after_storage_id=progress.after)
    records = instance.fetch_observations(since, limit=EVENTS_PER_TICK, ascending=True).records
    waiting, after = dict(progress.waiting), progress.after
    for record in records:
        day = record.partition_key
        if day and FIRST_DAY <= day <= newest_day(now) and _is_news(instance, record, day, progress.since):
            waiting[day] = record.storage_id
        if record.timestamp < now.timestamp() - SETTLED_SECONDS:
            after = record.storage_id
    return replace(progress, waiting=waiting, after=after)


def _is_news(instance: dg.DagsterInstance, record: Any, day: str, since: str) -> bool:
    """Whether an observation says that a day landed since the sensor is on, or that its clicks changed."""
    before = dg.AssetRecordsFilter(LANDING, asset_partitions=[day], before_storage_id=record.storage_id)
    earlier = instance.fetch_observations(before, limit=1).records
    return _version(earlier[0]) != _version(record) if earlier else day >= since


def _version(record: Any) -> str | None:
    found: str | None = record.asset_observation.tags.get(DATA_VERSION)
    return found


def _latest(
    instance: dg.DagsterInstance, asset: dg.AssetKey, kind: DagsterEventType, days: Iterable[str]
) -> Collection[str]:
    """Those of the days that have such a record."""
    return instance.event_log_storage.get_latest_storage_id_by_partition(asset, kind, set(days)).keys()


def _observation(day: str, version: str) -> dg.AssetObservation:
    return dg.AssetObservation(LANDING, partition=day, tags={DATA_VERSION: version})


def _late(day: str, landing: Landing, *, landed: bool) -> dg.AssetObservation:
    if landed:
        what, todo = "it has no verdict yet", "Its clicks have landed: see whether its run failed, waits or goes on."
        path = f"assets/promoted_model?partition={day}"
    else:
        what = "its clicks have not landed"
        todo = f"{landing.uri(day)} is not there: ask who delivers it. The day runs as soon as it lands."
        path = f"assets/raw_clicks?partition={day}"
    return notice(kind="late days", key=f"late day {day}", title=f"{day} is late: {what}", text=todo, path=path)


def _why_none(landing: Landing, arrived: Collection[str], missing: Sequence[str], waiting: Collection[str]) -> str:
    """Why no day is requested."""
    reasons = [f"{day} has landed and runs next" for day in arrived if day not in waiting]
    reasons += [f"{day} has landed and runs at {due(day):%H:%M} UTC" for day in waiting]
    reasons += [f"{day} has not landed: {landing.uri(day)} is not there" for day in missing]
    return "; ".join(reasons) or "no landing file is new or changed"


def _at(day: str, hour: int) -> datetime:
    return datetime.combine(date.fromisoformat(day) + timedelta(days=1), time(hour), tzinfo=UTC)
