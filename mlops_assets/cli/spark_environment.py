"""`mlops-assets spark-environment`: packs this project's Python for EMR and Data Proc, see docs/clouds.md."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from mlops_assets.resources.programs import ProgramError
from mlops_assets.resources.spark_environment import ARCHIVE, build, publish


@click.command()
@click.option("--to", required=True, metavar="ADDRESS", help="Where it goes, like s3://bucket/prefix.")
@click.option(
    "--python",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of a relocatable CPython for Linux on x86-64; uv downloads one without it.",
)
@click.option(
    "--project",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=".",
    show_default="this folder",
    help="The checkout of this project.",
)
def spark_environment(to: str, python: Path | None, project: Path) -> None:
    """Pack and upload this project's Python for clusters that bring only Spark; print the variable to set."""
    with tempfile.TemporaryDirectory(prefix="mlops-assets-") as folder:
        archive = Path(folder) / ARCHIVE
        try:
            version = build(project.resolve(), archive, python)
            click.echo(f"{archive.stat().st_size / 1e6:.0f} MB packed, uploading", err=True)
            address = publish(archive, version, to)
        except (ProgramError, OSError, ValueError) as error:
            raise click.ClickException(str(error)) from error
    click.echo(f"MLOPS_SPARK_ENVIRONMENT={address}")
