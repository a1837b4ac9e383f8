"""`mlops-assets demo`: a few days through the whole graph on this machine, and the fleet that serves its champion."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mlops_assets.assets.deployed_image import recorded_image
from mlops_assets.assets.promoted_model import production_champion
from mlops_assets.automation.rollout import rollout_config
from mlops_assets.cli.clicks import generate, import_clicks
from mlops_assets.cli.dagster_server import DagsterServer, serve
from mlops_assets.cli.form import entered, form_option, home_of, home_option
from mlops_assets.cli.summary import is_done, summary, table
from mlops_assets.cli.traffic import Traffic, live_clicks, prepare_topics
from mlops_assets.resources.environment import systems, variables
from mlops_assets.resources.inference import InferenceFleet
from mlops_assets.resources.kafka import LocalBroker

POLL_SECONDS: Final = 1.0
ENDED: Final = ("SUCCESS", "FAILURE", "CANCELED")
ROLL_SECONDS: Final = 300.0
ANSWER_SECONDS: Final = 120.0
LINGER_SECONDS: Final = 5.0

BURST: Final = 200_000
LIVE_RATE: Final = 1_000
"""Clicks a second while the last day runs and the fleet is rolled."""

GENERATED: Final = "generated"
SEED: Final = 7
CLICKS: Final = 100_000
"""Clicks of a generated day."""
DRIFT_DAYS: Final = 2
DRIFT: Final = {datetime(2017, 11, 6): 0.0, datetime(2017, 11, 8): 0.5}
"""The world changes on the third day, so that a model trained before is beaten by one that saw the change."""


@click.command()
@click.option("--clicks", type=click.Path(exists=True, path_type=Path), help="Real clicks: a CSV or a folder of them.")
@form_option
@home_option
@click.pass_context
def demo(ctx: click.Context, clicks: Path | None, form: str, home: Path | None) -> None:
    """Runs a few days through the whole graph and prints what it decided. Running it again does only what changed."""
    console = Console()
    home = home_of(form, home)
    start_anew_for_other_clicks(home, str(clicks.resolve()) if clicks else GENERATED, console)
    with entered(form, home, console):
        record = decide(ctx, clicks, form, home, console)
    console.print(table(record["days"]))
    console.print(story(record["served"]), soft_wrap=True)
    console.print(f"`make ui{'' if form == 'embedded' else ' ENV=real'}` opens Dagster on it.")


def decide(ctx: click.Context, clicks: Path | None, form: str, home: Path, console: Console) -> dict[str, Any]:
    """Does what is still to be done, and returns the summary of all."""
    world = systems(form, home)
    lake, landing = world["lake"].lake(), world["lake"].landing()
    if clicks:
        ctx.invoke(import_clicks, source=clicks, home=home)
    elif not landing.days():
        for first_day, drift in DRIFT.items():
            options = {"days": DRIFT_DAYS, "clicks": CLICKS, "seed": SEED, "drift": drift, "home": home}
            ctx.invoke(generate, first_day=first_day, **options)
    days = sorted(landing.days())
    todo = [day for day in days if not is_done(lake, landing, day)]
    report = home / "summary.json"
    if todo or not report.exists():
        served = run(world, variables(form, home), home, days, todo or days[-1:], console)
        report.write_text(json.dumps({"days": summary(lake, days), "served": served}, indent=1) + "\n")
    else:
        console.print("Nothing changed since the last demo.")
    record: dict[str, Any] = json.loads(report.read_text())
    return record


def run(
    systems: Mapping[str, Any],
    environment: Mapping[str, str],
    home: Path,
    days: list[str],
    todo: list[str],
    console: Console,
) -> dict[str, Any] | None:
    """Runs all days but the last, serves their champion, and runs the last day while clicks come in."""
    fleet: InferenceFleet = systems["fleet"]
    with ExitStack() as stack:
        console.print("Starting Kafka and Dagster ...")
        kafka = {name: value for name, value in os.environ.items() if name.startswith("KAFKA_")}
        if "KAFKA_BOOTSTRAP_SERVERS" not in kafka:
            kafka = stack.enter_context(LocalBroker(home / "kafka")).environment()
        prepare_topics(kafka)
        server = stack.enter_context(serve(home / "dagster", {**environment, **kafka}))
        stack.callback(fleet.stop)
        before = production_champion(systems["lake"].lake())
        run_days(server, todo[:-1], console)
        champion = production_champion(systems["lake"].lake())
        if champion and champion == before:
            # An earlier demo had it rolled, then stopped the fleet, so the sensor does not ask for it again.
            digest = recorded_image(systems["lake"].lake(), champion.model_version) or ""
            config = rollout_config(digest, "the demo goes on")
            server.launch_job("rollout", config=config)
        traffic = Traffic(kafka, live_clicks(days[-1], SEED))
        with traffic.counted():
            if await_champion(systems, console):
                with Progress(console=console) as progress:
                    task = progress.add_task(f"sending {BURST:,} clicks", total=BURST)
                    traffic.burst(BURST, lambda clicks: progress.advance(task, clicks))
                    if not traffic.wait_answered(ANSWER_SECONDS):
                        raise click.ClickException(
                            f"only {traffic.answered:,} of {traffic.sent:,} clicks were answered"
                        )
            console.print(f"{todo[-1]}: the day's run, while {LIVE_RATE:,} clicks a second come in")
            with traffic.steady(LIVE_RATE):
                follow(server, server.launch_job("daily_graph", todo[-1]))
                served = await_champion(systems, console)
                time.sleep(LINGER_SECONDS)
            if not served:
                return None
            traffic.wait_answered(ANSWER_SECONDS)
            return traffic.record()


def await_champion(systems: Mapping[str, Any], console: Console) -> bool:
    """Waits until the sensor has rolled the fleet onto the champion; False if there is no champion."""
    lake = systems["lake"].lake()
    champion = production_champion(lake)
    if champion is None:
        console.print("No model is good enough to be served yet.")
        return False
    digest = recorded_image(lake, champion.model_version) or ""
    deadline = time.monotonic() + ROLL_SECONDS
    with console.status(f"waiting for the sensor to roll the fleet onto model {champion.model_version}"):
        while time.monotonic() < deadline:
            status = systems["fleet"].status()
            if status.digest == digest and status.ready == status.replicas and not status.rolling:
                console.print(f"{status.ready} workers serve model {champion.model_version} ({digest[:19]})")
                return True
            if status.last_rollout and (status.last_rollout.digest, status.last_rollout.verdict) == (digest, "undone"):
                break
            time.sleep(POLL_SECONDS)
    why = status.last_rollout.reason if status.last_rollout else "the rollout job did not run"
    raise click.ClickException(f"the fleet does not serve model {champion.model_version}: {why}")


def follow(server: DagsterServer, run_id: str, show: Callable[..., object] | None = None) -> None:
    """Waits for a run to end well; `show` is told `completed` and `total` steps. Raises ClickException."""
    while True:
        state = server.run(run_id)
        if show:
            done = sum(step["status"] == "SUCCESS" for step in state["stepStats"])
            show(completed=done, total=len(state["executionPlan"]["steps"]))
        if state["status"] in ENDED:
            break
        time.sleep(POLL_SECONDS)
    if state["status"] != "SUCCESS":
        raise click.ClickException("\n".join([f"the run ended as {state['status']}", *server.failures()]))


def story(served: Mapping[str, Any] | None) -> str:
    """What was served, in a sentence."""
    if served is None:
        return "No clicks were served: there is no champion."
    models = ", then ".join(f"{clicks:,} by model {model}" for model, clicks in served["by_model"].items())
    return (
        f"{served['clicks']:,} clicks came in: {served['answered_once']:,} answered once ({models}), "
        f"{served['doubled']} doubled, {served['lost']} lost, {served['dead_letters']} dead letters."
    )


def start_anew_for_other_clicks(home: Path, source: str, console: Console) -> None:
    """Moves the data of an earlier demo aside if it was one of other clicks: two worlds make no sense in one lake."""
    note, aside = home / "clicks.txt", home.with_name(f"{home.name}-before")
    if home.exists() and (not note.exists() or note.read_text() != source):
        if aside.exists():
            shutil.rmtree(aside)
        home.rename(aside)
        console.print(f"{home} held other clicks; it is now {aside}", soft_wrap=True)
    home.mkdir(parents=True, exist_ok=True)
    note.write_text(source)


def run_days(server: DagsterServer, days: list[str], console: Console) -> None:
    """Runs the days one after the other: a run for each stretch of consecutive days, which share its Spark session.

    Not a backfill: Dagster's daemon looks after those every 30 seconds only, which a person would wait for.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        for first, last in stretches(days):
            bar = progress.add_task(first if first == last else f"{first} to {last}", total=None)
            run = server.launch_job("daily_graph", first, last)
            follow(server, run, partial(progress.update, bar))


def stretches(days: list[str]) -> list[tuple[str, str]]:
    """The first and the last day of each stretch of consecutive days; the days are in order."""
    found: list[tuple[str, str]] = []
    for day in days:
        if found and date.fromisoformat(day) - date.fromisoformat(found[-1][1]) == timedelta(days=1):
            found[-1] = (found[-1][0], day)
        else:
            found.append((day, day))
    return found
