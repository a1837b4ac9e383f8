"""What the lake no longer needs is deleted once a week. docs/lake.md says what that is."""

from datetime import timedelta
from typing import Any, Final

import dagster as dg
from pydantic import Field

from mlops_assets.automation.run_queues import operators
from mlops_assets.resources.environment import SCHEDULES_START
from mlops_assets.resources.lake import LakeResource

SHOWN: Final = 20


class Retention(dg.Config):
    """What one look at the lake does."""

    dry_run: bool = Field(default=True, description="only say what would be deleted")
    days: int = Field(default=3, ge=2, description="files that no snapshot has stay for so many days")


@dg.op(description="Deletes the files of the lake's tables that no snapshot has, or says what it would delete.")
def delete_orphan_files(context: dg.OpExecutionContext, lake: LakeResource, config: Retention) -> None:
    """Every table by itself. Fails at the end if one could not be judged, or its files could not be deleted."""
    from mlops_assets.lake import retention  # pyiceberg takes a while, and other processes do without it

    store, found, errors = lake.lake(), dict[str, Any](), list[str]()
    for table in retention.NAMES:
        try:
            old = retention.orphans(store, table, timedelta(days=config.days))
            for each in old[:SHOWN]:
                context.log.info(f"{each.key}, {each.bytes:,} bytes, of {each.changed:%Y-%m-%d %H:%M} UTC")
            if len(old) > SHOWN:
                context.log.info(f"and {len(old) - SHOWN:,} more of {table}")
            if not config.dry_run:
                store.storage.delete([each.key for each in old])
        except (retention.CatalogBehindError, OSError) as error:
            errors.append(str(error))
            continue
        found[f"{table}/files"], found[f"{table}/bytes"] = len(old), sum(each.bytes for each in old)
    context.add_output_metadata({"dry run": config.dry_run, **found})
    if errors:
        raise dg.Failure("; ".join(errors), metadata=found)


@dg.job(
    description="Deletes what the lake no longer needs. By hand it only says what that is, unless dry_run is off.",
    tags=operators("retention"),
)
def retention() -> None:
    """One look."""
    delete_orphan_files()


retention_weekly = dg.ScheduleDefinition(
    job=retention,
    cron_schedule="0 3 * * 0",
    run_config={"ops": {"delete_orphan_files": {"config": {"dry_run": False}}}},
    default_status=SCHEDULES_START,
)
