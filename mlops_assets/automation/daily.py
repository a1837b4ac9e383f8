"""Every morning: yesterday's clicks through the whole graph, then a probability for each of them."""

from __future__ import annotations

import dagster as dg

GRAPH = ("raw_clicks", "training_set", "candidate_model", "promoted_model", "deployed_image")

daily_graph = dg.define_asset_job(
    "daily_graph",
    selection=list(GRAPH),
    description="A day's clicks, from the landing file to the image that carries the day's champion.",
)

daily_predictions = dg.define_asset_job(
    "daily_predictions",
    selection=["batch_predictions"],
    description="P(install) for every click of a day, by the day's champion.",
)

schedules = [
    dg.build_schedule_from_partitioned_job(daily_graph, name="daily_graph", hour_of_day=3),
    dg.build_schedule_from_partitioned_job(daily_predictions, name="daily_predictions", hour_of_day=6),
]
