"""Months of verdicts in a second: the asset's own `decide` on stand-ins of lake and MLflow, with a gate of chance."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from datetime import date, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_assets.assets import promoted_model
from mlops_assets.assets.promoted_model import decide, ledger, production_champion, record
from mlops_assets.modelling.ledger import Entry, Kind, replay
from mlops_assets.modelling.promotion import Verdict

LAST = 9


def day_of(number: int) -> str:
    return f"2017-11-{number:02}"


def chance(*words: object) -> str:
    return hashlib.sha256(repr(words).encode()).hexdigest()


class World:
    """A lake whose days have versions, and an MLflow whose candidates are named by what they were trained on."""

    def __init__(self) -> None:
        self.landed: dict[str, int] = {}
        self.logged: dict[str, dict[str, Any]] = {}
        self.alias: str | None = None

    # the lake
    def manifest(self, _: str, day: str) -> Any:
        if day not in self.landed:
            return None
        return SimpleNamespace(version=str(self.landed[day]), date=day, inputs={}, rows=1, metadata={"installs": 0})

    require = manifest

    def append_record(self, _: str, key: str, record: dict[str, Any]) -> None:
        assert key not in self.logged
        self.logged[key] = record

    def records(self, _: str) -> list[dict[str, Any]]:
        return [self.logged[key] for key in sorted(self.logged)]

    # MLflow
    def find(self, tags: dict[str, str]) -> str | None:
        return f"run-{tags['day']}-{tags['fingerprint']}"

    def champion(self) -> Any:
        return self.alias and SimpleNamespace(run_id=self.alias)

    def register(self, run_id: str, tags: dict[str, str]) -> Any:
        return SimpleNamespace(run_id=run_id)

    def set_champion(self, version: Any) -> None:
        self.alias = version and version.run_id

    def judge(self, day: int) -> Entry:
        return decide(self, self, day_of(day), decided_by="the gate")  # type: ignore[arg-type]

    def word(self, kind: Kind, entry: Entry, pinned: bool = False) -> None:
        day = replay(ledger(self)).newest  # type: ignore[arg-type]
        model = {"model_version": entry.model_version, "run_id": entry.run_id}
        record(self, self, Entry(day=day, kind=kind, decided_by="ann", reason="so", pinned=pinned, **model))  # type: ignore[arg-type]

    @property
    def production(self) -> str | None:
        champion = production_champion(self)  # type: ignore[arg-type]
        assert (champion and champion.run_id) == self.alias, "the alias says what the ledger says"
        return champion.model_version if champion else None


def better(candidate: str, champion: str | None) -> bool:
    return champion is None or int(chance(candidate, champion), 16) % 3 == 0


@pytest.fixture(autouse=True, scope="module")
def gate_of_chance() -> Iterator[None]:
    def judge(lake: Any, mlflow: Any, day: str, run_id: str, champion: Entry | None) -> tuple[Verdict, str]:
        version = f"model-{run_id}"
        promoted = better(version, champion.model_version if champion else None)
        return Verdict(promoted, "by chance", 1, 1), version

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(promoted_model, "_judge", judge)
        yield


@pytest.fixture
def world() -> World:
    found = World()
    found.landed = {day_of(day): 1 for day in range(1, LAST + 1)}
    return found


@pytest.mark.parametrize("version", range(2, 12))
def test_late_data_for_the_champions_day_does_not_unmake_it(world: World, version: int) -> None:
    for day in range(1, LAST + 1):
        world.judge(day)
    before, champion = world.production, production_champion(world)  # type: ignore[arg-type]
    assert champion
    for late in range(1, LAST):
        world.landed[day_of(late)] = version
        again = world.judge(late)
        assert (again.historical, again.promoted) == (True, False)
        assert ("would be promoted" in again.reason) == again.verdict["promoted"], "it says what would be decided now"
        assert world.production == before


def test_an_unchanged_day_is_not_judged_again(world: World) -> None:
    for _ in range(3):
        for day in range(1, LAST + 1):
            world.judge(day)
    assert len(world.logged) == LAST


def test_other_settings_of_the_gate_judge_the_newest_day_again_and_nothing_older(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for day in range(1, LAST + 1):
        world.judge(day)
    monkeypatch.setattr(promoted_model, "GATE", dataclasses.replace(promoted_model.GATE, alpha=0.01))
    for day in range(1, LAST + 1):
        world.judge(day)
    days = [entry.day for entry in ledger(world)]  # type: ignore[arg-type]
    assert days == [*(day_of(day) for day in range(1, LAST + 1)), day_of(LAST)]
    assert ledger(world)[-1].gate["alpha"] == 0.01  # type: ignore[arg-type]


def test_a_pinned_model_stays_whatever_the_gate_finds_until_it_is_released(world: World) -> None:
    first = world.judge(1)
    world.word("forced", first, pinned=True)
    held = [world.judge(day) for day in range(2, LAST + 1)]
    assert world.production == first.model_version
    kept_out = [entry for entry in held if entry.verdict["promoted"]]
    assert kept_out, "the chance is that of another test"
    assert all("pinned by ann" in entry.reason and "would be promoted" in entry.reason for entry in kept_out)
    newest = held[-1]
    world.word("released", first)
    assert world.production == first.model_version
    again = world.judge(LAST)
    assert again.promoted == newest.verdict["promoted"]


EVENT = st.one_of(
    st.tuples(st.just("arrive"), st.integers(1, LAST), st.integers(1, 3)),
    st.tuples(st.just("judge"), st.integers(1, LAST), st.just(0)),
    st.tuples(st.just("backfill"), st.integers(1, LAST), st.integers(0, 4)),
    st.tuples(st.sampled_from(["forced", "pinned", "revoked", "released"]), st.integers(0, 20), st.just(0)),
)


def oracle(events: list[tuple[str, str, bool]]) -> str | None:
    """Production by the rules as people tell them. Verdicts are (day, model, whether the gate found it better)."""
    places: list[list[str]] = []  # [day of the verdict or nothing for a person, model or nothing]
    newest, pin, banned = "", "", set[str]()
    for what, model, flag in events:
        if what[0].isdigit() and what >= newest:
            if what > newest:
                places.append([what, ""])
            newest = what
            wins = flag and not pin and model not in banned
            next(place for place in places if place[0] == what)[1] = model if wins else ""
        elif what == "forced":
            places.append(["", model])
            pin, banned = model if flag else "", banned - {model}
        elif what == "revoked":
            places = [[day, "" if held == model else held] for day, held in places]
            pin, banned = pin.replace(model, ""), banned | {model}
        elif what == "released":
            pin = ""
    return next((model for _, model in reversed(places) if model), None)


@settings(deadline=None, max_examples=150)
@given(st.lists(EVENT, max_size=40))
def test_production_moves_only_by_a_newer_verdict_or_by_a_person(events: list[tuple[str, int, int]]) -> None:
    world, told = World(), list[tuple[str, str, bool]]()
    for what, number, other in events:
        before, newest = world.production, replay(ledger(world)).newest  # type: ignore[arg-type]
        judged = [entry for entry in ledger(world) if entry.kind == "verdict"]  # type: ignore[arg-type]
        if what == "arrive":
            world.landed[day_of(number)] = other
        elif what in ("judge", "backfill"):
            days = [day for day in range(number, min(number + other, LAST) + 1) if day_of(day) in world.landed]
            for day in days:
                entry = world.judge(day)
                told.append((entry.day, entry.model_version, entry.verdict["promoted"]))
            if all(day_of(day) < newest for day in days):
                assert world.production == before
        elif judged:
            entry = judged[number % len(judged)]
            kind: Any = "forced" if what == "pinned" else what
            world.word(kind, entry, pinned=what == "pinned")
            told.append((kind, entry.model_version, what == "pinned"))
        assert world.production == oracle(told)


def test_a_year_of_daily_verdicts_keeps_its_order_when_a_clock_runs_fast(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlops_assets.modelling import ledger as ledger_module

    first = date(2018, 1, 1)
    days = [str(first + timedelta(days=number)) for number in range(40)]
    world.landed = dict.fromkeys(days, 1)
    for number, day in enumerate(days):
        wrong = "2999-01-01T00:00:00.000000+00:00" if number == 5 else f"2018-06-01T00:00:00.{number:06}+00:00"
        monkeypatch.setattr(ledger_module, "_now", lambda wrong=wrong: wrong)
        decide(world, world, day, "the gate")  # type: ignore[arg-type]
    assert [entry.day for entry in ledger(world)] == days  # type: ignore[arg-type]
    assert replay(ledger(world)).newest == days[-1]  # type: ignore[arg-type]
