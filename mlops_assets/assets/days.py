"""A run over several days: each is made by itself, and none is lost when another fails."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import dagster as dg

from mlops_assets.assets import metadata
from mlops_assets.assets.order import FOR_EVER
from mlops_assets.resources.spark import OnUsage, Usage
from mlops_assets.resources.transient import is_transient
from mlops_assets.spark.days import FailedDaysError, OnDay

RETRY_SECONDS: Final = [10, 60, 300, 900, 1800]
"""How long a step waits before it is tried again, after a failure of a server and not of the day: an hour in all."""


@dataclass
class _Attempts:
    """What earlier attempts of a step came to: the days they made, and how often a server failed them.

    Dagster's own number of a step's attempts counts also those that only waited, see order.py.
    """

    made: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures_of_servers: int = 0


_attempts: dict[tuple[str, dg.AssetKey], _Attempts] = {}
"""By run and asset. The attempts of a step share this process."""


class Days:
    """The days of a step that are still to be made, in order, with what became of each."""

    def __init__(self, context: dg.AssetExecutionContext) -> None:
        self._context = context
        self._attempts = _attempts.setdefault((context.run.run_id, context.asset_key), _Attempts())
        self._made = self._attempts.made
        self._failed: dict[str, Exception] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(day for day in sorted(self._context.partition_keys) if day not in self._made)

    @property
    def made(self) -> list[str]:
        """The days that were reported so far."""
        return list(self._made)

    def report(self, day: str, metadata: Mapping[str, Any]) -> None:
        """Says that a day is committed, with its metadata; again for what is known later."""
        self._made.setdefault(day, {}).update(metadata)

    def fail(self, day: str, error: Exception) -> None:
        """Says that a day failed. The step goes on, and fails at its end."""
        self._made.pop(day, None)
        self._failed[day] = error
        self._context.log.error(f"{day} failed: {_said(error)}", exc_info=error)

    @contextmanager
    def isolated(self, day: str) -> Iterator[None]:
        """Whatever error ends the block is that day's alone."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - of whatever kind: it must not cost the other days
            self.fail(day, error)

    @contextmanager
    def spark_job(self, of: Iterable[str]) -> Iterator[None]:
        """The block runs a Spark job that reports the days it makes; the others fail, with the reason of each."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - of whatever kind: it must not cost the days that are committed
            reasons = error.errors if isinstance(error, FailedDaysError) else {}
            for day in of:
                if day not in self._made:
                    self.fail(day, reasons.get(day, error))

    def end(self) -> None:
        """Records each day that was made, and fails the step if a day was not, with the reason of each.

        When a server and not the day was at fault, the step is tried again first, for the days that are left.
        """
        for day in self:
            if day not in self._failed:
                self.fail(day, RuntimeError("it was neither made nor said to have failed"))
        if not self._failed:
            for day, found in self._made.items():
                self._context.add_asset_metadata(found, partition_key=day)
            return
        self.keep()
        for error in self._failed.values():
            self.try_again(error)
        reasons = {day: _said(error) for day, error in sorted(self._failed.items())}
        kept = f"; {len(self._made)} others are made" if self._made else ""
        raise dg.Failure(
            f"failed: {', '.join(reasons)}{kept}\n" + "\n".join(f"{day}: {reason}" for day, reason in reasons.items()),
            metadata={"failed_days": dg.MetadataValue.json(reasons)},
            allow_retries=False,
        ) from next(iter(self._failed.values()))

    def try_again(self, error: Exception) -> None:
        """Raises dg.RetryRequested if a server was at fault, and may be well the next time."""
        failures = self._attempts.failures_of_servers
        if is_transient(error) and failures < len(RETRY_SECONDS):
            self._attempts.failures_of_servers += 1
            seconds = RETRY_SECONDS[failures]
            self._context.log.warning(f"a server failed ({_said(error)}); the step is tried again in {seconds} s")
            raise dg.RetryRequested(max_retries=FOR_EVER, seconds_to_wait=seconds) from error

    def keep(self) -> None:
        """Records the days that were made although the step fails: Dagster would forget the whole range."""
        for day, found in self._made.items():
            self._context.log_event(dg.AssetMaterialization(self._context.asset_key, partition=day, metadata=found))


@contextmanager
def day_by_day(context: dg.AssetExecutionContext) -> Iterator[Days]:
    """Yields the step's days. What was made of them is recorded however the block ends, also when it is terminated."""
    days = Days(context)
    try:
        yield days
    except dg.RetryRequested:
        raise
    except BaseException as error:
        days.keep()
        if isinstance(error, Exception):
            days.try_again(error)
        raise
    days.end()


def spark_reports(days: Days) -> tuple[OnDay, OnUsage]:
    """What a Spark job is given to report by: a day's partition, and what the job took to each day that it made."""

    def on_usage(usage: Usage) -> None:
        for day in usage.days:
            days.report(day, metadata.of_usage(usage))

    return lambda manifest: days.report(manifest.date, metadata.of_partition(manifest)), on_usage


def _said(error: Exception) -> str:
    """An error in words; its class too, unless the message is written for people."""
    if isinstance(error, dg.Failure):
        return str(error.description)
    return f"{type(error).__name__}: {error}"
