"""Messages to people, from when something happened to when each recipient has it: once, folded, and tried again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Self

HOUR: Final = 3600.0
QUIET_SECONDS: Final = 600.0
"""After a message, others of its group wait that long, to be one message."""
HOLD_SECONDS: Final = HOUR
"""A group that is held, as that of a backfill under way, is told at the latest this long after its first message."""
RETRY_SECONDS: Final = 30.0
"""Until a refused message is sent again; doubled with every refusal, up to an hour."""
GIVE_UP_SECONDS: Final = 48 * HOUR
"""From the first refusal to when its recipient is no longer tried with it."""
REMEMBER_SECONDS: Final = 72 * HOUR
KEYS: Final = 5000
WAITING: Final = 200
LINES: Final = 20
TEXT: Final = 3000
FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Message:
    """Something that people are told once. Messages of one `group` that come together are folded into one.

    `at` is when it happened, in seconds since 1970. The same `key` is not told again for `remember` seconds.
    """

    key: str
    group: str
    title: str
    text: str
    link: str
    at: float
    remember: float = REMEMBER_SECONDS


@dataclass(frozen=True, slots=True)
class Letter:
    """What is sent."""

    title: str
    text: str


@dataclass(slots=True)
class Queue:
    """What one recipient has not been told yet of one group; `more` counts what was too much to keep."""

    messages: list[Message] = field(default_factory=list)
    more: int = 0
    not_before: float = 0.0
    refusals: int = 0
    refused_since: float = 0.0

    def take(self, message: Message) -> None:
        """Adds a message, within bounds."""
        if len(self.messages) < WAITING:
            self.messages.append(message)
        else:
            self.more += 1

    def delivered(self, count: int, now: float) -> None:
        """Takes out the messages that were in the letter."""
        self.messages, self.more = self.messages[count:], 0
        self.not_before, self.refusals, self.refused_since = now + QUIET_SECONDS, 0, 0.0

    def refused(self, now: float) -> int:
        """Notes that the letter was not taken; how many messages are given up by that."""
        self.refused_since = self.refused_since or now
        self.refusals += 1
        self.not_before = now + min(HOUR, RETRY_SECONDS * 2 ** min(self.refusals - 1, 10))
        if now - self.refused_since < GIVE_UP_SECONDS:
            return 0
        lost = len(self.messages) + self.more
        self.messages, self.more, self.refusals, self.refused_since = [], 0, 0, 0.0
        return lost


@dataclass(slots=True)
class Outbox:
    """All that has to be kept: how far each source was read, which keys were taken, and who has not been told what.

    Recipients are names that give nothing away. `looked_at` is when it was last looked for what is new, `failed_at`
    when a message was last refused, 0 if never.
    """

    positions: dict[str, Any] = field(default_factory=dict)
    taken: dict[str, tuple[float, float]] = field(default_factory=dict)
    queues: dict[str, dict[str, Queue]] = field(default_factory=dict)
    sent: int = 0
    lost: int = 0
    failed_at: float = 0.0
    looked_at: float = 0.0

    def keep_recipients(self, names: Iterable[str]) -> None:
        """Forgets who is no recipient any more, and begins a list for who is new."""
        self.queues = {name: self.queues.get(name, {}) for name in names}

    def is_taken(self, key: str) -> bool:
        """Whether something of that key is told, or about to be."""
        return key in self.taken

    def take(self, message: Message) -> None:
        """Lets every recipient be told, unless the message's key was taken before."""
        if message.key in self.taken:
            return
        self.taken[message.key] = (message.at, message.remember)
        for queues in self.queues.values():
            queues.setdefault(message.group, Queue()).take(message)

    def tidy(self, now: float) -> None:
        """Forgets keys that are old, and the groups that nothing is left of."""
        kept = sorted((item for item in self.taken.items() if now - item[1][0] < item[1][1]), key=lambda item: item[1])
        self.taken = dict(kept[-KEYS:])
        for queues in self.queues.values():
            for group in [name for name, each in queues.items() if not each.messages and each.not_before <= now]:
                del queues[group]

    def due(self, now: float, is_held: Callable[[str], bool]) -> Iterator[tuple[str, Queue]]:
        """The recipients and their queues that have something to be sent now."""
        for recipient, queues in self.queues.items():
            for group, queue in list(queues.items()):
                if not queue.messages or queue.not_before > now:
                    continue
                if now - queue.messages[0].at < HOLD_SECONDS and is_held(group):
                    continue
                yield recipient, queue

    @property
    def waiting(self) -> int:
        """How many messages somebody has not been told yet."""
        return sum(len(queue.messages) + queue.more for queues in self.queues.values() for queue in queues.values())

    def encode(self) -> str:
        """As JSON."""
        return json.dumps({"format": FORMAT, **asdict(self)})

    @classmethod
    def decode(cls, text: str | None) -> Self | None:
        """What `encode` wrote; None if there is none, or it is another version's."""
        document = json.loads(text) if text else {}
        if document.pop("format", None) != FORMAT:
            return None
        document["taken"] = {key: (at, remember) for key, (at, remember) in document["taken"].items()}
        document["queues"] = {
            name: {
                group: Queue(**{**queue, "messages": [Message(**message) for message in queue["messages"]]})
                for group, queue in queues.items()
            }
            for name, queues in document["queues"].items()
        }
        return cls(**document)


def letter(queue: Queue) -> Letter:
    """One message as it is, or several folded into one: a line each, then what to do, once."""
    messages = queue.messages
    first, count = messages[0], len(messages) + queue.more
    if count == 1:
        return Letter(first.title, _shortened([first.text, first.link]))
    lines = [f"- {message.title} {message.link}".rstrip() for message in messages[:LINES]]
    if count > LINES:
        lines.append(f"and {count - LINES} more")
    return Letter(f"{first.title}, and {count - 1} more", _shortened(["\n".join(lines), first.text]))


def _shortened(parts: Iterable[str]) -> str:
    text = "\n\n".join(part for part in parts if part)
    return text if len(text) <= TEXT else f"{text[:TEXT]} ..."
