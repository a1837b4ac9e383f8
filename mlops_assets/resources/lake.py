"""The lake and the landing area as Dagster's resource."""

from __future__ import annotations

import dagster as dg

from mlops_assets.lake.landing import Landing
from mlops_assets.lake.store import Lake


class LakeResource(dg.ConfigurableResource[None]):
    """Where clicks land, and where what was made of them is kept."""

    root: str

    def lake(self) -> Lake:
        """The datasets and the promotion ledger."""
        return Lake(self.root)

    def landing(self) -> Landing:
        """The daily files as they arrived."""
        return Landing(self.root)
