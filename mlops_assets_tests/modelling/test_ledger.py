from __future__ import annotations

import json
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_assets.modelling.ledger import Entry, Kind, champion_as_of, replay, time_after

_clock = count()


def entry(day: int, kind: Kind, model: str, promoted: bool = False, pinned: bool = False) -> Entry:
    return Entry(
        day=f"2017-11-{day:02}",
        kind=kind,
        decided_by="the gate" if kind == "verdict" else "ann",
        reason="because",
        model_version=model,
        run_id=f"run-{model}",
        promoted=promoted,
        pinned=pinned,
        time=f"2018-01-01T00:00:{next(_clock):012}",
    )


def promoted(day: int, model: str) -> Entry:
    return entry(day, "verdict", model, promoted=True)


def refused(day: int, model: str) -> Entry:
    return entry(day, "verdict", model)


def champion(entries: list[Entry], day: int) -> str | None:
    found = champion_as_of(entries, f"2017-11-{day:02}")
    return found.model_version if found else None


def production(entries: list[Entry]) -> str | None:
    found = replay(entries).champion
    return found.model_version if found else None


def test_the_champion_is_the_latest_promotion_before_or_on_the_day_whatever_days_are_missing() -> None:
    entries = [promoted(7, "a"), refused(8, "b"), promoted(10, "c")]
    assert [champion(entries, day) for day in range(6, 13)] == [None, "a", "a", "a", "c", "c", "c"]


def test_a_promotion_on_an_old_day_changes_neither_production_nor_any_judged_day() -> None:
    entries = [refused(6, "z"), promoted(10, "c"), promoted(7, "a")]
    assert (champion(entries, 12), champion(entries, 8)) == ("c", None)


def test_late_data_that_refuses_an_old_promotion_leaves_production_as_it_is() -> None:
    entries = [promoted(3, "a"), promoted(8, "b"), *(refused(day, f"c{day}") for day in range(9, 29))]
    again = [*entries, refused(8, "b2")]
    assert production(again) == "b"
    assert [champion(again, day) for day in range(1, 31)] == [champion(entries, day) for day in range(1, 31)]


def test_the_newest_day_judged_again_counts_by_its_last_verdict() -> None:
    entries = [promoted(7, "a"), promoted(8, "b"), refused(8, "b2")]
    assert champion(entries, 9) == "a"
    assert champion([*entries, promoted(8, "b3")], 9) == "b3"


def test_what_a_person_forced_outlives_a_new_verdict_of_the_newest_day_and_yields_to_a_later_day() -> None:
    entries = [promoted(7, "a"), promoted(8, "b"), entry(8, "forced", "x"), refused(8, "b2")]
    assert production(entries) == "x"
    assert production([*entries, promoted(9, "c")]) == "c"


def test_a_repeat_of_the_newest_day_does_not_undo_what_a_person_has_said_since() -> None:
    entries = [promoted(9, "c5"), promoted(10, "c10"), entry(10, "forced", "c5")]
    assert production([*entries, promoted(10, "c10")]) == "c5"
    opponent = replay(entries).opponent("2017-11-10")
    assert opponent
    assert opponent.kind == "verdict", "it is judged against what reigned before its day"
    assert production([*entries, promoted(10, "c10"), promoted(11, "c11")]) == "c11"


def test_a_pinned_model_is_replaced_only_after_its_release() -> None:
    entries = [promoted(7, "a"), entry(7, "forced", "x", pinned=True), promoted(8, "b")]
    standing = replay(entries)
    assert production(entries) == "x"
    assert "pinned by ann" in standing.held("c")
    released = [*entries, entry(8, "released", "x")]
    assert production(released) == "x", "a release alone moves nothing"
    assert production([*released, promoted(9, "c")]) == "c"


def test_forcing_or_revoking_ends_an_earlier_pin() -> None:
    pinned = [promoted(7, "a"), entry(7, "forced", "x", pinned=True)]
    assert production([*pinned, entry(7, "forced", "y"), promoted(8, "b")]) == "b"
    assert production([*pinned, entry(7, "revoked", "x")]) == "a"
    assert production([*pinned, entry(7, "revoked", "x"), promoted(8, "b")]) == "b"


def test_a_revoked_model_hands_back_to_its_predecessor_until_it_is_forced_again() -> None:
    entries = [promoted(7, "a"), promoted(8, "b"), refused(9, "c"), entry(9, "revoked", "b")]
    assert [champion(entries, day) for day in (7, 8, 9, 10)] == ["a", "b", "b", "a"], "judged days stay as they were"
    assert "revoked" in replay(entries).held("b")
    entries.append(promoted(10, "b"))
    assert production(entries) == "a", "the gate does not overrule a person"
    entries.append(entry(11, "forced", "b"))
    assert production(entries) == "b"
    entries.append(entry(11, "revoked", "b"))
    assert production(entries) == "a"


