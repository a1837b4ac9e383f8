"""A Dagster run of `training_set` in a process of its own, to be watched and ended: arguments HOME DAY [DAY ...]."""

import sys
from pathlib import Path

import dagster as dg

from mlops_assets.definitions import defs
from mlops_assets.resources.environment import ENVIRONMENT, systems

if __name__ == "__main__":
    home, days = Path(sys.argv[1]), sys.argv[2:]
    selection = dg.AssetSelection.assets("training_set").without_checks()  # these look at what landed, too
    job = dg.Definitions(
        assets=defs.assets,
        resources=systems(ENVIRONMENT, home),
        executor=dg.in_process_executor,
        jobs=[dg.define_asset_job("features", selection=selection)],
    ).resolve_job_def("features")
    tags = {"dagster/asset_partition_range_start": days[0], "dagster/asset_partition_range_end": days[-1]}
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        sys.exit(not job.execute_in_process(instance=instance, tags=tags, raise_on_error=False).success)
