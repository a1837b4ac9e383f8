"""A day's run: its clicks through the whole graph, then a probability for each of them by that verdict's champion."""

from __future__ import annotations

import dagster as dg

GRAPH = ("raw_clicks", "training_set", "candidate_model", "promoted_model", "deployed_image")

daily_graph = dg.define_asset_job(
    "daily_graph",
    selection=[*GRAPH, "batch_predictions"],
    description="A day's clicks, from the landing file to the image that carries the day's champion, and its answers.",
)
