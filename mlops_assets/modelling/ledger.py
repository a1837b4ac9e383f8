"""The promotion ledger: every decision ever made, and what production is by them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final, Literal, Self, get_args

Kind = Literal["verdict", "forced", "revoked", "released"]
KINDS: Final = get_args(Kind)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One decision. Entries are only ever appended; `replay` reads the present state off them.

    A `verdict` is the gate's on day `day`, `promoted` or not. It is `historical` if a later day had been judged before:
    it then says what would be decided now, and moves nothing. `held` says why a person's word kept the candidate out
    whatever the gate found; empty if none did. `gate` holds the settings that the verdict was given by.

    A person may have a model `forced` into production, `pinned` or not, or `revoked`, or have the pin `released`. That
    counts from now on; `day` is then the newest day that had been judged.
    """

    day: str
    kind: Kind
    decided_by: str
    reason: str
    model_version: str
    run_id: str
    promoted: bool = False
    historical: bool = False
    pinned: bool = False
    held: str = ""
    champion_before: str | None = None
    champion_after: str | None = None
    verdict: dict[str, Any] = field(default_factory=dict)
    gate: dict[str, Any] = field(default_factory=dict)
    data_versions: dict[str, str] = field(default_factory=dict)
    time: str = field(default_factory=_now)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"a ledger entry is one of {', '.join(KINDS)}, not {self.kind!r}")
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


@dataclass(frozen=True, slots=True)
class Standing:
    """What some decisions add up to.

    `pin` is the decision that keeps its model in production until a person releases it. `newest` is the newest day that
    was judged, empty before the first.
    """

    pin: Entry | None = None
    newest: str = ""
    revoked: frozenset[str] = frozenset()
    _before: tuple[Entry, ...] = ()  # what reigned before the newest day was judged, and may again
    _verdict: tuple[Entry, ...] = ()  # the newest day's, if it promotes
    _since: tuple[Entry, ...] = ()  # what a person has forced since
    _champions: Mapping[str, Entry | None] = field(default_factory=dict)

    @property
    def champion(self) -> Entry | None:
        """The decision that made production's model, None before the first promotion."""
        return _last((*self._before, *self._verdict, *self._since))

    def as_of(self, day: str) -> Entry | None:
        """The decision that made the champion of `day`: what the verdict of the latest judged day up to it left behind.

        A day after the newest has today's champion. What a person decides later changes no day that was judged.
        """
        if day > self.newest:
            return self.champion
        judged = max((each for each in self._champions if each <= day), default=None)
        return self._champions[judged] if judged else None

    def opponent(self, day: str) -> Entry | None:
        """The decision that made the champion which a candidate of `day` has to beat."""
        if day > self.newest:
            return self.champion
        if day == self.newest:  # judged again: its earlier verdict doesn't count
            return _last(self._before)
        return self.as_of(str(date.fromisoformat(day) - timedelta(days=1)))

    def is_historical(self, day: str) -> bool:
        """Whether a verdict on `day` comes too late to move production: a later day has been judged."""
        return day < self.newest

    def held(self, model_version: str) -> str:
        """Why no verdict can promote that model now; empty if one can."""
        if model_version in self.revoked:
            return f"model {model_version} was revoked: only a person can bring it back"
        if self.pin:
            return f"model {self.pin.model_version} is pinned by {self.pin.decided_by} until it is released"
        return ""


def replay(entries: Iterable[Entry]) -> Standing:
    """What the decisions add up to, taken in the order in which they were made.

    Production moves by a verdict on a day later than every day judged before, or by a person. The newest day may be
    judged again: its last verdict counts. A revoked model hands back to whatever reigned before it.
    """
    standing = Standing()
    for entry in sorted(entries, key=lambda entry: (entry.time, entry.key)):
        standing = _after(standing, entry)
    return standing


def champion_as_of(entries: Iterable[Entry], day: str) -> Entry | None:
    """The decision that made the champion of `day`; see Standing.as_of."""
    return replay(entries).as_of(day)


def verdict_of(entries: Iterable[Entry], day: str) -> Entry | None:
    """The gate's last word on `day`; entries in the order in which they were made."""
    return next((entry for entry in reversed(list(entries)) if entry.day == day and entry.kind == "verdict"), None)


def time_after(entries: Iterable[Entry]) -> str:
    """The time of a decision that is made now, after these: a clock that was fast once must not reorder the ledger."""
    latest = max((entry.time for entry in entries), default="")
    now = _now()
    if latest < now:
        return now
    return (datetime.fromisoformat(latest) + timedelta(microseconds=1)).isoformat(timespec="microseconds")


def _after(standing: Standing, entry: Entry) -> Standing:
    if entry.kind == "verdict":
        return _after_verdict(standing, entry)
    if entry.kind == "forced":
        return replace(
            standing,
            pin=entry if entry.pinned else None,
            revoked=standing.revoked - {entry.model_version},
            _since=(*standing._since, entry),
        )
    if entry.kind == "revoked":
        model, parts = entry.model_version, (standing._before, standing._verdict, standing._since)
        before, verdict, since = (tuple(each for each in part if each.model_version != model) for part in parts)
        pin = None if standing.pin and standing.pin.model_version == model else standing.pin
        revoked = standing.revoked | {model}
        return replace(standing, pin=pin, revoked=revoked, _before=before, _verdict=verdict, _since=since)
    return replace(standing, pin=None)


def _after_verdict(standing: Standing, entry: Entry) -> Standing:
    if standing.is_historical(entry.day):
        return standing
    # Judged again, the newest day's verdict takes its own place: what a person has said since stands above it.
    again = entry.day == standing.newest
    before = standing._before if again else (*standing._before, *standing._verdict, *standing._since)
    verdict = (entry,) if entry.promoted and not standing.held(entry.model_version) else ()
    return replace(
        standing,
        newest=entry.day,
        _before=before,
        _verdict=verdict,
        _since=standing._since if again else (),
        _champions={**standing._champions, entry.day: _last((*before, *verdict))},
    )


def _last(reigns: tuple[Entry, ...]) -> Entry | None:
    return reigns[-1] if reigns else None
