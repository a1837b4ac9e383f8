"""What Prometheus sees of Dagster's side: read from Dagster's storage and the ledger, also when the daemon is dead."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Final

import dagster as dg
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mlops_assets.assets.promoted_model import LEDGER, ledger
from mlops_assets.automation.tell_people import read_outbox
from mlops_assets.modelling.ledger import Entry, replay
from mlops_assets.partitions import GRAPH, daily
from mlops_assets.resources.environment import EPHEMERAL_SPARK
from mlops_assets.resources.lake import LakeResource

SPARK_ASSETS: Final = ("training_set", "batch_predictions")
JOBS: Final = ("daily_graph", "rollout", "override", "reap_clusters")
WINDOW_DAYS: Final = 30
"""A scrape looks at the days of the last month, so that its cost doesn't grow with the years."""
PAGE: Final = 1000
PAGES: Final = 10
FRESH_SECONDS: Final = 10.0
"""Two scrapes within this time, as of two Prometheus, are answered from one look."""
WAIT_SECONDS: Final = 8.0

_log = logging.getLogger(__name__)


def expected_days(now: datetime, hours: float) -> list[str]:
    """The days of the window that should be there, when a day is due that many hours after its end."""
    newest = (now - timedelta(hours=24 + hours)).date()
    window = [str(newest - timedelta(days=back)) for back in reversed(range(WINDOW_DAYS))]
    return [day for day in window if daily.has_partition_key(day)]


