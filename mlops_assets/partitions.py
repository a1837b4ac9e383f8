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

days_before: Final = dg.TimeWindowPartitionMapping(
    start_offset=-TRAINING_WINDOW_DAYS, end_offset=-1, allow_nonexistent_upstream_partitions=True
)
"""The training window of day D. Only the asset `training_window`, which nobody materializes, depends by it: Dagster
walks a backfill's days downstream through the mappings, so between two assets of a backfill it would add later days."""

GRAPH: Final = (
    "raw_clicks",
    "training_set",
    "candidate_model",
    "promoted_model",
    "deployed_image",
    "batch_predictions",
)
"""What a day is made into, in this order. Each asset names all that it is made of, also at second hand: a backfill of
some assets leaves out, without a word, one that is connected with the others only through an asset not chosen."""

LONGEST_BACKFILL: Final = 100_000


def run_of_its_own(asset: str) -> dg.BackfillPolicy:
    """The policy of an asset that takes all consecutive days of a backfill in one run, and shares it with no other.

    One Spark cluster serves all days, and verdicts are given in day order. Dagster puts assets of equal policies into
    one run; there the first asset's first bad day would end all days of the others. So the policies differ, by a number
    that no backfill reaches.
    """
    return dg.BackfillPolicy.multi_run(max_partitions_per_run=LONGEST_BACKFILL + GRAPH.index(asset))


def training_window(day: str) -> list[str]:
    """The days that a candidate of `day` is trained on, as far as they are there, in order."""
    return [str(date.fromisoformat(day) - timedelta(days=n)) for n in range(TRAINING_WINDOW_DAYS, 0, -1)]


def trained_with(day: str) -> list[str]:
    """The days whose training window holds `day`, in order."""
    return [str(date.fromisoformat(day) + timedelta(days=n)) for n in range(1, TRAINING_WINDOW_DAYS + 1)]
