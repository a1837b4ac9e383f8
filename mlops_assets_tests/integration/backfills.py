"""Backfills, as the UI asks for them."""

from __future__ import annotations

from typing import Any, Final

from mlops_assets.cli.dagster_server import DagsterServer

LAUNCH_BACKFILL: Final = """
mutation($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message }
  }
}"""

BACKFILL: Final = """
query($id: String!) {
  partitionBackfillOrError(backfillId: $id) {
    ... on PartitionBackfill {
      status
      error { message }
      assetBackfillData {
        assetBackfillStatuses {
          ... on AssetPartitionsStatusCounts {
            assetKey { path }
            numPartitionsTargeted numPartitionsMaterialized numPartitionsFailed
          }
        }
      }
    }
  }
}"""


def launch(server: DagsterServer, **params: Any) -> str:
    """Starts a backfill with these parameters of the UI's own request; its id."""
    launched = server.query(LAUNCH_BACKFILL, {"params": params})["launchPartitionBackfill"]
    assert launched["__typename"] == "LaunchBackfillSuccess", launched
    backfill_id: str = launched["backfillId"]
    return backfill_id


def look(server: DagsterServer, backfill_id: str) -> dict[str, Any]:
    """The backfill's status and its assets' counts of partitions, as GraphQL gives them."""
    found: dict[str, Any] = server.query(BACKFILL, {"id": backfill_id})["partitionBackfillOrError"]
    return found
