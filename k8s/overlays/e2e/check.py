"""Reads all committed answers; waits until clicks 0 .. $CLICKS - 1 are answered, and prints what was and was not."""

import collections
import json
import os
import time

from confluent_kafka import Consumer, TopicPartition

CLICKS, SECONDS = int(os.environ["CLICKS"]), float(os.environ["SECONDS"])
consumer = Consumer(
    {
        "bootstrap.servers": os.environ["KAFKA_BOOTSTRAP_SERVERS"],
        "group.id": "check",
        "isolation.level": "read_committed",
        "auto.offset.reset": "earliest",
        "enable.auto.commit": False,
        "fetch.queue.backoff.ms": 10,
    }
)
topics = consumer.list_topics(timeout=30).topics
consumer.assign([TopicPartition(t, p, 0) for t in ("predictions", "input.dead-letter") for p in topics[t].partitions])
seen = bytearray(CLICKS)
models, dead, strangers, wrong = collections.Counter(), 0, 0, 0
first_of = {}
deadline = quiet = time.monotonic() + SECONDS
while time.monotonic() < min(deadline, quiet):
    for message in consumer.consume(10_000, 0.5):
        if message.error():
            continue
        if message.topic() == "input.dead-letter":
            dead += 1
            continue
        answer = json.loads(message.value())
        number = int(answer["click_id"])
        if not 0 <= answer["probability"] <= 1 or message.key() != str(number).encode():
            wrong += 1
        if number < CLICKS:
            seen[number] = min(255, seen[number] + 1)
        else:
            strangers += 1
        model = answer["model_version"]
        models[model] += 1
        first_of.setdefault(model, message.timestamp()[1] / 1000)
    if len(seen) - seen.count(0) == CLICKS and quiet == deadline:
        quiet = time.monotonic() + 5  # whatever comes twice has come by then
report = {
    "clicks": CLICKS,
    "answered_once": seen.count(1),
    "missing": seen.count(0),
    "doubled": CLICKS - seen.count(0) - seen.count(1),
    "dead_letters": dead,
    "strangers": strangers,
    "wrong": wrong,
    "models": models,
    "first_answer": first_of,
}
print(json.dumps(report), flush=True)
