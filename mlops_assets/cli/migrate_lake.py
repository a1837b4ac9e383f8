"""`mlops-assets migrate-lake`: a lake in the layout before Iceberg becomes Iceberg tables."""

from __future__ import annotations

from pathlib import Path

import click

from mlops_assets.cli.clicks import home_option, lake_option
from mlops_assets.lake.store import Lake


@click.command("migrate-lake")
@home_option
@lake_option
@click.option("--delete-old", is_flag=True, help="Delete the old files. Their days must have been migrated before.")
def migrate_lake(home: Path, lake: str | None, delete_old: bool) -> None:
    """Make Iceberg tables of a lake that is older than them.

    Stop everything else that uses the lake first. Each day is checked: as many rows as before, and the same version.
    What is done already is left alone, so a migration that was interrupted is simply run again.
    """
    from mlops_assets.lake import migration  # pyiceberg takes a second

    store = Lake(lake or str(home / "lake"))
    try:
        (migration.delete_old if delete_old else migration.migrate)(store, click.echo)
    except (OSError, ValueError, migration.MigrationError) as error:
        raise click.ClickException(str(error)) from error
