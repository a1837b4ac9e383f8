"""Synthetic clicks of TalkingData's shape, whose installs can be predicted."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlops_assets.clicks.features import COUNTS, RunningCounts
from mlops_assets.clicks.schema import SECONDS_PER_DAY, SECONDS_PER_HOUR, Clicks

IPS: Final = 364_778
APPS: Final = 730
DEVICES: Final = 3_799
OSES: Final = 856
CHANNELS: Final = 202
INSTALL_RATE: Final = 0.0025

_BLOCK: Final = 1 << 16
_FARMS: Final = 200
_FARM_SHARE: Final = 0.1  # of all clicks
_FARM_CLICKS: Final = 100  # an hour, at least, of a farm that is at work
_PILOT: Final = 200_000
# The share of each UTC hour: the clicks come from China, where the night is 16 to 22 UTC.
_SHARE: Final = (
    *(3.3, 3.0, 2.9, 3.4, 3.9, 3.9, 3.6, 3.3, 3.3, 3.6, 3.8, 3.6),
    *(3.7, 3.9, 3.6, 2.6, 1.7, 1.1, 0.8, 0.7, 0.8, 1.4, 2.2, 2.8),
)

Floats = NDArray[np.float64]
Ids = NDArray[np.uint16]


@dataclass(frozen=True)
class World:
    """What stays the same from day to day: who clicks on what how often, and what makes an install likely.

    `ip`, `app`, `device` and `os` are tables of ids in which an id stands as often as it is clicked; a row of
    `channel`, of shape (APPS, 64), is such a table for one app. The other fields add to the log odds of an install.
    """

    ip: NDArray[np.uint32]
    app: Ids
    device: Ids
    os: Ids
    channel: Ids
    farm_ip: NDArray[np.uint32]
    farm_app: Ids
    app_effect: Floats
    device_effect: Floats
    os_effect: Floats
    pair_effect: Floats
    hour_effect: Floats
    repeat_effect: Floats

    @classmethod
    @cache
    def of(cls, seed: int, drift: float) -> World:
        """The world of a seed; `drift` from 0 to 1 takes it to an unrelated one."""
        rng = np.random.default_rng(seed)

        def popular(n: int, flat: float, power: float, size: int, dtype: Any) -> NDArray[Any]:
            ids = rng.permutation(n)
            share = 1 / (np.arange(n) + flat) ** power
            share = (1 - drift) * share + drift * rng.permutation(share)
            return np.repeat(ids, np.maximum(1, np.rint(share / share.sum() * size)).astype(int)).astype(dtype)

        def effect(shape: tuple[int, ...]) -> Floats:
            ours, other = rng.standard_normal((2, *shape))
            turn = drift * np.pi / 2  # keeps the variance
            return np.asarray(np.cos(turn) * ours + np.sin(turn) * other)

        app = popular(APPS, 3, 1.5, 1 << 16, np.uint16)
        clicks_of_app = np.bincount(app, minlength=APPS)
        device = np.concatenate((np.repeat([1, 2, 0], [240_000, 9_000, 1_500]), rng.integers(3, DEVICES, 1 << 13)))
        channels = rng.choice(popular(CHANNELS, 5, 1, 1 << 12, np.uint16), (APPS, 6))
        day = np.sin(np.arange(24) * np.pi / 12)
        app_effect = 2.5 * effect((APPS,)) - 0.8 * np.log(clicks_of_app)  # what many click on, few install
        return cls(
            ip=popular(IPS, 20, 1, 1 << 21, np.uint32),
            app=app,
            device=np.concatenate((device, np.arange(DEVICES))).astype(np.uint16),
            os=popular(OSES, 2, 1.5, 1 << 16, np.uint16),
            channel=np.repeat(channels, [29, 14, 9, 6, 4, 2], axis=1),
            farm_ip=rng.choice(IPS, _FARMS, replace=False).astype(np.uint32),
            farm_app=np.argsort(app_effect)[-APPS // 2 :].astype(np.uint16),
            app_effect=app_effect,
            device_effect=0.3 * effect((DEVICES, 1)) + np.where(np.arange(DEVICES)[:, None] == 1, 0, 1 + 1.5 * day),
            os_effect=0.2 * effect((OSES,)),
            pair_effect=0.5 * effect((CHANNELS,)) + 0.3 * effect((APPS, CHANNELS)),
            hour_effect=day * np.where(effect((CHANNELS, 1)) > 0, 0.8, -0.4),
            repeat_effect=np.where(effect((APPS,)) > 0, 1.0, 3.0),
        )

    def draw(self, rng: np.random.Generator, time: NDArray[np.int64], farms: int) -> Clicks:
        """Clicks at the given seconds, `farms` farms being at work. A farm clicks on one thing for an hour."""
        n = len(time)
        app = rng.choice(self.app, n)
        channel = self.channel[app, rng.integers(self.channel.shape[1], size=n)]
        ip, device, os = rng.choice(self.ip, n), rng.choice(self.device, n), rng.choice(self.os, n)
        farmed = np.flatnonzero(rng.random(n) < _FARM_SHARE)
        hour = time[farmed] // SECONDS_PER_HOUR
        farm = (rng.integers(farms, size=len(farmed)) + hour * 7) % _FARMS
        task = farm * 7_919 + hour * 104_729  # any mixing will do
        ip[farmed] = self.farm_ip[farm]
        app[farmed] = self.farm_app[task % len(self.farm_app)]
        channel[farmed] = self.channel[app[farmed], task % 64]
        device[farmed], os[farmed] = 1, self.os[task * 31 % len(self.os)]
        return Clicks(ip, app, device, os, channel, time)

    def log_odds(self, clicks: Clicks, counts: NDArray[np.uint32]) -> Floats:
        """Of an install, up to a constant: of app, channel, device, os, hour and the running counts."""
        count = dict(zip(COUNTS, counts.T.astype(np.float64), strict=True))
        hour = clicks.time % SECONDS_PER_DAY // SECONDS_PER_HOUR
        return np.asarray(
            self.app_effect[clicks.app]
            + self.pair_effect[clicks.app, clicks.channel]
            + self.device_effect[clicks.device, hour]
            + self.os_effect[clicks.os]
            + self.hour_effect[clicks.channel, hour]
            + self.repeat_effect[clicks.app] * ((count["ip_hour_app"] > 1) & (count["ip_hour_app"] <= 4))
            - 5.0 * (count["ip_hour_app"] > 12)
            + 1.0 * ((count["ip_day_hour"] > 2) & (count["ip_day_hour"] <= 20))
            - 0.2 * np.log(count["ip_day_hour"])
        )


def generate_day(date: datetime.date, clicks: int, seed: int, drift: float = 0) -> Iterator[Clicks]:
    """A day's clicks, labelled, ordered by time, in batches of about 65,536: the same for the same arguments.

    All days of a seed are of one World, so a model of one day serves the next. `drift` from 0 (none) to 1 changes what
    is popular and what leads to installs, gradually. Raises ValueError for a drift outside 0..1 or negative clicks.
    """
    if not 0 <= drift <= 1:
        raise ValueError(f"drift is {drift}, must be from 0 to 1")
    if clicks < 0:
        raise ValueError(f"clicks is {clicks}, must not be negative")
    world, intercept, farms = World.of(seed, drift), _intercept(seed, drift, clicks), _farms(clicks)
    rng = np.random.default_rng((seed, date.toordinal()))
    midnight = (date - datetime.date(1970, 1, 1)).days * SECONDS_PER_DAY
    share = np.interp(np.arange(SECONDS_PER_DAY) / SECONDS_PER_HOUR, range(25), (*_SHARE, _SHARE[0]))
    until = np.cumsum(rng.multinomial(clicks, share / share.sum()))  # clicks up to the end of each second
    counts = RunningCounts()
    for start in range(0, clicks, _BLOCK):
        position = np.arange(start, min(start + _BLOCK, clicks))
        batch = world.draw(rng, midnight + np.searchsorted(until, position, side="right"), farms)
        counts.forget(int(batch.time[0]))
        odds = np.exp(world.log_odds(batch, counts.count(batch)) + intercept)
        label = (rng.random(len(batch)) * (1 + odds) < odds).astype(np.uint8)
        delay = 1 + np.minimum(rng.lognormal(np.log(300), 1.5, len(batch)), SECONDS_PER_DAY).astype(np.int64)
        attributed_time = np.where(label == 1, batch.time + delay, -1)
        yield Clicks(
            batch.ip, batch.app, batch.device, batch.os, batch.channel, batch.time, label, None, attributed_time
        )


def _farms(clicks: int) -> int:
    return int(np.clip(clicks * _FARM_SHARE / 24 / _FARM_CLICKS, 1, _FARMS))


@cache
def _intercept(seed: int, drift: float, clicks: int) -> float:
    """The constant of the log odds that makes INSTALL_RATE of days of so many clicks installs.

    It depends on how high the counts are, so it is fitted to a pilot: hours as busy as the average click finds them.
    """
    world, rng = World.of(seed, drift), np.random.default_rng((seed, 0))
    hourly = max(1, round(clicks * float(np.sum(np.square(_SHARE)) / np.sum(_SHARE) ** 2)))
    hours = min(240, -(-_PILOT // hourly))
    counts = RunningCounts()
    parts = []
    for start in range(0, hours * hourly, _BLOCK):
        time = np.arange(start, min(start + _BLOCK, hours * hourly)) * SECONDS_PER_HOUR // hourly
        batch = world.draw(rng, time, _farms(clicks))
        counts.forget(int(time[0]))
        count = counts.count(batch)
        hour = rng.choice(24, len(batch), p=np.array(_SHARE) / sum(_SHARE))  # the pilot may be too short for all hours
        parts.append(world.log_odds(replace(batch, time=hour * SECONDS_PER_HOUR), count).astype(np.float32))
    log_odds = np.concatenate(parts)
    log_odds = log_odds[:: max(1, len(log_odds) // (2 * _PILOT))]
    low, high = -40.0, 40.0
    for _ in range(40):
        middle = (low + high) / 2
        rate = np.mean(1 / (1 + np.exp(-(log_odds + middle))))
        low, high = (middle, high) if rate < INSTALL_RATE else (low, middle)
    return low
