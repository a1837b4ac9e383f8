"""What a cluster of Yandex Data Proc is like, and the requests that ask for it and for its job."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Final, Self

from pydantic import Field
from yandex.cloud.dataproc.v1 import cluster_pb2, common_pb2, job_pb2
from yandex.cloud.dataproc.v1 import subcluster_pb2 as subclusters
from yandex.cloud.dataproc.v1.cluster_service_pb2 import (
    CreateClusterConfigSpec,
    CreateClusterRequest,
    CreateSubclusterConfigSpec,
)
from yandex.cloud.dataproc.v1.job_service_pb2 import CreateJobRequest

from mlops_assets.resources.ephemeral import CODE_LOCATION, HOLD_MINUTES, EphemeralSpark, common_settings
from mlops_assets.resources.spark_environment import MAIN, arguments, settings
from mlops_assets.resources.spark_variables import SHARED, given, required
from mlops_assets.resources.yandex import KEY_FILE

REQUIRED: Final = {
    "MLOPS_SPARK_ENVIRONMENT": "address of the packed Python, printed by `mlops-assets spark-environment`",
    "MLOPS_SPARK_YC_FOLDER": "id of the folder that clusters are made in",
    "MLOPS_SPARK_YC_SUBNET": "id of their subnet, which needs a NAT gateway",
    "MLOPS_SPARK_YC_SERVICE_ACCOUNT": "id of the service account that the nodes act as",
    "MLOPS_SPARK_YC_BUCKET": "name of the bucket that Data Proc keeps its logs in",
}
OPTIONAL: Final = {
    **SHARED,
    "MLOPS_SPARK_YC_ZONE": "zone",
    "MLOPS_SPARK_YC_SECURITY_GROUPS": "security_groups",
    "MLOPS_SPARK_YC_IMAGE": "image",
    "MLOPS_SPARK_YC_SSH_PUBLIC_KEY": "ssh_public_key",
    "MLOPS_YC_ENDPOINT": "endpoint",
    "MLOPS_YC_CA_FILE": "ca_file",
    KEY_FILE: "key_file",
}

STORAGE: Final = "https://storage.yandexcloud.net"
VARIABLES: Final = {
    "AWS_ENDPOINT_URL_S3": STORAGE,
    "AWS_REGION": "ru-central1",
    "AWS_CONFIG_FILE": "environment/etc/yandex_keys.ini",
}
"""What boto3 needs on the nodes; the keys themselves come from spark/yandex_keys.py."""

HADOOP: Final = {
    "spark.hadoop.fs.s3.impl": "org.apache.hadoop.fs.s3a.S3AFileSystem",
    "spark.hadoop.fs.s3a.endpoint": STORAGE.removeprefix("https://"),
    "spark.hadoop.fs.s3a.aws.credentials.provider": "ru.yandex.cloud.dataproc.s3.YandexMetadataCredentialsProvider",
    # Hadoop 3.3 takes milliseconds only.
    "spark.hadoop.fs.s3a.connection.establish.timeout": "5000",
    "spark.hadoop.fs.s3a.connection.timeout": "30000",
}
"""As Data Proc has it, so that spark/session.py changes nothing of it; and s3:// is s3a://."""

_SERVICES: Final = [cluster_pb2.HadoopConfig.HDFS, cluster_pb2.HadoopConfig.YARN, cluster_pb2.HadoopConfig.SPARK]


