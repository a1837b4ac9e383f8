"""What a click is: its columns, their types and their bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

IDS: Final = ("ip", "app", "device", "os", "channel")
"""The five anonymised ids of a click, in the order of TalkingData's files."""

ID_MAX: Final = {"ip": 2**32 - 1, "app": 2**16 - 1, "device": 2**16 - 1, "os": 2**16 - 1, "channel": 2**16 - 1}
"""Largest accepted id. They let a count's key (ip, another id, the hour) fit 64 bits exactly, without a hash."""

SECONDS_PER_HOUR: Final = 3_600
SECONDS_PER_DAY: Final = 86_400


@dataclass(frozen=True, slots=True)
class Clicks:
    """A batch of n clicks in arrival order, a column per field, every column of shape (n,).

    `time` is in whole seconds since the epoch, UTC. `label` is 1 where the click led to an install; `click_id` names
    a click of the inference topic; `attributed_time` is the second of the install, -1 without one. Each of the three is
    None where the source has no such column.
    """

    ip: NDArray[np.uint32]
    app: NDArray[np.uint16]
    device: NDArray[np.uint16]
    os: NDArray[np.uint16]
    channel: NDArray[np.uint16]
    time: NDArray[np.int64]
    label: NDArray[np.uint8] | None = None
    click_id: NDArray[np.int64] | None = None
    attributed_time: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.ip)

    def take(self, index: NDArray[np.intp] | NDArray[np.bool_] | slice) -> Self:
        """The clicks at `index` (positions, a mask or a slice), in that order."""
        columns: list[Any] = [getattr(self, field.name) for field in fields(self)]
        taken: list[Any] = [None if column is None else column[index] for column in columns]
        return type(self)(*taken)

    def bare(self) -> Self:
        """The clicks without the columns that are not counted."""
        return type(self)(self.ip, self.app, self.device, self.os, self.channel, self.time)

    @classmethod
    def concat(cls, batches: Sequence[Clicks]) -> Self:
        """All batches after one another. Raises ValueError without a batch, or if only some have an optional column."""
        columns: list[Any] = []
        for field in fields(cls):
            parts = [getattr(batch, field.name) for batch in batches]
            missing = sum(part is None for part in parts)
            if missing not in (0, len(parts)):
                raise ValueError(f"only some of the batches have the column {field.name!r}")
            columns.append(None if missing else np.concatenate(parts))
        return cls(*columns)
