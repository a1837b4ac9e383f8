"""The form of the environment that a command works in: its options, and the servers it takes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click
from rich.console import Console

from mlops_assets.cli.servers import servers
from mlops_assets.resources.environment import DEFAULT_HOME
from mlops_assets.resources.programs import ProgramError

form_option = click.option(
    "--environment",
    "form",
    type=click.Choice(["embedded", "real"]),
    default="embedded",
    show_default=True,
    help="real: on an S3 server, and an MLflow server on Postgres, which are started here unless they are named.",
)
home_option = click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    show_default=f"{DEFAULT_HOME}, or {DEFAULT_HOME}-real for the real one",
    help="The data.",
)


def home_of(form: str, home: Path | None) -> Path:
    """The home that was given, or that form's usual one."""
    return (home or Path(DEFAULT_HOME if form == "embedded" else f"{DEFAULT_HOME}-{form}")).resolve()


@contextmanager
def entered(form: str, home: Path, console: Console) -> Iterator[None]:
    """This process, and all that it starts, in that form, with its servers. Raises ClickException if one fails."""
    if form == "embedded":
        yield
        return
    console.print("Starting S3, Postgres and MLflow ...")
    with ExitStack() as stack:
        try:
            os.environ.update(stack.enter_context(servers(home / "servers")))
        except ProgramError as error:
            raise click.ClickException(str(error)) from error
        yield
