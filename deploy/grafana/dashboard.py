"""The dashboard: is the fleet answering, by which model, are the days there, and how did their runs end.

`python deploy/grafana/dashboard.py` writes mlops-assets.json, which Grafana loads. Prometheus knows the workers and,
by the monitor, Dagster's vital signs; the lists of runs and checks are read from Dagster's database.
"""

from __future__ import annotations

import json
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Final

from grafana_foundation_sdk.builders import dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models.dashboard import DataSourceRef
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

FILE: Final = Path(__file__).with_name("mlops-assets.json")
PROMETHEUS: Final = DataSourceRef("prometheus", "prometheus")
DAGSTER: Final = DataSourceRef("grafana-postgresql-datasource", "dagster")
WIDTH: Final = 24  # of Grafana's grid

NOW: Final = (
    ("Workers ready", "sum(inference_ready)", "short"),
    ("Partitions read, of 12", "sum(inference_partitions)", "short"),
    ("Messages waiting", "sum(inference_backlog_messages)", "short"),
    ("Partitions rebuilding", "sum(inference_partitions_replaying)", "short"),
    ("Answered in a day", "sum(increase(inference_clicks_total[1d]))", "short"),
    ("Dead letters in a day", "sum(increase(inference_dead_letters_total[1d]))", "short"),
)
"""Title, query and unit of a number."""

QUANTILES: Final = "histogram_quantile({q}, sum by (le) (rate({name}_bucket[5m])))"
CURVES: Final[tuple[tuple[str, str, dict[str, str]], ...]] = (
    ("Clicks answered", "reqps", {"{{instance}}": "rate(inference_clicks_total[1m])"}),
    (
        "Latency, from the click's timestamp to its committed answer",
        "s",
        {f"p{100 * q:g}": QUANTILES.format(q=q, name="inference_latency_seconds") for q in (0.5, 0.99)},
    ),
    ("Messages not yet read", "short", {"{{instance}}": "inference_backlog_messages"}),
    (
        "Time of a batch and of a commit, p99",
        "s",
        {n: QUANTILES.format(q=0.99, name=f"inference_{n}_seconds") for n in ("batch", "commit")},
    ),
    ("Mean score, by model", "percentunit", {"{{version}}": "inference_score:mean1h"}),
    ("Scores up to 0.01 and 0.1, by model", "percentunit", {"{{version}} up to {{le}}": "inference_score:share1h"}),
    ("Dead letters", "cps", {"{{reason}}": "sum by (reason) (rate(inference_dead_letters_total[5m]))"}),
    ("Transactions", "cps", {"{{outcome}}": "sum by (outcome) (rate(inference_transactions_total[5m]))"}),
    (
        "Changes of the assignment, and replay",
        "short",
        {
            "{{event}}": "sum by (event) (increase(inference_rebalances_total[5m]))",
            "messages counted again per second": "sum(rate(inference_replayed_total[5m]))",
        },
    ),
    ("Clicks too late to be counted exactly", "cps", {"late": "sum(rate(inference_late_clicks_total[5m]))"}),
    ("Memory", "bytes", {"{{instance}}": 'process_resident_memory_bytes{job=~"(.+/)?inference"}'}),
    ("Live keys of the running counts", "short", {"{{instance}}": "inference_count_keys"}),
    ("Model in use", "short", {"{{version}} {{algorithm}}": "count by (version, algorithm) (inference_model)"}),
    ("CPU", "percentunit", {"{{instance}}": 'rate(process_cpu_seconds_total{job=~"(.+/)?inference"}[5m])'}),
)
"""Title, unit, and queries by legend."""

