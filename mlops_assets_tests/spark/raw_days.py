"""Days of raw clicks for the Spark tests, put into a lake without a landing file."""

from datetime import date
from pathlib import Path

import numpy as np

from mlops_assets.clicks.schema import Clicks
from mlops_assets.clicks.synthetic import generate_day
from mlops_assets.lake.store import Lake
from mlops_assets.lake.tables import RAW_CLICKS, raw_rows

DAYS = ("2017-11-06", "2017-11-07", "2017-11-08")


def write_raw(lake: Lake, day: str, clicks: int = 4_000, seed: int = 1) -> None:
    """Synthetic clicks, some of which arrive late: by a second, or by hours."""
    every = Clicks.concat(list(generate_day(date.fromisoformat(day), clicks, seed)))
    rng = np.random.default_rng(seed)
    delay = np.where(rng.random(clicks) < 0.05, rng.integers(0, 3 * 3_600, clicks), 0)
    every = every.take(np.argsort(every.time + delay, kind="stable"))
    with lake.stage("raw_clicks", day) as staging:
        with staging.part(RAW_CLICKS, 0) as part:
            part.write_rows(raw_rows(every, 0))
        counted = {"rows_in": clicks, "quarantined": {}, "installs": int(np.sum(every.label == 1))}
        staging.commit([part.staged], inputs={"landing": str(seed)}, code_version="1", metadata=counted)


def data(lake: Lake) -> dict[str, bytes]:
    """Every file of the lake by its path below the root."""
    root = Path(lake.root)
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
