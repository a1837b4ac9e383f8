"""Topics, on whichever Kafka."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from mlops_assets.resources.programs import ProgramError

INPUT_PARTITIONS: Final = 12  # a multiple of 3, 4 and 6, the numbers of workers it is shared among


class TopicsError(ProgramError):
    """Topics did not appear; the message names them."""


def create_topics(client: Mapping[str, Any], topics: Mapping[str, int], seconds: float = 30) -> None:
    """Creates the topics (name to number of partitions) that are missing, and returns when all can be seen.

    `client` holds the settings of librdkafka. Raises KafkaException with the broker's reason, and TopicsError if they
    do not appear in time.
    """
    admin = AdminClient(dict(client))
    futures: Iterable[Any] = admin.create_topics(
        [NewTopic(name, partitions) for name, partitions in topics.items()], request_timeout=seconds
    ).values()
    for future in futures:
        try:
            future.result(seconds)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise
    deadline = time.monotonic() + seconds
    while not topics.keys() <= admin.list_topics(timeout=seconds).topics.keys():
        if time.monotonic() > deadline:
            raise TopicsError(f"the topics {', '.join(topics)} did not appear within {seconds:.0f} s")
        time.sleep(0.05)
