"""The graph as people see it: what changes of its assets, jobs, schedules, sensors and checks shows in a review."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

import dagster as dg

from mlops_assets.definitions import defs

KEPT: Final = Path(__file__).with_name("definitions.json")


def graph() -> dict[str, Any]:
    """What the graph consists of, by name."""
    repository, assets = defs.get_repository_def(), defs.resolve_asset_graph()
    return {
        "assets": {node.key.to_user_string(): _asset(node) for node in assets.asset_nodes},
        "checks": {
            f"{key.asset_key.to_user_string()}: {key.name}": "blocking" if assets.get(key).blocking else "warning"
            for key in assets.asset_check_keys
        },
        "jobs": {
            job.name: {"steps": sorted(node.name for node in job.nodes), "tags": dict(job.tags)}
            for job in repository.get_all_jobs()
            if job.name != "__ASSET_JOB"
        },
        "schedules": {
            each.name: {"cron": each.cron_schedule, "job": each.job_name, "status": each.default_status.value}
            for each in repository.schedule_defs
        },
        "sensors": {
            each.name: {
                "every_seconds": each.minimum_interval_seconds,
                "jobs": sorted(target.job_name for target in each.targets),
                "status": each.default_status.value,
            }
            for each in repository.sensor_defs
        },
    }


def _asset(node: Any) -> dict[str, Any]:
    return {
        "group": node.group_name,
        "kinds": sorted(node.kinds),
        "made_of": sorted(key.to_user_string() for key in node.parent_keys),
        "partitioned": node.is_partitioned,
        "pools": sorted(node.pools or ()),
    }


def test_the_graph_is_the_one_that_was_reviewed() -> None:
    wanted = json.loads(KEPT.read_text())
    for kind, found in graph().items():
        assert found == wanted[kind], f"if that is meant: python -m {__name__} > {KEPT.name}"


def test_the_graph_can_be_loaded() -> None:
    dg.Definitions.validate_loadable(defs)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(graph(), indent=1, sort_keys=True) + "\n")
