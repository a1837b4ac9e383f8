"""`mlops-assets fleet stop`: ends the inference workers of this machine."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from mlops_assets.cli.form import form_option, home_of, home_option
from mlops_assets.resources.environment import embedded
from mlops_assets.resources.inference import LocalFleet


def local_fleet(home: Path) -> LocalFleet:
    """The fleet whose workers are processes of this machine."""
    fleet: LocalFleet = embedded(home)["fleet"]
    return fleet


def still_running(home: Path) -> str:
    """What to know when everything else has ended and the fleet has not; empty if there is none.

    A rollout starts it, and it goes on by itself: whoever ends the UI does not mean to end the service.
    """
    supervisor = local_fleet(home).supervisor
    if supervisor is None:
        return ""
    command = f"mlops-assets fleet stop --home {shlex.quote(str(home))}"
    return f"The inference workers go on, under their supervisor, process {supervisor}. To stop them: {command}"


@click.group()
def fleet() -> None:
    """The inference workers of this machine, which a rollout starts and which outlive the UI."""


@fleet.command()
@form_option
@home_option
def stop(form: str, home: Path | None) -> None:
    """End them, each after its current batch. The next rollout starts them again."""
    workers = local_fleet(home_of(form, home))
    running = workers.supervisor is not None
    workers.stop()
    click.echo("The inference workers are stopped." if running else "No inference workers were running.")
