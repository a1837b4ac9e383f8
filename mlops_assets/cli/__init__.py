"""The command line, `mlops-assets`: a file per group of commands, imported only when it is called."""

from __future__ import annotations

import importlib
import signal
import sys
from types import FrameType
from typing import Final

import click

COMMANDS: Final = {
    "import": "mlops_assets.cli.clicks:import_clicks",
    "generate": "mlops_assets.cli.clicks:generate",
    "kafka": "mlops_assets.cli.kafka:kafka",
    "produce": "mlops_assets.cli.produce:produce",
    "watch": "mlops_assets.cli.watch:watch",
    "demo": "mlops_assets.cli.demo:demo",
    "ui": "mlops_assets.cli.ui:ui",
    "fleet": "mlops_assets.cli.fleet:fleet",
    "monitor": "mlops_assets.cli.monitor:monitor",
    "spark-environment": "mlops_assets.cli.spark_environment:spark_environment",
}


class LazyGroup(click.Group):
    """Imports a command's module when that command is asked for, so that `--help` of one pays for one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order a newcomer meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, or None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="mlops-assets")
def main() -> None:
    """Score ad clicks for fraud, every day."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, end_in_order)


def end_in_order(number: int, frame: FrameType | None) -> None:
    """Ends a command as Ctrl-C does, with the servers that it started; a second signal does not interrupt that."""
    for each in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)
