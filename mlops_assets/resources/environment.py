"""The outside world, chosen in one place: MLOPS_ENVIRONMENT names the form of every system."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Final, get_args

import dagster as dg

from mlops_assets.lake.storage import open_storage
from mlops_assets.resources.images import Images
from mlops_assets.resources.inference import LocalFleet, Unjudged
from mlops_assets.resources.lake import LakeResource
from mlops_assets.resources.mlflow import MLflow
from mlops_assets.resources.notifier import Notifier
from mlops_assets.resources.oci_layout import OciLayout
from mlops_assets.resources.registry import Registry
from mlops_assets.resources.spark import LocalSpark, Spark

ENVIRONMENT: Final = os.environ.get("MLOPS_ENVIRONMENT", "embedded")
"""`embedded`: folders and processes below MLOPS_HOME, for one machine, no account and no server.
`real`: S3, an MLflow server, and where they are set a container registry and Kubernetes; see REQUIRED and `real`."""

REQUIRED: Final = {
    "MLOPS_LAKE": "the lake's address, like s3://bucket/prefix",
    "MLFLOW_TRACKING_URI": "the MLflow server's address, like http://mlflow:5000",
}
"""Variables without which there is no real environment. Those of S3 itself are AWS' own, see lake/s3.py."""

SPARK_FORMS: Final = {
    "kubernetes": ("spark_kubernetes", "KubernetesSpark"),
    "emr": ("emr", "EmrSpark"),
    "dataproc": ("dataproc", "DataprocSpark"),
}
"""Clusters that exist only for a job: module and class. Each says in `from_environment` what it takes."""

EPHEMERAL_SPARK: Final = ENVIRONMENT == "real" and os.environ.get("MLOPS_SPARK") not in (None, "", "local")
"""Whether Spark's clusters come and go with the runs, so that one may be left behind."""

DEFAULT_HOME: Final = ".demo"

SCHEDULES_START: Final = (
    dg.DefaultScheduleStatus.STOPPED if ENVIRONMENT == "embedded" else dg.DefaultScheduleStatus.RUNNING
)
"""Yesterday's clicks arrive by themselves in production; on a newcomer's machine nobody delivers them."""


def variables(form: str, home: Path) -> dict[str, str]:
    """The variables that make a process use that form of every system, for the days that have landed there."""
    days = sorted(systems(form, home)["lake"].landing().days())
    ends = {"MLOPS_FIRST_DAY": days[0], "MLOPS_LAST_DAY": days[-1]} if days else {}
    return {"MLOPS_ENVIRONMENT": form, "MLOPS_HOME": str(home.resolve()), **ends}


def embedded(home: Path) -> dict[str, Any]:
    """Every system as a folder below `home`, or as processes on this machine."""
    images = OciLayout(path=str(home / "images"))
    return {
        "lake": LakeResource(root=str(home / "lake")),
        "spark": LocalSpark(),
        "mlflow": MLflow(tracking_uri=f"sqlite:///{home / 'mlflow' / 'mlflow.db'}"),
        "images": images,
        "fleet": _local_fleet(images, home),
        "notifier": Notifier(),
    }


def real(home: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """The lake on S3 and MLflow on its server, as `environment` says. Raises ValueError naming variables it lacks.

    MLOPS_SPARK says where Spark runs: local (in the run itself), or one of SPARK_FORMS with its own variables.
    MLOPS_REGISTRY (a repository like ghcr.io/owner/inference) takes the images to a registry, and with it
    MLOPS_NAMESPACE the fleet to that namespace of Kubernetes; else either is on this machine, below `home`. There,
    MLOPS_CANARY_SECONDS and MLOPS_CANARY_UNJUDGED (stop or proceed) are KubernetesFleet's settings of that name.
    """
    missing = [f"{name} ({meaning})" for name, meaning in REQUIRED.items() if not environment.get(name)]
    if missing:
        raise ValueError(f"MLOPS_ENVIRONMENT is real, which also needs {' and '.join(missing)}")
    root, tracking_uri = (environment[name] for name in REQUIRED)
    open_storage(root)  # a wrong address is said now, not in the first run
    found = {
        **embedded(home),
        "lake": LakeResource(root=root),
        "spark": spark(root, environment),
        "mlflow": MLflow(tracking_uri=tracking_uri),
    }
    repository, namespace = environment.get("MLOPS_REGISTRY"), environment.get("MLOPS_NAMESPACE")
    if repository:
        images = Registry(repository=repository)
        found |= {"images": images, "fleet": _local_fleet(images, home)}
        if namespace:
            from mlops_assets.resources.kubernetes import KubernetesFleet  # its client takes a second to import

            found["fleet"] = KubernetesFleet(registry=images, namespace=namespace, **_canary_settings(environment))
    elif namespace:
        raise ValueError("MLOPS_NAMESPACE is set: Kubernetes needs images from a registry, so set MLOPS_REGISTRY too")
    return found


def spark(root: str, environment: Mapping[str, str]) -> Spark:
    """The Spark that MLOPS_SPARK names, for a lake with this root. Raises ValueError naming what it lacks."""
    form, remote = environment.get("MLOPS_SPARK") or "local", root.startswith("s3://")
    if form == "local":
        return LocalSpark(s3=remote)
    if form not in SPARK_FORMS:
        raise ValueError(f"MLOPS_SPARK is {form!r}; it must be local or one of {', '.join(SPARK_FORMS)}")
    if not remote:
        raise ValueError(f"MLOPS_SPARK is {form}, whose clusters can't see {root}: MLOPS_LAKE must be on s3://")
    module, name = SPARK_FORMS[form]  # imported here: their clients take a second
    made: Spark = getattr(import_module(f"mlops_assets.resources.{module}"), name).from_environment(environment)
    return made


def systems(form: str, home: Path) -> dict[str, Any]:
    """Every system in that form. Raises ValueError for an unknown one."""
    if form == "embedded":
        return embedded(home)
    if form == "real":
        return real(home, os.environ)
    raise ValueError(f"MLOPS_ENVIRONMENT is {form!r}; it must be embedded or real")


def lake() -> LakeResource:
    """The lake alone, for what needs no other system. Raises ValueError naming the variable that it lacks."""
    if ENVIRONMENT == "embedded":
        return LakeResource(root=str(_home() / "lake"))
    if root := os.environ.get("MLOPS_LAKE"):
        return LakeResource(root=root)
    raise ValueError(f"MLOPS_ENVIRONMENT is {ENVIRONMENT}, which needs MLOPS_LAKE ({REQUIRED['MLOPS_LAKE']})")


def _home() -> Path:
    return Path(os.environ.get("MLOPS_HOME", DEFAULT_HOME)).resolve()


def resources() -> dict[str, Any]:
    """The resources of the graph, by MLOPS_ENVIRONMENT and MLOPS_HOME. Raises ValueError for what they can't be."""
    return systems(ENVIRONMENT, _home())


def _canary_settings(environment: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if text := environment.get("MLOPS_CANARY_SECONDS"):
        try:
            found["canary_seconds"] = float(text)
        except ValueError:
            raise ValueError(f"MLOPS_CANARY_SECONDS is {text!r}; it must be a number of seconds") from None
    if text := environment.get("MLOPS_CANARY_UNJUDGED"):
        if text not in get_args(Unjudged):
            raise ValueError(f"MLOPS_CANARY_UNJUDGED is {text!r}; it must be stop or proceed")
        found["unjudged"] = text
    return found


def _local_fleet(images: Images, home: Path) -> LocalFleet:
    return LocalFleet(images=images, path=str(home / "inference"))
