"""The one partition scheme: UTC days."""

from __future__ import annotations

import os
import warnings
from datetime import date, timedelta
from typing import Final

import dagster as dg

# Dagster's version is pinned, so what it calls beta or preview changes only with a commit here; and a backfill is one
# of assets, each by its own policy, never of a job. Said on every start, the warnings would open the log of every run.
warnings.filterwarnings("ignore", category=dg.BetaWarning)
warnings.filterwarnings("ignore", category=dg.PreviewWarning)
warnings.filterwarnings("ignore", message="Asset job .* materializes assets with varying BackfillPolicies")

FIRST_DAY: Final = os.environ.get("MLOPS_FIRST_DAY", "2017-11-06")
"""The first day of data (TalkingData's, unless the environment says otherwise)."""

LAST_DAY: Final = os.environ.get("MLOPS_LAST_DAY")
"""The last day of data that has an end, as a demo's or a competition's; else days go on until yesterday."""

daily: Final = dg.DailyPartitionsDefinition(
    start_date=FIRST_DAY,
    end_date=LAST_DAY and str(date.fromisoformat(LAST_DAY) + timedelta(days=1)),
    timezone="UTC",
)

TRAINING_WINDOW_DAYS: Final = 7
"""A candidate for day D is trained on the days from D - 7 to D - 1."""

training_window: Final = dg.TimeWindowPartitionMapping(
    start_offset=-TRAINING_WINDOW_DAYS, allow_nonexistent_upstream_partitions=True
)
"""Day D needs the features of the training window and its own, on which the candidate is judged."""

previous_day: Final = dg.TimeWindowPartitionMapping(
    start_offset=-1, end_offset=-1, allow_nonexistent_upstream_partitions=True
)
"""Day D needs what was decided on D - 1."""

one_run_per_backfill: Final = dg.BackfillPolicy.single_run()
"""All days of a backfill come in one run: one Spark cluster, or one walk through the verdicts in day order."""
