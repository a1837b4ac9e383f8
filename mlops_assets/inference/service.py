"""The service: what a worker answers to clicks. A click's way is in scoring.py."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

from confluent_kafka import Message

from mlops_assets.inference.config import Settings
from mlops_assets.inference.metrics import Metrics
from mlops_assets.inference.model import Model
from mlops_assets.inference.outcome import DeadLetter, Outcome
from mlops_assets.inference.partition import Partition
from mlops_assets.inference.scoring import Run, misplaced, score
from mlops_assets.inference.worker import Worker

log = logging.getLogger(__name__)

KEY_SAMPLE: Final = 16  # of so many clicks the key of one is looked at
WARN_SECONDS: Final = 300


class Service(Worker[Partition]):
    """A worker that scores clicks."""

    def __init__(self, settings: Settings, model: Model) -> None:
        super().__init__(settings, Metrics(model.version, model.algorithm))
        self._model, self.name = model, f"model {model.version}"
        self._warned = float("-inf")

    def _own(self, begun: Partition) -> Partition:
        return begun

    def _score(self, runs: dict[int, list[Any]]) -> Outcome:
        outcome, todo = Outcome([], [], [], []), []
        for number, run in runs.items():
            partition, first = self._partitions[number], 0
            self._must_go_on(number, run[0].offset())
            if run[0].offset() < partition.first:
                first = sum(message.offset() < partition.first for message in run)
                self.metrics.replayed.inc(first)
            values, offset = list(map(Message.value, run)), partial(_offset_of, run)
            todo.append(Run(values, partition, first, self._output(number), offset))
        if not todo:
            return outcome
        scored = score(todo, self._model)
        self.metrics.probability.observe(scored.probability)
        self.metrics.late.inc(scored.late)
        self.metrics.ahead.inc(scored.ahead)
        for (number, run), new, part in zip(runs.items(), scored.new, todo, strict=True):
            partition = self._partitions[number]
            partition.position = run[-1].offset() + 1
            if partition.position > partition.first:
                outcome.offsets.append(self._offset(number, partition.position, partition.replay_from))
                oldest = run[min(part.first, len(run) - 1)]  # of the new ones: the others were answered in time
                outcome.written.append((oldest.timestamp()[1] / 1_000, new))
                self._check_keys(run[part.first :: KEY_SAMPLE])
        numbers = list(runs)
        for (index, at), reason in scored.rejected.items():
            message = runs[numbers[index]][at]
            outcome.dead.append(DeadLetter(numbers[index], message.offset(), message.key(), message.value(), reason))
        snapshot = self._snapshots.take(self._partitions) if outcome.offsets else None
        return replace(outcome, answers=scored.answers, snapshot=snapshot)

    def _check_keys(self, run: Sequence[Any]) -> None:
        """Whether producers keep what all counts rest on: that the key is the ip, so that an ip is in one partition."""
        wrong = [message for message in run if misplaced(message.key(), message.value())]
        if not wrong:
            return
        self.metrics.misplaced.inc(len(wrong))
        if time.monotonic() - self._warned > WARN_SECONDS:
            self._warned, first = time.monotonic(), wrong[0]
            log.error(
                "partition %s, offset %s: the key is %.50r and not the click's ip, so an ip's clicks are spread over "
                "partitions, and its counts are too low. Have the producer send the ip, in decimal, as the key; or set "
                "REKEY_TOPIC, here and for `python -m mlops_assets.inference.rekey` (docs/operations.md)",
                *(first.partition(), first.offset(), first.key()),
            )

    def _added(self, before: int, now: int) -> None:
        log.error(
            "%s has %s partitions instead of %s: ips that move to another one are counted from 1 there, so answers are "
            "too low in their counts until midnight (UTC). Add partitions at midnight, or to the input of a re-keying "
            "step (docs/operations.md, Producers that don't key by ip)",
            *(self._settings.input_topic, now, before),
        )


def _offset_of(run: Sequence[Any], position: int) -> int:
    offset: int = run[position].offset()
    return offset