class Vitals(Collector):
    """Dagster's vital signs as of each scrape. A source that can't be read is said to be so and costs no other one."""

    def __init__(self, instance: dg.DagsterInstance, lake: LakeResource, due_hours: float) -> None:
        self._instance, self._lake, self._due_hours = instance, lake, due_hours
        self._lock = threading.Lock()
        self._seen: tuple[float, list[Metric]] | None = None
        self._ledger: tuple[str, list[Entry]] = ("", [])
        self._cluster_seconds: Counter[str] = Counter()
        self._read_up_to: dict[str, int] = dict.fromkeys(SPARK_ASSETS, 0)

    def describe(self) -> Iterator[Metric]:
        """Nothing: to register it, nothing is read."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """All metrics. Raises TimeoutError if an earlier scrape still hangs."""
        if not self._lock.acquire(timeout=WAIT_SECONDS):
            raise TimeoutError("the look of an earlier scrape has not ended: Dagster's database or the lake hangs")
        try:
            if not self._seen or time.monotonic() - self._seen[0] > FRESH_SECONDS:
                self._seen = (time.monotonic(), list(self._look()))
            yield from self._seen[1]
        finally:
            self._lock.release()

    def _look(self) -> Iterator[Metric]:
        sources: dict[str, Callable[[], Iterator[Metric]]] = {
            "daemon": self._daemon,
            "runs": self._runs,
            "jobs": self._jobs,
            "days": self._days,
            "champion": self._champion,
            "clusters": self._clusters,
            "messages": self._messages,
        }
        up = GaugeMetricFamily("mlops_source_up", "Whether that part could be read", labels=["source"])
        for name, source in sources.items():
            try:
                found = list(source())
            except Exception as error:  # noqa: BLE001 - what can't be read is a metric; the rest is reported all the same
                _log.warning(f"{name} could not be read: {type(error).__name__}: {error}")
                up.add_metric([name], 0)
            else:
                up.add_metric([name], 1)
                yield from found
        yield up

    def _daemon(self) -> Iterator[Metric]:
        text = "When each of the daemon's parts was last alive"
        family = GaugeMetricFamily("mlops_daemon_heartbeat_timestamp_seconds", text, labels=["daemon"])
        for name, heartbeat in self._instance.get_daemon_heartbeats().items():
            family.add_metric([name], heartbeat.timestamp)
        yield family

    def _runs(self) -> Iterator[Metric]:
        family = GaugeMetricFamily("mlops_runs", "Runs that have not ended", labels=["status"])
        statuses = dg.DagsterRunStatus
        for status in (statuses.QUEUED, statuses.STARTING, statuses.STARTED, statuses.CANCELING):
            count = self._instance.get_runs_count(dg.RunsFilter(statuses=[status]))
            family.add_metric([status.value.lower()], count)
        yield family
        queued = dg.RunsFilter(statuses=[statuses.QUEUED])
        oldest = self._instance.get_run_records(queued, limit=1, ascending=True)
        waits = max(0.0, time.time() - oldest[0].create_timestamp.timestamp()) if oldest else 0.0
        yield GaugeMetricFamily(
            "mlops_queue_oldest_seconds", "For how long the oldest queued run has waited", value=waits
        )

    def _jobs(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(
            "mlops_job_last_timestamp_seconds", "When a run of that job last ended so", labels=["dagster_job", "status"]
        )
        for job in JOBS:
            for status in (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE):
                records = self._instance.get_run_records(dg.RunsFilter(job_name=job, statuses=[status]), limit=1)
                ended = records[0].end_time if records else None
                if ended:
                    family.add_metric([job, status.value.lower()], ended)
        yield family
        text = "Whether Spark's clusters come and go here, so that a reaper must run"
        yield GaugeMetricFamily("mlops_ephemeral_clusters", text, value=EPHEMERAL_SPARK)

    def _days(self) -> Iterator[Metric]:
        days = GaugeMetricFamily("mlops_days", "Days of the last month by what they lack", labels=["asset", "state"])
        newest = GaugeMetricFamily("mlops_newest_day_timestamp_seconds", "Begin of the newest day", labels=["asset"])
        expected = expected_days(datetime.now(UTC), self._due_hours)
        window = set(expected)
        for name in GRAPH:
            asset = dg.AssetKey(name)
            kind = dg.DagsterEventType.ASSET_MATERIALIZATION
            latest = self._instance.get_latest_storage_id_by_partition(asset, kind)
            there = sorted(latest)
            if there:
                newest.add_metric(
                    [name], datetime.combine(date.fromisoformat(there[-1]), datetime.min.time(), UTC).timestamp()
                )
            late = [day for day in expected if there and there[0] < day and day not in latest]
            days.add_metric([name, "late"], len(late))
            days.add_metric([name, "failed"], len(self._failed(asset, window)))
        yield days
        yield newest

    def _failed(self, asset: dg.AssetKey, window: set[str]) -> list[str]:
        """The days of the window whose latest attempt failed."""
        storage = self._instance.event_log_storage
        attempts = storage.get_latest_asset_partition_materialization_attempts_without_materializations(asset)
        recent = {day: run_id for day, (run_id, _) in attempts.items() if day in window}
        if not recent:
            return []
        runs = self._instance.get_runs(dg.RunsFilter(run_ids=sorted(set(recent.values()))))
        failed = {run.run_id for run in runs if run.status is dg.DagsterRunStatus.FAILURE}
        return [day for day, run_id in recent.items() if run_id in failed]

    def _champion(self) -> Iterator[Metric]:
        store = self._lake.lake()
        newest = max(store.storage.list(LEDGER), default="")
        if newest != self._ledger[0]:
            self._ledger = (newest, ledger(store))
        champion = replay(self._ledger[1]).champion
        family = GaugeMetricFamily(
            "mlops_champion_timestamp_seconds", "When production's model was decided on", labels=["model_version"]
        )
        if champion:
            family.add_metric([champion.model_version], datetime.fromisoformat(champion.time).timestamp())
        yield family

    def _clusters(self) -> Iterator[Metric]:
        """Each day carries what its whole job took; a job of several days is counted once by its days' shares."""
        whole = True
        for name in SPARK_ASSETS:
            for _ in range(PAGES):
                since = dg.AssetRecordsFilter(asset_key=dg.AssetKey(name), after_storage_id=self._read_up_to[name])
                records = self._instance.fetch_materializations(since, limit=PAGE, ascending=True).records
                for record in records:
                    metadata = record.asset_materialization.metadata if record.asset_materialization else {}
                    seconds, days = (metadata.get(f"spark/{field}") for field in ("cluster_seconds", "days"))
                    if seconds and days:
                        self._cluster_seconds[name] += float(seconds.value) / max(1, int(days.value))  # type: ignore[arg-type]
                    self._read_up_to[name] = record.storage_id
                if len(records) < PAGE:
                    break
            else:
                whole = False
        if whole:  # else a counter would seem to rise while the past is read
            text = "For how long Spark's clusters were there, by what they made"
            family = CounterMetricFamily("mlops_spark_cluster_seconds", text, labels=["asset"])
            for name in SPARK_ASSETS:
                family.add_metric([name], self._cluster_seconds[name])
            yield family

    def _messages(self) -> Iterator[Metric]:
        outbox = read_outbox(self._instance)
        if outbox is None:
            return
        yield CounterMetricFamily("mlops_messages_sent", "Messages to people that were taken", value=outbox.sent)
        yield CounterMetricFamily("mlops_messages_lost", "Messages to people that were given up", value=outbox.lost)
        yield GaugeMetricFamily(
            "mlops_messages_waiting", "Messages that somebody has not been told", value=outbox.waiting
        )
        text = "When it was last looked for what people have to be told"
        yield GaugeMetricFamily("mlops_messages_looked_timestamp_seconds", text, value=outbox.looked_at)
        text = "When a message was last refused; 0 if never"
        yield GaugeMetricFamily("mlops_messages_failed_timestamp_seconds", text, value=outbox.failed_at)
