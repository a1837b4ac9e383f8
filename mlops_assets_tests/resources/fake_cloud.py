"""A cloud within this process: clusters that take a few looks to start, and whose job commits days by itself."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from mlops_assets.resources.ephemeral import CODE_LOCATION, RUN, Cluster, ClusterError, EphemeralSpark, Phase, Status

NOW = datetime.datetime(2017, 11, 9, tzinfo=datetime.UTC)


@dataclass
class Cloud:
    """What exists, what was asked of it, and the faults it has. `job` is what a cluster's application does."""

    job: Callable[[Sequence[str]], Status] = lambda command: Status(Phase.SUCCEEDED)
    existing: dict[str, Cluster] = field(default_factory=dict)
    commands: list[list[str]] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    looks: int = 0
    looks_to_start: int = 2
    refused_creations: int = 0
    refused_deletions: int = 0
    interrupted_creation: bool = False
    hidden_at_first: bool = False
    log_is_lost: bool = False

    def add(self, name: str, labels: Mapping[str, str], created: datetime.datetime = NOW) -> None:
        self.existing[name] = Cluster(name, labels[RUN], created)


CLOUDS: dict[str, Cloud] = {}
"""By the key of the resource, of which Dagster makes copies."""


class FakeCloudSpark(EphemeralSpark):
    """The five methods, on a Cloud."""

    poll_seconds: float = 0.001
    key: str = Field(default_factory=lambda: uuid.uuid4().hex)

    def use(self, cloud: Cloud) -> None:
        CLOUDS[self.key] = cloud

    @property
    def cloud_used(self) -> Cloud:
        return CLOUDS.setdefault(self.key, Cloud())

    def create(self, labels: Mapping[str, str], command: Sequence[str]) -> str:
        cloud = self.cloud_used
        if cloud.refused_creations:
            raise ClusterError("the quota of vCPUs is used up: ask for more, or wait")
        assert labels[CODE_LOCATION] == self.code_location
        name = f"c-{len(cloud.commands)}"
        cloud.commands.append(list(command))
        cloud.add(name, labels)
        if cloud.interrupted_creation:
            raise KeyboardInterrupt
        return name

    def reconcile(self, cluster: str, command: Sequence[str]) -> Status:
        assert command in self.cloud_used.commands
        self.cloud_used.looks += 1
        if self.cloud_used.looks <= self.cloud_used.looks_to_start:
            return Status(Phase.STARTING, "waiting for machines")
        return self.cloud_used.job(command)

    def log(self, cluster: str, position: Any) -> tuple[str, Any]:
        if self.cloud_used.log_is_lost:
            raise ClusterError("no log today")
        number = (position or 0) + 1
        return f"driver says {number}\n", number

    def delete(self, cluster: str) -> None:
        if self.cloud_used.refused_deletions:
            self.cloud_used.refused_deletions -= 1
            raise ClusterError("the cloud has an incident")
        self.cloud_used.deleted.append(cluster)
        self.cloud_used.existing.pop(cluster, None)

    def clusters(self) -> list[Cluster]:
        if self.cloud_used.hidden_at_first:
            self.cloud_used.hidden_at_first = False
            return []
        return list(self.cloud_used.existing.values())
