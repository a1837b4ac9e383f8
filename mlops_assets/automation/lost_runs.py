"""Runs whose process is gone: they are failed, so that they hold no place and no pool, and Dagster starts them again.

    python -m mlops_assets.automation.lost_runs dagster code-server start ... --port PORT

Dagster's default launcher starts runs as children of the code server, and can't tell whether one lives that an earlier
code server started. So whoever starts the first one of a machine or container says it: what is running by Dagster's
records can't be. As a command this notes those runs, becomes the code server, and fails them once that can be used: the
daemon tries just once to start a run again, and needs the code server for it.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Collection
from typing import Final

import dagster as dg

MESSAGE: Final = "Its process ended with the code server that had started it."
RUNNING: Final = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
"""One that was only starting may yet be started, by the new code server; else it ends by its own time-out."""

SETTLE_SECONDS: Final = 90.0
"""From when the code server listens until the daemon surely uses it, which reloads what it knows every minute."""
PROBE_SECONDS: Final = 1.0


def running(instance: dg.DagsterInstance) -> list[str]:
    """The ids of the runs that go on by Dagster's records."""
    return [run.run_id for run in instance.get_runs(dg.RunsFilter(statuses=RUNNING))]


def fail_lost_runs(instance: dg.DagsterInstance, run_ids: Collection[str]) -> None:
    """Ends those of the runs that still go on by the records: as cancelled where that was under way, else failed."""
    for run in instance.get_runs(dg.RunsFilter(run_ids=list(run_ids), statuses=RUNNING)) if run_ids else ():
        canceling = run.status is dg.DagsterRunStatus.CANCELING
        end = instance.report_run_canceled if canceling else instance.report_run_failed
        end(run, MESSAGE)


def wait_until_usable(port: int) -> None:
    """Returns when the code server on that port has been listening for a while."""
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), PROBE_SECONDS).close()
        except OSError:
            time.sleep(PROBE_SECONDS)
        else:
            break
    time.sleep(SETTLE_SECONDS)


def main(arguments: list[str]) -> None:
    """Becomes the command, or (`--fail PORT ID ...`, its child) ends runs when that is up."""
    if arguments[0] == "--fail":
        wait_until_usable(int(arguments[1]))
        with dg.DagsterInstance.get() as instance:
            fail_lost_runs(instance, arguments[2:])
        return
    with dg.DagsterInstance.get() as instance:
        lost = running(instance)
    if lost:
        print(f"lost runs, which are started again: {', '.join(lost)}", flush=True)  # noqa: T201 - the container's log
        port = arguments[arguments.index("--port") + 1]
        subprocess.Popen([sys.executable, "-m", "mlops_assets.automation.lost_runs", "--fail", port, *lost])
    os.execvp(arguments[0], arguments)  # noqa: S606 - so that signals reach the command


if __name__ == "__main__":
    main(sys.argv[1:])
