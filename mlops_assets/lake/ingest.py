"""A landing file to a partition of raw_clicks: every line becomes a row, or lies in the quarantine with its reason."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlops_assets.clicks import csv
from mlops_assets.clicks.clock import Clock, Now
from mlops_assets.clicks.schema import SECONDS_PER_DAY, SECONDS_PER_HOUR, Clicks
from mlops_assets.lake.duplicates import Duplicates
from mlops_assets.lake.landing import Landing
from mlops_assets.lake.manifest import Manifest
from mlops_assets.lake.store import Lake
from mlops_assets.lake.tables import RAW_CLICKS, raw_rows

DATASET: Final = "raw_clicks"
INGEST_VERSION: Final = "2"
"""Raise it when the same file makes other rows or other metadata: every day is then ingested again."""

HOURS_OVER: Final = "hours_over"
"""In a manifest's metadata: pairs of an arrival number and a time, in epoch seconds. From there on the hours that ended
by that time are over, and a click of them counts in none: see clicks/clock.py."""

MOST_TURNS: Final = 1_000

QUARANTINE: Final = "_quarantine"
MOST_QUARANTINED: Final = 0.1
"""A file with a larger part of bad lines is not this day's clicks at all, and stops the day."""


class IngestError(ValueError):
    """A landing file that can't be a day's clicks. The message names file, line and remedy."""


@dataclass
class _Tally:
    clicks: int = 0
    installs: int = 0
    out_of_order: int = 0
    latest: int = 0
    by_hour: NDArray[np.int64] = field(default_factory=lambda: np.zeros(24, dtype=np.int64))
    reasons: Counter[str] = field(default_factory=Counter)
    first_rejected: str = ""
    duplicates: Duplicates = field(default_factory=Duplicates)
    clock: Clock = field(default_factory=Clock)
    now: Now | None = None
    hours_over: list[list[int]] = field(default_factory=list)

    def accept(self, clicks: Clicks) -> None:
        for end, now in self.clock.tick(clicks):
            if now not in (None, self.now) and len(self.hours_over) <= MOST_TURNS:
                self.now = now
                self.hours_over.append([self.clicks + end, now.over])
        self.clicks += len(clicks)
        self.installs += int(np.sum(clicks.label == 1))
        self.by_hour += np.bincount(clicks.time % SECONDS_PER_DAY // SECONDS_PER_HOUR, minlength=24)
        latest = np.maximum.accumulate(np.concatenate(([self.latest], clicks.time)))
        self.out_of_order += int(np.count_nonzero(clicks.time < latest[:-1]))
        self.latest = int(latest[-1])
        self.duplicates.add(clicks)

    def reject(self, rejected: Iterable[csv.Rejected], quarantine: gzip.GzipFile) -> None:
        for line, raw, reason in rejected:
            self.first_rejected = self.first_rejected or f"line {line}: {reason}"
            self.reasons[reason] += 1
            entry = {"line": line, "reason": reason, "raw": raw.decode("utf-8", "backslashreplace")}
            quarantine.write(json.dumps(entry).encode() + b"\n")

    def metadata(self) -> dict[str, Any]:
        return {
            "rows_in": self.clicks + self.reasons.total(),
            "quarantined": dict(sorted(self.reasons.items())),
            "installs": self.installs,
            "clicks_by_hour": self.by_hour.tolist(),
            "duplicates": self.duplicates.count(),
            "out_of_order": self.out_of_order,
            HOURS_OVER: self._hours_over(),
        }

    def _hours_over(self) -> list[list[int]]:
        """None for a file whose time goes back oftener than it goes on: its lines are not in the order of arrival, so
        there is no telling what came late."""
        hours = [over // SECONDS_PER_HOUR for _, over in self.hours_over]
        back = sum(then < now for now, then in pairwise(hours))
        ordered = len(hours) <= MOST_TURNS and (not hours or back <= max(hours) - hours[0])
        return self.hours_over if ordered else []


def ingest(landing: Landing, lake: Lake, day: str) -> Manifest:
    """Replaces the day's raw clicks by its landing file, in bounded memory; a file that did not change costs nothing.

    The order of the lines is that of the clicks' arrival. Identical clicks are kept: bots really make them. They are
    counted, as are clicks that arrived after a later one.
    Raises IngestError for a missing, damaged or empty file, a wrong header, and too many bad lines.
    """
    version = landing.version(day)
    name = landing.uri(day)
    if version is None:
        raise IngestError(f"{name} is missing: import or generate that day's clicks, or leave the day out")
    inputs = {"landing": version}
    done = lake.finished(DATASET, day, inputs, INGEST_VERSION)
    if done:
        return done
    tally = _Tally()
    with lake.stage(DATASET, day) as staging:
        with (
            landing.open(day) as stream,
            staging.part(RAW_CLICKS, 0) as part,
            staging.other(QUARANTINE, ".jsonl.gz") as quarantine,
            gzip.GzipFile("", "wb", fileobj=quarantine, mtime=0) as lines,
        ):
            for clicks, rejected in _blocks(stream, name, day):
                part.write_rows(raw_rows(clicks, tally.clicks))
                tally.accept(clicks)
                tally.reject(rejected, lines)
        _judge(tally, name)
        if landing.version(day) != version:
            raise IngestError(f"{name} was replaced while it was read: run the day again")
        return staging.commit(
            [part.staged],
            inputs=inputs,
            code_version=INGEST_VERSION,
            others=[quarantine.staged] if tally.reasons else [],
            metadata=tally.metadata(),
        )


def quarantined(lake: Lake, day: str) -> list[dict[str, Any]]:
    """The day's bad lines: `line` number in the landing file, `reason`, and the `raw` line."""
    manifest = lake.require(DATASET, day)
    if not manifest.others:
        return []
    with lake.open_other(manifest, QUARANTINE) as file, gzip.open(file) as lines:
        return [json.loads(line) for line in lines]


def _blocks(stream: Any, name: str, day: str) -> Iterator[tuple[Clicks, list[csv.Rejected]]]:
    """The clicks of the day and the bad lines, block by block. Raises IngestError."""
    start = int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp())
    try:
        columns, blocks = csv.read(stream, name)
        for first, data in blocks:
            parsed = csv.parse(data, columns)
            rejected = [item._replace(line=first + item.line - 1) for item in parsed.rejected]
            outside = (parsed.clicks.time < start) | (parsed.clicks.time >= start + SECONDS_PER_DAY)
            if outside.any():
                lines = data.split(b"\n")
                numbers = parsed.line[outside].tolist()
                rejected += [csv.Rejected(first + n - 1, lines[n - 1], f"click_time is not on {day}") for n in numbers]
            yield parsed.clicks.take(~outside), sorted(rejected)
    except ValueError as error:
        raise IngestError(str(error)) from error


def _judge(tally: _Tally, name: str) -> None:
    bad = tally.reasons.total()
    if not tally.clicks and not bad:
        raise IngestError(f"{name}, line 2: no clicks after the header: the file is empty; deliver the day again")
    if bad > MOST_QUARANTINED * (tally.clicks + bad):
        raise IngestError(
            f"{name}, {tally.first_rejected}: {bad} of {tally.clicks + bad} lines are no clicks of the day, more than "
            f"{MOST_QUARANTINED:.0%}: it is not the right file, or its format changed; deliver the day again"
        )
