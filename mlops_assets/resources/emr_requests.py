"""What a cluster of Amazon EMR is like, and the request that asks for it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final, Self

import boto3
from botocore.config import Config
from pydantic import Field

from mlops_assets.resources.ephemeral import CODE_LOCATION, HOLD_MINUTES, RUN, EphemeralSpark, common_settings
from mlops_assets.resources.spark_environment import MAIN, arguments, settings
from mlops_assets.resources.spark_variables import SHARED, given, required

REQUIRED: Final = {
    "MLOPS_SPARK_ENVIRONMENT": "address of the packed Python, printed by `mlops-assets spark-environment`",
    "MLOPS_SPARK_EMR_SUBNETS": "ids of one or more subnets, separated by commas",
    "MLOPS_SPARK_EMR_LOG_URI": "where EMR puts logs, like s3://bucket/emr-logs",
}
OPTIONAL: Final = {
    **SHARED,
    "MLOPS_SPARK_EMR_RELEASE": "release",
    "MLOPS_SPARK_EMR_SERVICE_ROLE": "service_role",
    "MLOPS_SPARK_EMR_INSTANCE_PROFILE": "instance_profile",
}

CONNECT_SECONDS: Final = 5
READ_SECONDS: Final = 30
ATTEMPTS: Final = 8
"""Of each call, on throttling, 5xx and broken connections; botocore waits up to 1, 2, 4, 8, 16, 20 s between them."""

SPOT_MINUTES: Final = 10
"""After which spot nodes that can't be had come as on-demand ones."""

MANAGED: Final = {"for-use-with-amazon-emr-managed-policies": "true"}
"""AWS' own policy for EMR's service role (AmazonEMRServicePolicy_v2) lets it touch only what has this tag."""

DEADLINE_SLACK_MINUTES: Final = 5
"""By which the job's own deadline on the cluster lies after the one that is watched from here."""


@cache
def client() -> Any:
    """This process' client of EMR: endpoint, region and credentials are found as every AWS tool finds them."""
    config = Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
    )
    return boto3.session.Session().client("emr", region_name=os.environ.get("AWS_REGION") or None, config=config)


class EmrCluster(EphemeralSpark):
    """One on-demand master and on-demand core nodes; spot nodes come on top, as tasks only."""

    environment: str = Field(description="address of the packed Python")
    subnets: list[str] = Field(description="ids of subnets; EMR takes the one with the most capacity")
    log_uri: str = Field(description="where EMR puts logs")
    release: str = Field(default="emr-7.12.0", description="release; from 7.10 on s3:// is Hadoop's own S3A")
    service_role: str = Field(default="EMR_DefaultRole", description="role that EMR itself acts as")
    instance_profile: str = Field(default="EMR_EC2_DefaultRole", description="role of the nodes: it reads the lake")
    master_type: str = Field(default="m5.xlarge", description="instance type of the master")
    node_type: str = Field(default="m5.xlarge", description="type of the nodes; several separated by |, best first")
    nodes: int = Field(default=3, ge=1, description="core nodes, on demand")
    spot_nodes: int = Field(default=0, ge=0, description="task nodes, spot; on demand where there are none in time")
    disk_gb: int = Field(default=100, ge=15, description="disk of each node")
    spark_conf: dict[str, str] = Field(default={}, description="further settings of Spark")
    hold_minutes: float = Field(default=HOLD_MINUTES, ge=0, allow_inf_nan=False, description="see EphemeralSpark")
    log_seconds: float = Field(default=300, ge=0, description="to wait for a failed job's log, which EMR brings late")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """The form that the variables describe, see docs/clouds.md. Raises ValueError naming those that are missing."""
        address, subnets, log_uri = required("emr", REQUIRED, environment)
        return cls(
            environment=address,
            subnets=subnets.split(","),
            log_uri=log_uri,
            **common_settings(environment),
            **given(cls, OPTIONAL, environment),
        )

    def where(self) -> str:
        """See Spark."""
        return f"EMR {self.release}, {self.master_type} and {self.nodes + self.spot_nodes} x {self.node_type}"

    def cluster_request(self, labels: Mapping[str, str], command: Sequence[str]) -> dict[str, Any]:
        """Asks for a cluster with these tags that runs the command and ends by itself, however the command ends."""
        return {
            "Name": f"{labels[CODE_LOCATION]} {labels[RUN]}",
            "ReleaseLabel": self.release,
            "Applications": [{"Name": "Spark"}],
            "LogUri": f"{self.log_uri}/",
            "ServiceRole": self.service_role,
            "JobFlowRole": self.instance_profile,
            "VisibleToAllUsers": True,
            "StepConcurrencyLevel": 1,
            "Tags": [{"Key": key, "Value": value} for key, value in {**labels, **MANAGED}.items()],
            "Steps": [self._step(command)],
            "Instances": {
                "InstanceFleets": self._fleets(),
                "Ec2SubnetIds": self.subnets,
                "KeepJobFlowAliveWhenNoSteps": False,
                "TerminationProtected": False,
            },
        }

    def _step(self, command: Sequence[str]) -> dict[str, Any]:
        variables = {"AWS_REGION": client().meta.region_name}
        conf = {**settings(self.environment, variables), **self.spark_conf}
        # The job ends in time even if nobody here lives to end it; its cluster then ends too.
        limit = 60 * (self.deadline_minutes + DEADLINE_SLACK_MINUTES)
        words = ["timeout", "--kill-after=60", f"{limit:.0f}", "spark-submit", "--master", "yarn"]
        for name, value in conf.items():
            words += ["--conf", f"{name}={value}"]
        words += [f"{self.environment}/{MAIN}", *arguments(self.environment, variables, command)]
        return {
            "Name": command[0].rsplit(".", 1)[-1],
            "ActionOnFailure": "TERMINATE_CLUSTER",
            "HadoopJarStep": {"Jar": "command-runner.jar", "Args": words},
        }

    def _fleets(self) -> list[dict[str, Any]]:
        disk = {"EbsBlockDeviceConfigs": [{"VolumeSpecification": {"VolumeType": "gp3", "SizeInGB": self.disk_gb}}]}

        def fleet(role: str, kinds: str, **target: Any) -> dict[str, Any]:
            types = [
                {"InstanceType": kind, "WeightedCapacity": 1, "EbsConfiguration": disk} for kind in kinds.split("|")
            ]
            return {"Name": role.lower(), "InstanceFleetType": role, "InstanceTypeConfigs": types, **target}

        found = [
            fleet("MASTER", self.master_type, TargetOnDemandCapacity=1),
            fleet("CORE", self.node_type, TargetOnDemandCapacity=self.nodes),
        ]
        if self.spot_nodes:
            wait = {
                "TimeoutDurationMinutes": SPOT_MINUTES,
                "TimeoutAction": "SWITCH_TO_ON_DEMAND",
                "AllocationStrategy": "price-capacity-optimized",
            }
            spot = fleet("TASK", self.node_type, TargetSpotCapacity=self.spot_nodes)
            found.append({**spot, "LaunchSpecifications": {"SpotSpecification": wait}})
        return found
