"""The limits of the checks, in one place."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final, Self


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What a day and its champion must be. Each has a variable of its own: MLOPS_CHECK_ and its name in capitals.

    Clicks of a day are compared with the usual ones: the median of the days that the lake holds of the week before.
    """

    least_of_usual_clicks: float = 0.5
    """A day with a smaller part of its usual clicks stops (blocking)."""

    expected_in_an_hour: float = 10
    """An hour without a click is missing (blocking) if at least so many are expected in it."""

    most_installs: float = 0.1
    """About 1 click in 400 leads to an install. At 1 in 10 the label column is not what it says (blocking)."""

    usual_installs_from: float = 0.0002
    usual_installs_to: float = 0.02
    """Installs per click outside of this are worth a look."""

    most_duplicates: float = 0.05
    """The share of clicks that repeat an earlier one in every column."""

    most_drift: float = 0.25
    """Population stability index of a feature from which on its distribution is called shifted, as is common."""

    champion_days: float = 30
    """A champion that was promoted more days ago is old."""

    @classmethod
    def from_environment(cls, env: Mapping[str, str] = os.environ) -> Self:
        """Raises ValueError naming a variable that is no number from 0 on."""
        found = {}
        for name in (field.name for field in fields(cls)):
            if value := env.get(f"MLOPS_CHECK_{name.upper()}"):
                try:
                    found[name] = float(value)
                except ValueError:
                    found[name] = -1.0
                if not found[name] >= 0:
                    raise ValueError(f"MLOPS_CHECK_{name.upper()} is {value!r}, must be a number from 0 on")
        return cls(**found)


THRESHOLDS: Final = Thresholds.from_environment()
