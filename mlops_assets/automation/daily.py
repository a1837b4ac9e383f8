"""A day's run: its clicks through the whole graph, then a probability for each of them by that verdict's champion."""

from __future__ import annotations

import dagster as dg

from mlops_assets.partitions import GRAPH

daily_graph = dg.define_asset_job(
    "daily_graph",
    selection=list(GRAPH),
    description="A day's clicks, from the landing file to the image that carries the day's champion, and its answers.",
)
