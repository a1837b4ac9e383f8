"""`mlops-assets import` and `mlops-assets generate`: clicks into the landing area."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mlops_assets.clicks.csv import write
from mlops_assets.clicks.synthetic import generate_day
from mlops_assets.lake.importing import Imported, import_files, sources_of
from mlops_assets.lake.landing import FOLDER, LandedError, Landing

home_option = click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    default=lambda: Path(os.environ.get("MLOPS_HOME", ".demo")),
    show_default=".demo, or MLOPS_HOME",
    help="Where the data lives; the clicks land in its lake.",
)
lake_option = click.option(
    "--lake",
    default=lambda: os.environ.get("MLOPS_LAKE") if os.environ.get("MLOPS_ENVIRONMENT") == "real" else None,
    show_default="the folder `lake` of the home, or MLOPS_LAKE in the real environment",
    help="Another lake, like s3://bucket/prefix.",
)
replace_option = click.option("--replace", is_flag=True, help="Replace days that have landed with other clicks.")


@click.command("import")
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@home_option
@lake_option
@replace_option
def import_clicks(source: Path, home: Path, lake: str | None, replace: bool) -> None:
    """Land the clicks of SOURCE, one file a day.

    SOURCE is Kaggle's train.csv or a sample of it in any order, or a folder of such files; .csv or .csv.gz.
    """
    console = Console()
    landing = Landing(lake or str(home / "lake"))
    try:
        files = sources_of(source)
        with _progress(console, DownloadColumn(), sum(file.stat().st_size for file in files), source.name) as advance:
            imported = import_files(files, landing, replace=replace, advance=advance)
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    _report(console, landing, imported)
    if not imported.landed:
        raise click.ClickException(f"{source}: not one click of a day")


@click.command()
@click.option("--days", type=click.IntRange(1), default=4, show_default=True)
@click.option("--clicks", type=click.IntRange(1), default=100_000, show_default=True, help="Clicks of each day.")
@click.option("--seed", type=click.IntRange(0), default=7, show_default=True)
@click.option("--first-day", type=click.DateTime(["%Y-%m-%d"]), default="2017-11-06", show_default=True)
@click.option(
    "--drift",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="How far what is popular and what leads to installs has moved, from 0 (not at all) to 1 (to another world).",
)
@home_option
@lake_option
@replace_option
def generate(
    days: int,
    clicks: int,
    seed: int,
    first_day: datetime.datetime,
    drift: float,
    home: Path,
    lake: str | None,
    replace: bool,
) -> None:
    """Land synthetic clicks of TalkingData's shape, the same for the same options."""
    console = Console()
    landing = Landing(lake or str(home / "lake"))
    imported = Imported()
    with ExitStack() as stack, _progress(console, MofNCompleteColumn(), days * clicks, "clicks") as advance:
        files = []
        for number in range(days):
            date = first_day.date() + datetime.timedelta(number)
            file = stack.enter_context(landing.stage(str(date)))
            for batch in generate_day(date, clicks, seed, drift):
                file.write(write(batch))
                advance(len(batch))
            file.close()
            files.append(file)
            imported.landed[str(date)] = clicks
        try:
            imported.changed = landing.publish(files, replace)
        except LandedError as error:
            raise click.ClickException(str(error)) from error
    _report(console, landing, imported)


@contextmanager
def _progress(
    console: Console, amount: MofNCompleteColumn | DownloadColumn, total: int, name: str
) -> Iterator[Callable[[int], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), amount, TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(name, total=total)
        yield lambda amount: progress.advance(task, amount)


def _report(console: Console, landing: Landing, imported: Imported) -> None:
    for day, clicks in imported.landed.items():
        console.print(f"{day}  {clicks:>13,} clicks  {'landed' if day in imported.changed else 'unchanged'}")
    for source, lines in imported.rejected.items():
        if lines:
            rejects = landing.storage.uri(f"{FOLDER}/rejects/{source}.csv")
            console.print(f"{lines:,} lines of {source} belong to no day; they are kept in {rejects}", soft_wrap=True)
    console.print(
        f"{imported.lines:,} lines = {sum(imported.landed.values()):,} landed + "
        f"{sum(imported.rejected.values()):,} rejected, in {landing.storage.uri(FOLDER)}",
        soft_wrap=True,
    )
