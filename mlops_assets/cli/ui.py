"""`mlops-assets ui`: Dagster's UI on an instance folder."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from mlops_assets.cli.dagster_server import serve
from mlops_assets.cli.fleet import still_running
from mlops_assets.cli.form import entered, form_option, home_of, home_option
from mlops_assets.resources.environment import variables


@click.command()
@form_option
@home_option
@click.option("--port", default=3000, show_default=True, help="The port to listen on, on the loopback interface.")
def ui(form: str, home: Path | None, port: int) -> None:
    """Opens Dagster's UI, with its daemon, on the data of an environment. Ctrl-C ends it."""
    home = home_of(form, home)
    try:
        with entered(form, home, Console()):
            click.echo("Starting Dagster ...")
            with serve(home / "dagster", variables(form, home), port) as server:
                click.echo(f"Dagster's UI: {server.url}")
                server.wait()
        raise click.ClickException(f"Dagster ended; the reason is at the end of {home / 'dagster' / 'dagster.log'}")
    finally:
        if fleet := still_running(home):
            click.echo(fleet)
