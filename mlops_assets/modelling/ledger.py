"""The promotion ledger: every verdict ever given, and who is champion by it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, Literal, Self

Kind = Literal["verdict", "forced", "revoked"]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One decision. Entries are only ever appended; `champion_as_of` reads the present state off them.

    A `verdict` is the gate's on day `day`, `promoted` or not. A person may have a model `forced` into production from
    `day` on, or `revoked`: it is then no champion on `day` or later, until forced again.
    """

    day: str
    kind: Kind
    decided_by: str
    reason: str
    model_version: str
    run_id: str
    promoted: bool = False
    champion_before: str | None = None
    champion_after: str | None = None
    verdict: dict[str, Any] = field(default_factory=dict)
    data_versions: dict[str, str] = field(default_factory=dict)
    time: str = field(default_factory=_now)

    def __post_init__(self) -> None:
        if self.kind not in ("verdict", "forced", "revoked"):
            raise ValueError(f"a ledger entry is a verdict, forced or revoked, not {self.kind!r}")
        if self.kind != "verdict" and not (self.reason.strip() and self.decided_by.strip()):
            raise ValueError(f"a {self.kind} promotion needs a reason and the name of who decided")

    @property
    def key(self) -> str:
        """Unique, and sorts by time."""
        return f"{self.time}-{self.day}-{self.kind}".replace(":", "")

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Self:
        """The entry of a JSON record. Raises ValueError naming what the record lacks or has too much."""
        known = {f.name for f in fields(cls)}
        if unknown := record.keys() - known:
            raise ValueError(f"the ledger record of {record.get('time')} has unknown fields {sorted(unknown)}")
        try:
            return cls(**record)
        except TypeError as error:
            raise ValueError(f"the ledger record of {record.get('time')} is incomplete: {error}") from error


def verdict_of(entries: Iterable[Entry], day: str) -> Entry | None:
    """The gate's last word on `day`; entries in the order in which they were made."""
    return next((entry for entry in reversed(list(entries)) if entry.day == day and entry.kind == "verdict"), None)


def champion_as_of(entries: Iterable[Entry], day: str) -> Entry | None:
    """The entry that made the champion of `day`: the latest promotion before or on it, whatever days are missing.

    A day judged again counts by its last verdict. On one day, what a person forced outranks the verdict. A revoked
    model is passed over, and its predecessor is champion again.
    """
    past = sorted((entry for entry in entries if entry.day <= day), key=lambda entry: entry.time)
    last_verdict = {entry.day: entry for entry in past if entry.kind == "verdict"}
    revoked = {entry.model_version: entry.time for entry in past if entry.kind == "revoked"}
    standing = [
        entry
        for entry in past
        if (entry.kind == "forced" and entry.time > revoked.get(entry.model_version, ""))
        or (entry.promoted and last_verdict.get(entry.day) is entry and entry.model_version not in revoked)
    ]
    return max(standing, key=lambda entry: (entry.day, entry.kind == "forced", entry.time), default=None)