def test_revoking_the_only_champion_leaves_none() -> None:
    assert champion([promoted(7, "a"), entry(7, "revoked", "a")], 9) is None


def test_a_candidate_is_judged_against_what_reigned_before_its_day() -> None:
    standing = replay([promoted(6, "a"), promoted(7, "b"), promoted(8, "c"), refused(9, "d")])
    opponents = [standing.opponent(f"2017-11-{day:02}") for day in (6, 7, 8, 9, 10)]
    assert [each and each.model_version for each in opponents] == [None, "a", "b", "c", "c"]
    again = replay([promoted(6, "a"), promoted(7, "b")]).opponent("2017-11-07")
    assert again
    assert again.model_version == "a"


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("verdict"), st.integers(1, 6), st.sampled_from("abcd"), st.booleans()),
        st.tuples(
            st.sampled_from(["forced", "revoked", "released"]), st.just(0), st.sampled_from("abcd"), st.booleans()
        ),
    ),
    max_size=25,
)


def oracle(events: list[tuple[str, int, str, bool]]) -> str | None:
    """Production by the rules as people tell them, on plain letters. Every judged day has a place, taken or empty."""
    places: list[list[object]] = []  # [day of the verdict or 0 for a person, model or None]
    newest, pin, banned = 0, "", set[str]()
    for kind, day, model, flag in events:
        if kind == "verdict" and day >= newest:
            if day > newest:
                places.append([day, None])
            newest = day
            wins = flag and not pin and model not in banned
            next(place for place in places if place[0] == day)[1] = model if wins else None
        elif kind == "forced":
            places.append([0, model])
            pin, banned = model if flag else "", banned - {model}
        elif kind == "revoked":
            places = [[each, None if held == model else held] for each, held in places]
            pin, banned = pin.replace(model, ""), banned | {model}
        elif kind == "released":
            pin = ""
    return next((str(model) for _, model in reversed(places) if model), None)


@given(EVENTS)
def test_production_is_what_the_rules_say_after_any_decisions(events: list[tuple[str, int, str, bool]]) -> None:
    entries: list[Entry] = []
    newest = 0
    for kind, day, model, flag in events:
        before, past = production(entries), [champion(entries, each) for each in range(1, newest + 1)]
        is_verdict = kind == "verdict"
        entries.append(entry(day or max(newest, 1), kind, model, flag and is_verdict, flag and kind == "forced"))  # type: ignore[arg-type]
        if is_verdict and day < newest:
            assert production(entries) == before, "a verdict on an old day moves nothing"
        unchanged = newest - 1 if is_verdict and day == newest else newest
        assert [champion(entries, each) for each in range(1, unchanged + 1)] == past[:unchanged], "history is history"
        newest = max(newest, day)
        assert production(entries) == oracle(events[: len(entries)])


@given(
    st.permutations([promoted(7, "a"), refused(8, "b"), entry(9, "revoked", "a"), promoted(9, "c"), promoted(6, "z")])
)
def test_the_order_in_which_entries_are_read_does_not_matter(entries: list[Entry]) -> None:
    assert [champion(entries, day) for day in (6, 7, 8, 9)] == [None, "a", "a", "c"]


def test_an_entry_survives_json_and_its_key_sorts_by_time() -> None:
    first, second = promoted(9, "a"), promoted(8, "b")
    assert Entry.from_dict(json.loads(json.dumps(first.as_dict()))) == first
    assert first.key < second.key
    assert not set(first.key) & set(":/ ")


def test_a_decision_is_later_than_one_that_a_fast_clock_made() -> None:
    fast = Entry.from_dict({**promoted(7, "a").as_dict(), "time": "2999-01-01T00:00:00.000000+00:00"})
    assert time_after([fast]) == "2999-01-01T00:00:00.000001+00:00"


def test_a_person_must_give_a_reason_and_a_name() -> None:
    with pytest.raises(ValueError, match="needs a reason"):
        Entry(day="2017-11-08", kind="forced", decided_by="ann", reason=" ", model_version="a", run_id="r")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": "red"}, "unknown fields .'colour'"),
        ({"day": None}, "incomplete"),
        ({"kind": "guess"}, "not 'guess'"),
    ],
)
def test_a_record_that_is_no_entry_is_refused(change: dict[str, str | None], message: str) -> None:
    record = {k: v for k, v in (promoted(7, "a").as_dict() | change).items() if v is not None}
    with pytest.raises(ValueError, match=message):
        Entry.from_dict(record)
