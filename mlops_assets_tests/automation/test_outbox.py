"""The outbox: each message reaches each recipient once, in few letters, whatever fails in between."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from mlops_assets.automation.outbox import (
    GIVE_UP_SECONDS,
    HOLD_SECONDS,
    HOUR,
    KEYS,
    LINES,
    QUIET_SECONDS,
    RETRY_SECONDS,
    TEXT,
    WAITING,
    Message,
    Outbox,
    Queue,
    letter,
)

START = 1_700_000_000.0


def message(number: int, group: str = "failed runs", at: float = START, text: str = "Mend it.") -> Message:
    return Message(f"run {number}", group, f"Run {number} failed", text, f"http://ui/runs/{number}", at)


def outbox(*recipients: str) -> Outbox:
    made = Outbox()
    made.keep_recipients(recipients or ("mail",))
    return made


def send(box: Outbox, now: float, refusing: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    """Sends what is due; recipient and text of what was taken."""
    taken = []
    for recipient, queue in list(box.due(now, lambda group: False)):
        made = letter(queue)
        if recipient in refusing:
            box.lost += queue.refused(now)
        else:
            taken.append((recipient, f"{made.title}\n{made.text}"))
            queue.delivered(len(queue.messages), now)
    return taken


def test_one_message_is_sent_as_it_is_and_once() -> None:
    box = outbox()
    for _ in range(3):  # read three times, as when sensors overlap
        box.take(message(1))
    assert send(box, START) == [("mail", "Run 1 failed\nMend it.\n\nhttp://ui/runs/1")]
    box.take(message(1))
    assert send(box, START + QUIET_SECONDS) == []


def test_a_burst_is_one_message_and_its_late_part_another() -> None:
    box = outbox()
    for number in range(90):
        box.take(message(number))
    ((_, text),) = send(box, START)
    assert text.startswith("Run 0 failed, and 89 more\n- Run 0 failed http://ui/runs/0\n- Run 1 failed")
    assert f"and {90 - LINES} more" in text
    assert text.count("Mend it.") == 1
    box.take(message(90))
    box.take(message(91))
    assert send(box, START + QUIET_SECONDS - 1) == []
    ((_, text),) = send(box, START + QUIET_SECONDS)
    assert text.startswith("Run 90 failed, and 1 more")


def test_a_recipient_that_refuses_keeps_no_other_waiting_and_is_told_later() -> None:
    box = outbox("mail", "slack")
    box.take(message(1))
    assert [who for who, _ in send(box, START, refusing=("slack",))] == ["mail"]
    assert send(box, START + RETRY_SECONDS - 1) == []
    assert send(box, START + RETRY_SECONDS, refusing=("slack",)) == []
    assert send(box, START + 2 * RETRY_SECONDS) == []  # the wait has doubled
    assert [who for who, _ in send(box, START + 3 * RETRY_SECONDS)] == ["slack"]
    assert box.waiting == 0


def test_what_nobody_takes_for_two_days_is_given_up_and_counted() -> None:
    box, now, tries = outbox(), START, 0
    box.take(message(1))
    while box.waiting:
        tries += len(list(box.due(now, lambda group: False)))
        send(box, now, refusing=("mail",))
        now += 30
    assert box.lost == 1
    assert GIVE_UP_SECONDS <= now - START < GIVE_UP_SECONDS + 2 * HOUR
    assert tries < 60


def test_a_group_that_is_held_waits_an_hour_at_most() -> None:
    box = outbox()
    box.take(message(1, "backfill b"))
    assert list(box.due(START + HOLD_SECONDS - 1, lambda group: group == "backfill b")) == []
    assert len(list(box.due(START + HOLD_SECONDS, lambda group: True))) == 1
    assert len(list(box.due(START, lambda group: False))) == 1


def test_who_is_no_recipient_any_more_is_forgotten_and_who_is_new_is_told_from_now_on() -> None:
    box = outbox("mail", "slack")
    box.take(message(1))
    box.keep_recipients(["slack", "teams"])
    box.take(message(2))
    assert sorted(who for who, _ in send(box, START)) == ["slack", "teams"]
    assert "mail" not in box.queues


def test_everything_is_bounded() -> None:
    box = outbox()
    for number in range(KEYS + 100):
        box.take(message(number, text="x" * 10_000))
    box.tidy(START)
    (queue,) = box.queues["mail"].values()
    assert len(queue.messages) == WAITING
    assert box.waiting == KEYS + 100
    assert len(box.taken) == KEYS
    assert len(letter(queue).text) < TEXT + 10
    send(box, START)
    box.tidy(START + 30 * 24 * HOUR)
    assert box.queues["mail"] == {}
    assert box.taken == {}


def test_what_another_version_wrote_is_not_taken_for_ours() -> None:
    assert Outbox.decode(None) is None
    assert Outbox.decode('{"format": 0, "anything": 1}') is None


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.integers(0, 30)),
        st.tuples(st.just("tick"), st.sets(st.sampled_from(["mail", "slack"]))),
        st.tuples(st.just("restart"), st.just(0)),
    ),
    max_size=40,
)


@given(STEPS)
def test_each_message_reaches_each_recipient_exactly_once(steps: list[tuple[str, object]]) -> None:
    box, now, taken, told = outbox("mail", "slack"), START, set[str](), Counter[tuple[str, str]]()

    def tick(refusing: object = ()) -> None:
        assert isinstance(refusing, set | tuple)
        queues = [(recipient, queue) for recipient, queue in box.due(now, lambda group: False)]
        told.update((who, each.key) for who, queue in queues if who not in refusing for each in queue.messages)
        send(box, now, tuple(refusing))

    for kind, what in steps:
        now += 40
        if kind == "take":
            assert isinstance(what, int)
            taken.add(f"run {what}")
            box.take(message(what, at=now))
        elif kind == "tick":
            tick(what)
        else:
            again = Outbox.decode(box.encode())
            assert again == box
            assert again is not None
            box = again
    for _ in range(2):
        now += HOUR
        tick()
    assert told == Counter({(who, key): 1 for who in ("mail", "slack") for key in taken})


def test_a_queue_remembers_how_often_it_was_refused() -> None:
    queue = Queue([message(1)])
    waits = []
    for _ in range(12):
        queue.refused(START)
        waits.append(queue.not_before - START)
    assert waits[:3] == [30, 60, 120]
    assert waits[-1] == HOUR