LIVE: Final = 'daemon=~"SENSOR|SCHEDULER|BACKFILL|QUEUED_RUN_COORDINATOR"'
REAPED: Final = 'dagster_job="reap_clusters", status="success"'
DAYS_NOW: Final = (
    ("Days late", 'sum(mlops_days{state="late", asset="promoted_model"})', "short"),
    ("Days failed", 'sum(mlops_days{state="failed"})', "short"),
    ("Runs queued", 'sum(mlops_runs{status="queued"})', "short"),
    ("Age of production's model", "time() - max(mlops_champion_timestamp_seconds)", "s"),
    ("Daemon's last sign of life", f"time() - min(mlops_daemon_heartbeat_timestamp_seconds{{{LIVE}}})", "s"),
    ("Reaper's last success", f"time() - max(mlops_job_last_timestamp_seconds{{{REAPED}}})", "s"),
)
DAYS_CURVES: Final[tuple[tuple[str, str, dict[str, str]], ...]] = (
    ("Runs that have not ended", "short", {"{{status}}": "sum by (status) (mlops_runs)"}),
    ("Wait of the oldest queued run", "s", {"wait": "max(mlops_queue_oldest_seconds)"}),
    (
        "Hours of Spark's clusters, in a day",
        "h",
        {"{{asset}}": "sum by (asset) (increase(mlops_spark_cluster_seconds_total[1d])) / 3600"},
    ),
    (
        "Messages to people",
        "short",
        {
            "sent in an hour": "sum(increase(mlops_messages_sent_total[1h]))",
            "waiting": "sum(mlops_messages_waiting)",
            "given up in an hour": "sum(increase(mlops_messages_lost_total[1h]))",
        },
    ),
)

TABLES: Final = (
    (
        "The latest run of each job and day",
        """SELECT * FROM (
  SELECT DISTINCT ON (pipeline_name, partition)
    pipeline_name AS job, partition AS day, status, to_timestamp(start_time) AS started,
    round(((coalesce(end_time, extract(epoch FROM now())) - start_time) / 60)::numeric, 1) AS minutes, run_id AS run
  FROM runs WHERE start_time IS NOT NULL ORDER BY pipeline_name, partition, create_timestamp DESC
) AS latest ORDER BY started DESC LIMIT 100""",
    ),
    (
        "Runs of the last days, by how they ended",
        """SELECT date(create_timestamp) AS date, pipeline_name AS job, status, count(*) AS runs
FROM runs WHERE create_timestamp > now() - interval '14 days' GROUP BY 1, 2, 3 ORDER BY 1 DESC, 2, 3""",
    ),
    (
        "Checks that failed last",
        """SELECT asset_key AS asset, check_name AS check, evaluation_event_timestamp AS at, run_id AS run
FROM asset_check_executions WHERE execution_status = 'FAILED' ORDER BY create_timestamp DESC LIMIT 50""",
    ),
)
"""Title and SQL on Dagster's database."""


class Sql(Builder[Dataquery], Dataquery):
    """A query of Grafana's Postgres data source, for which the SDK has no builder."""

    def __init__(self, sql: str) -> None:
        self.sql = sql

    def build(self) -> Dataquery:
        """Itself: it is its own builder."""
        return self

    def to_json(self) -> dict[str, Any]:
        """As Grafana keeps it."""
        return {"refId": "A", "datasource": DAGSTER, "format": "table", "rawQuery": True, "rawSql": self.sql}


def query(expr: str, legend: str = "", ref: str = "A") -> prometheus.Dataquery:
    """A query of Prometheus over the dashboard's time."""
    return prometheus.Dataquery().expr(expr).legend_format(legend).format(PromQueryFormat.TIME_SERIES).ref_id(ref)


def build() -> dict[str, Any]:
    """The dashboard, as Grafana's JSON."""
    board = dashboard.Dashboard("Mobile ads: clicks to models to answers")
    board = board.uid("mlops-assets").tags(["mlops-assets"]).refresh("30s").time("now-6h", "now").readonly()
    for row, numbers in (("The workers, now", NOW), ("The days, now", DAYS_NOW)):
        board = board.with_row(dashboard.Row(row))
        for title, expr, unit in numbers:
            number = stat.Panel().title(title).datasource(PROMETHEUS).unit(unit).height(4).span(WIDTH // len(numbers))
            board = board.with_panel(number.with_target(query(expr)))
    for row, curves in (("The workers", CURVES), ("The days", DAYS_CURVES)):
        board = board.with_row(dashboard.Row(row))
        for title, unit, queries in curves:
            curve = timeseries.Panel().title(title).datasource(PROMETHEUS).unit(unit).height(7).span(WIDTH // 2).min(0)
            for ref, (legend, expr) in zip(ascii_uppercase, queries.items(), strict=False):
                curve = curve.with_target(query(expr, legend, ref))
            board = board.with_panel(curve)
    for title, sql in TABLES:
        rows = table.Panel().title(title).datasource(DAGSTER).height(9).span(WIDTH)
        board = board.with_panel(rows.with_target(Sql(sql)))
    document: dict[str, Any] = json.loads(json.dumps(board.build(), cls=JSONEncoder))
    return document


def text() -> str:
    """The file's content."""
    return json.dumps(build(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
