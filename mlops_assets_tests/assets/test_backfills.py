"""What a backfill takes: exactly the days and the assets that a person chose."""

import os
import subprocess
import sys
from collections.abc import Collection

import dagster as dg
import pytest
from dagster._core.execution.asset_backfill import AssetBackfillData
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_assets.definitions import defs
from mlops_assets.partitions import GRAPH

DAYS = [f"2017-11-{day:02}" for day in range(6, 18)]

ONE_SEED = """
from mlops_assets_tests.assets.test_backfills import GRAPH, targeted
print(targeted(GRAPH, ["2017-11-08", "2017-11-10", "2017-11-11"]))
"""


def targeted(assets: Collection[str], days: Collection[str]) -> dict[str, list[str]]:
    """The days of each asset that a backfill of these assets and partition names takes, by Dagster's own reckoning."""
    data = AssetBackfillData.from_asset_partitions(
        asset_graph=defs.resolve_asset_graph(),
        partition_names=list(days),
        asset_selection=[dg.AssetKey(asset) for asset in assets],
        dynamic_partitions_store=dg.DagsterInstance.ephemeral(),
        backfill_start_timestamp=1_600_000_000,
        all_partitions=False,
    )
    subsets = data.target_subset.partitions_subsets_by_asset_key
    return {key.to_user_string(): sorted(subset.get_partition_keys()) for key, subset in subsets.items()}


@settings(deadline=None, max_examples=50)
@given(st.sets(st.sampled_from(GRAPH), min_size=1), st.sets(st.sampled_from(DAYS), min_size=1))
def test_a_backfill_takes_exactly_the_chosen_days_of_each_chosen_asset(assets: set[str], days: set[str]) -> None:
    assert targeted(assets, days) == {asset: sorted(days) for asset in assets}


@pytest.mark.parametrize("last_day", ["", "2017-11-17"])
@pytest.mark.parametrize("seed", ["1", "2", "3"])
def test_that_holds_for_every_hash_seed_and_with_or_without_a_last_day(seed: str, last_day: str) -> None:
    environment = {**os.environ, "PYTHONHASHSEED": seed, "MLOPS_LAST_DAY": last_day}
    output = subprocess.run(
        [sys.executable, "-c", ONE_SEED], env=environment, check=True, capture_output=True, text=True
    )
    days = ["2017-11-08", "2017-11-10", "2017-11-11"]
    assert eval(output.stdout) == dict.fromkeys(GRAPH, days)


def test_assets_that_depend_on_one_another_never_share_a_run_of_several_days() -> None:
    """Else the first one's failed day would cost the second one every day of the run."""
    graph = defs.resolve_asset_graph()
    for asset in GRAPH:
        node = graph.get(dg.AssetKey(asset))
        for parent in node.parent_keys:
            if parent.to_user_string() in GRAPH:
                assert graph.get(parent).backfill_policy != node.backfill_policy, f"{parent} and {asset}"
