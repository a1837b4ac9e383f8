"""What a day's candidate is trained on, as the lineage view shows it."""

import hashlib
import json
from collections.abc import Callable, Iterable
from functools import cache, partial

import dagster as dg
from dagster import DagsterEventType

from mlops_assets.assets.landing import DATA_VERSION
from mlops_assets.assets.quality import is_fit_to_learn_from
from mlops_assets.lake.store import Lake
from mlops_assets.partitions import TRAINING_WINDOW_DAYS, daily, days_before, trained_with
from mlops_assets.partitions import training_window as window_of
from mlops_assets.spark.training_set import DATASET as TRAINING_SET

training_window = dg.AssetSpec(
    "training_window",
    deps=[dg.AssetDep("training_set", partition_mapping=days_before)],
    partitions_def=daily,
    group_name="models",
    description=f"The training sets of the {TRAINING_WINDOW_DAYS} days before, as far as they are there. Nobody "
    "materializes it. It is observed whenever one of its days is made anew; the candidates and verdicts that were made "
    "of its earlier content are then shown as stale, and making them again is somebody's choice.",
)


def window_versions(lake: Lake, day: str) -> dict[str, str]:
    """The versions of the training sets in the window of `day`, by day, in order; without any that fails its checks."""
    return _versions(day, partial(_version, lake))


def _versions(day: str, version_of: Callable[[str], str | None]) -> dict[str, str]:
    found = {each: version_of(each) for each in window_of(day)}
    return {each: version for each, version in found.items() if version}


def _version(lake: Lake, day: str) -> str | None:
    manifest = lake.manifest(TRAINING_SET, day)
    return manifest.version if manifest and is_fit_to_learn_from(lake, manifest) else None


def observe_windows(context: dg.AssetExecutionContext, lake: Lake, made: Iterable[str]) -> None:
    """Notes the windows that days which have just been made belong to, where their content is another than before."""
    affected = {day for each in made for day in (each, *trained_with(each)) if daily.has_partition_key(day)}
    known = context.instance.event_log_storage.get_latest_tags_by_partition(
        training_window.key, DagsterEventType.ASSET_OBSERVATION, [DATA_VERSION]
    )
    version_of = cache(partial(_version, lake))  # each day lies in seven windows
    for day in sorted(affected):
        versions = _versions(day, version_of)
        version = hashlib.sha256(json.dumps(versions).encode()).hexdigest()[:16]
        if known.get(day, {}).get(DATA_VERSION) != version:
            context.log_event(
                dg.AssetObservation(
                    training_window.key,
                    partition=day,
                    metadata={"days": ", ".join(versions) or "none", "versions": dg.MetadataValue.json(versions)},
                    tags={DATA_VERSION: version},
                )
            )
