"""What people should be told: any part of the graph records a notice, and the sensor `tell_people` sends it."""

from __future__ import annotations

from typing import Final

import dagster as dg

NOTICES: Final = dg.AssetKey("notices")
"""The asset whose observations are the notices, so that Dagster's UI lists them, sent or not."""


def notice(kind: str, key: str, title: str, text: str, path: str = "") -> dg.AssetObservation:
    """Something that a person has to know, as a record of Dagster's.

    A step records it by `context.log_event(notice(...))`, a sensor by `SensorResult(asset_events=[notice(...)])`, a
    schedule by `context.instance.report_runless_asset_event(notice(...))`. Neither needs the network, nor fails when
    nobody can be reached.

    Args:
        kind: What it is, like "late day". Notices of one kind that come together are folded into one message.
        key: Names the happening, like "late day 2017-11-09". The same key again, within three days, is not told again.
        title: One line.
        text: What happened and what to do.
        path: Where in Dagster's UI to look, like "assets/raw_clicks?partition=2017-11-09"; by default the notices.
    """
    return dg.AssetObservation(NOTICES, metadata={"kind": kind, "key": key, "title": title, "text": text, "path": path})
