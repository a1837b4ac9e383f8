"""The whole graph on one page."""

from __future__ import annotations

import dagster as dg

from mlops_assets.assets.batch_predictions import batch_predictions
from mlops_assets.assets.candidate_model import candidate_model
from mlops_assets.assets.deployed_image import deployed_image
from mlops_assets.assets.inference_deployment import inference_deployment
from mlops_assets.assets.landing import landing
from mlops_assets.assets.promoted_model import promoted_model
from mlops_assets.assets.raw_clicks import raw_clicks
from mlops_assets.assets.training_set import training_set
from mlops_assets.assets.training_window import training_window
from mlops_assets.automation import (
    accept,
    arrivals,
    daily,
    observe_fleet,
    override,
    reap_clusters,
    rollout,
    tell_people,
)
from mlops_assets.checks import clicks, freshness, models
from mlops_assets.resources.environment import resources

defs = dg.Definitions(
    # The UI links each asset to the lines that make it.
    assets=dg.with_source_code_references(
        [
            landing,
            raw_clicks,
            training_set,
            training_window,
            candidate_model,
            promoted_model,
            deployed_image,
            inference_deployment,
            batch_predictions,
        ]
    ),
    asset_checks=[*clicks.checks, *models.checks, *freshness.checks],
    jobs=[
        daily.daily_graph,
        arrivals.observe_landing,
        rollout.rollout,
        override.override,
        accept.accept_day,
        freshness.check_freshness,
        reap_clusters.reap_clusters,
    ],
    schedules=[
        arrivals.observe_landing_hourly,
        freshness.check_freshness_daily,
        *reap_clusters.schedules,
    ],
    sensors=[arrivals.landed_days, rollout.champion_changed, observe_fleet.observe_fleet, tell_people.tell_people],
    resources=resources(),
    # Steps share a process: Spark, MLflow and scikit-learn are imported once a run. Runs are what goes in parallel.
    executor=dg.in_process_executor,
)
