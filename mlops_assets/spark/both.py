"""Both of a day's jobs in one session: its training set, then its predictions, once somebody has a model for them.

    python -m mlops_assets.spark.both --lake ROOT --days 2017-11-06 --folder KEY --minutes 10

Between the two the application waits, for so many minutes. It is spoken to by objects of the lake below that key:

    <folder>/waiting   by the application: its training sets are committed
    <folder>/request   by whoever is first: {"days": [...], "model": ADDRESS} by the submitter, which the application
                       then does before it ends; or NO_MORE by the submitter, or by the application at its limit

Objects are only made, never replaced, so no request is lost in between: whoever comes second sees that.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Final

from pyspark.sql import SparkSession

from mlops_assets.lake.storage import Storage
from mlops_assets.lake.store import Lake
from mlops_assets.spark import predictions, training_set
from mlops_assets.spark.days import arguments
from mlops_assets.spark.session import say, session

DATASET: Final = training_set.DATASET
run, finished = training_set.run, training_set.finished
"""For whoever wants only the training sets, as within Dagster's own process: the predictions are a job of their own."""

WAITING: Final = "waiting"
REQUEST: Final = "request"
NO_MORE: Final = b"{}"
POLL_SECONDS: Final = 2.0


def wait(storage: Storage, folder: str, seconds: float) -> dict[str, Any]:
    """Says that the application waits, and returns the request; an empty one if none is made in that time.

    A lake that does not answer meanwhile is asked again. Raises OSError if it still doesn't at the end.
    """
    storage.put_if(f"{folder}/{WAITING}", NO_MORE, None)
    until = time.monotonic() + seconds
    while True:
        try:
            found = storage.get(f"{folder}/{REQUEST}")
        except OSError as error:
            found = None
            sys.stdout.write(f"looking for a request: {error}\n")
        if found:
            request: dict[str, Any] = json.loads(found[0])
            return request
        if time.monotonic() < until:
            time.sleep(POLL_SECONDS)
        elif storage.put_if(f"{folder}/{REQUEST}", NO_MORE, None):
            return {}


def run_both(spark: SparkSession, lake: str, days: list[str], folder: str, seconds: float) -> None:
    """Makes the training sets, waits, and does what is asked for.

    Raises FailedDaysError, at once if a training set failed: then nobody will want the predictions.
    """
    run(spark, lake, days, say)
    request = wait(Lake(lake).storage, folder, seconds)
    if request:
        with predictions.local_folder(request["model"]) as model:
            predictions.run(spark, lake, request["days"], say, model=str(model))


if __name__ == "__main__":
    parser = arguments(f"{DATASET} and {predictions.DATASET}")
    parser.add_argument("--folder", required=True, help="key in the lake below which the two sides meet")
    parser.add_argument("--minutes", required=True, type=float, help="to wait for a request")
    options = parser.parse_args()
    with session(DATASET, options.lake) as spark:
        run_both(spark, options.lake, options.days.split(","), options.folder, 60 * options.minutes)
