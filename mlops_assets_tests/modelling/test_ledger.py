from __future__ import annotations

import json
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_assets.modelling.ledger import Entry, Kind, champion_as_of

_clock = count()


def entry(day: int, kind: Kind, model: str, promoted: bool = False) -> Entry:
    return Entry(
        day=f"2017-11-{day:02}",
        kind=kind,
        decided_by="the gate" if kind == "verdict" else "ann",
        reason="because",
        model_version=model,
        run_id=f"run-{model}",
        promoted=promoted,
        time=f"2018-01-01T00:00:{next(_clock):012}",
    )


def promoted(day: int, model: str) -> Entry:
    return entry(day, "verdict", model, promoted=True)


def refused(day: int, model: str) -> Entry:
    return entry(day, "verdict", model)


def champion(entries: list[Entry], day: int) -> str | None:
    found = champion_as_of(entries, f"2017-11-{day:02}")
    return found.model_version if found else None


def test_the_champion_is_the_latest_promotion_before_or_on_the_day_whatever_days_are_missing() -> None:
    entries = [promoted(7, "a"), refused(8, "b"), promoted(10, "c")]
    assert [champion(entries, day) for day in range(6, 13)] == [None, "a", "a", "a", "c", "c", "c"]


def test_backfilling_an_old_day_leaves_the_later_champion() -> None:
    entries = [promoted(10, "c"), promoted(7, "a")]
    assert (champion(entries, 12), champion(entries, 8)) == ("c", "a")


def test_a_day_judged_again_counts_by_its_last_verdict() -> None:
    entries = [promoted(7, "a"), promoted(8, "b"), refused(8, "b2")]
    assert champion(entries, 9) == "a"
    assert champion([*entries, promoted(8, "b3")], 9) == "b3"


def test_what_a_person_forced_outlives_a_new_verdict_of_its_day_and_yields_to_a_later_day() -> None:
    entries = [promoted(7, "a"), entry(8, "forced", "x"), promoted(8, "b")]
    assert champion(entries, 8) == "x"
    assert champion([*entries, promoted(9, "c")], 9) == "c"


def test_a_revoked_model_hands_back_to_its_predecessor_until_it_is_forced_again() -> None:
    entries = [promoted(7, "a"), promoted(8, "b"), entry(9, "revoked", "b")]
    assert [champion(entries, day) for day in (8, 9, 10)] == ["b", "a", "a"], "history before the revocation stays"
    entries.append(promoted(10, "b"))
    assert champion(entries, 10) == "a", "the gate does not overrule a person"
    entries.append(entry(11, "forced", "b"))
    assert champion(entries, 11) == "b"
    entries.append(entry(11, "revoked", "b"))
    assert champion(entries, 11) == "a"


def test_revoking_the_only_champion_leaves_none() -> None:
    assert champion([promoted(7, "a"), entry(7, "revoked", "a")], 9) is None


@given(
    st.permutations([promoted(7, "a"), refused(8, "b"), entry(9, "revoked", "a"), promoted(9, "c"), promoted(6, "z")])
)
def test_the_order_in_which_entries_are_read_does_not_matter(entries: list[Entry]) -> None:
    assert [champion(entries, day) for day in (6, 7, 8, 9)] == ["z", "a", "a", "c"]


def test_an_entry_survives_json_and_its_key_sorts_by_time() -> None:
    first, second = promoted(9, "a"), promoted(8, "b")
    assert Entry.from_dict(json.loads(json.dumps(first.as_dict()))) == first
    assert first.key < second.key
    assert not set(first.key) & set(":/ ")


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
