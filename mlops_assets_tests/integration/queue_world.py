"""A small graph in the project's queues and pools, whose runs take as long as a test wants.

A code server loads it. Its runs meet the test in the folder QUEUE_WORLD: each of its steps leaves a file there that is
named by the step and the run and holds the process' id; if there is a file `hold` when it begins, it never ends.
"""

import os
import time
from pathlib import Path

import dagster as dg

from mlops_assets.assets.inference_deployment import inference_deployment
from mlops_assets.automation.override import override
from mlops_assets.automation.rollout import rollout
from mlops_assets.resources.inference import FleetStatus, InferenceFleet, Rollout, Unjudged
from mlops_assets.resources.lake import LakeResource
from mlops_assets.resources.mlflow import MLflow
from mlops_assets.resources.oci_layout import OciLayout

FOLDER = Path(os.environ.get("QUEUE_WORLD", "."))
NUMBERS = dg.StaticPartitionsDefinition([str(number) for number in range(20)])


def work(step: str, run_id: str) -> None:
    """Is there, for as long as the test wants."""
    held = (FOLDER / "hold").exists()
    draft = FOLDER / f".{step}-{run_id}"
    draft.write_text(str(os.getpid()))
    draft.rename(FOLDER / f"{step}-{run_id}")
    while held:
        time.sleep(1)


@dg.asset(partitions_def=NUMBERS)
def candidate(context: dg.AssetExecutionContext) -> None:
    """Something long that needs no pool, as training does."""
    work("candidate", context.run.run_id)


@dg.asset(partitions_def=NUMBERS, pool="spark")
def spark(context: dg.AssetExecutionContext) -> None:
    """Something that needs the cluster."""
    work("spark", context.run.run_id)


@dg.asset(partitions_def=NUMBERS, pool="promotion")
def promotion(context: dg.AssetExecutionContext) -> None:
    """Something that judges."""
    work("promotion", context.run.run_id)


class Fleet(InferenceFleet):
    """A fleet that rolls as long as the test wants."""

    def roll(self, digest: str, deadline_seconds: float, unjudged: Unjudged | None = None) -> Rollout:
        work("rollout", digest)
        return Rollout("rolled", digest, None, "", 0.0)

    def status(self, patience_seconds: float | None = None) -> FleetStatus:
        return FleetStatus(None, replicas=0, workers=(), rolling=False, last_rollout=None)

    def recover(self) -> Rollout | None:
        return None

    def stop(self) -> None:
        pass


defs = dg.Definitions(
    assets=[candidate, spark, promotion, inference_deployment],
    jobs=[rollout, override],
    resources={
        "fleet": Fleet(),
        "lake": LakeResource(root=str(FOLDER / "lake")),
        "mlflow": MLflow(tracking_uri=f"sqlite:///{FOLDER}/mlflow.db"),
        "images": OciLayout(path=str(FOLDER / "images")),
    },
    executor=dg.in_process_executor,
)