class DataprocCluster(EphemeralSpark):
    """The size of the original by default: one master and three data nodes. Preemptible compute nodes come on top."""

    environment: str = Field(description="address of the packed Python")
    folder: str = Field(description="id of the folder that clusters are made in")
    subnet: str = Field(description="id of their subnet")
    service_account: str = Field(description="id of the service account that the nodes act as")
    bucket: str = Field(description="bucket for Data Proc's logs")
    zone: str = Field(default="ru-central1-a", description="availability zone of the subnet")
    security_groups: list[str] = Field(default=[], description="ids of security groups")
    image: str = Field(default="2.2", description="version of the image; 2.2 is the oldest whose Spark is new enough")
    master_type: str = Field(default="s3-c2-m8", description="resources of the master")
    node_type: str = Field(default="s3-c4-m16", description="resources of the other nodes")
    nodes: int = Field(default=3, ge=1, description="data nodes, which stay until the end")
    spot_nodes: int = Field(default=0, ge=0, description="preemptible compute nodes, which may be taken away")
    disk_gb: int = Field(default=100, ge=20, description="disk of each node")
    ssh_public_key: str = Field(default="", description="for the nodes; without it, access is by OS Login")
    spark_conf: dict[str, str] = Field(default={}, description="further settings of Spark")
    endpoint: str | None = Field(default=None, description="of the API, where it isn't the public one")
    ca_file: str | None = Field(default=None, description="certificates that vouch for that endpoint")
    key_file: str | None = Field(default=None, description="key of the service account that makes clusters")
    hold_minutes: float = Field(default=HOLD_MINUTES, ge=0, allow_inf_nan=False, description="see EphemeralSpark")
    delete_seconds: float = Field(default=30, ge=0, description="to watch a deletion for, in case it fails")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """The form that the variables describe, see docs/clouds.md. Raises ValueError naming those that are missing."""
        address, folder, subnet, account, bucket = required("dataproc", REQUIRED, environment)
        return cls(
            environment=address,
            folder=folder,
            subnet=subnet,
            service_account=account,
            bucket=bucket,
            **common_settings(environment),
            **given(cls, OPTIONAL, environment),
        )

    def where(self) -> str:
        """See Spark."""
        return f"Yandex Data Proc, {self.master_type} and {self.nodes + self.spot_nodes} x {self.node_type}"

    def cluster_request(self, labels: Mapping[str, str]) -> Any:
        """Asks for a new cluster with these labels.

        Its name is unique in the folder: if the request is repeated because its answer was lost, the second one fails.
        """
        return CreateClusterRequest(
            folder_id=self.folder,
            name=f"{labels[CODE_LOCATION][:40]}-{uuid.uuid4().hex[:12]}",
            description="made for one run of Dagster, which deletes it",
            labels=labels,
            zone_id=self.zone,
            bucket=self.bucket,
            service_account_id=self.service_account,
            security_group_ids=self.security_groups,
            deletion_protection=False,
            config_spec=CreateClusterConfigSpec(
                version_id=self.image,
                hadoop=cluster_pb2.HadoopConfig(
                    services=_SERVICES,
                    ssh_public_keys=[self.ssh_public_key] if self.ssh_public_key else [],
                    oslogin_enabled=not self.ssh_public_key,
                ),
                subclusters_spec=self._subclusters(),
            ),
        )

    def job_request(self, cluster: str, name: str, command: Sequence[str]) -> Any:
        """Asks for the job that runs the command, under this name."""
        address = self.environment.replace("s3://", "s3a://", 1)  # the only scheme that YARN knows here
        job = job_pb2.PysparkJob(
            main_python_file_uri=f"{address}/{MAIN}",
            args=arguments(address, VARIABLES, command),
            properties={**settings(address, VARIABLES), **HADOOP, **self.spark_conf},
        )
        return CreateJobRequest(cluster_id=cluster, name=name, pyspark_job=job)

    def _subclusters(self) -> list[Any]:
        def spec(name: str, role: Any, kind: str, count: int, **others: Any) -> Any:
            resources = common_pb2.Resources(
                resource_preset_id=kind, disk_type_id="network-ssd", disk_size=self.disk_gb << 30
            )
            return CreateSubclusterConfigSpec(
                name=name, role=role, resources=resources, subnet_id=self.subnet, hosts_count=count, **others
            )

        found = [
            spec("master", subclusters.MASTERNODE, self.master_type, 1),
            spec("data", subclusters.DATANODE, self.node_type, self.nodes),
        ]
        if self.spot_nodes:  # the API has preemptible nodes in groups of instances only; this one never grows
            group = subclusters.AutoscalingConfig(max_hosts_count=self.spot_nodes, preemptible=True)
            group.measurement_duration.seconds, group.warmup_duration.seconds = 60, 60
            group.stabilization_duration.seconds = 120
            spot = spec("compute", subclusters.COMPUTENODE, self.node_type, self.spot_nodes, autoscaling_config=group)
            found.append(spot)
        return found
