"""Clicks $FIRST .. $FIRST + $CLICKS - 1 to the topic `input`, keyed by ip, $RATE a second; makes missing topics."""

import datetime
import json
import os
import time

from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from mlops_assets.clicks.synthetic import generate_day

SERVERS = {"bootstrap.servers": os.environ["KAFKA_BOOTSTRAP_SERVERS"]}
FIRST, CLICKS, RATE = int(os.environ["FIRST"]), int(os.environ["CLICKS"]), float(os.environ["RATE"])


def lines():
    """Key and CSV line of one click after the other."""
    number = FIRST
    while number < FIRST + CLICKS:
        for batch in generate_day(datetime.date(2017, 11, 10), CLICKS, seed=FIRST + 1):
            times = batch.time.astype("datetime64[s]").astype(str)
            columns = [column.tolist() for column in (batch.ip, batch.app, batch.device, batch.os, batch.channel)]
            for ip, app, device, system, channel, at in zip(*columns, times, strict=True):
                if number == FIRST + CLICKS:
                    return
                yield str(ip), f"{number},{ip},{app},{device},{system},{channel},{at.replace('T', ' ')}"
                number += 1


def main():
    admin = AdminClient(SERVERS)
    topics = [NewTopic("input", 12, 1), NewTopic("predictions", 12, 1), NewTopic("input.dead-letter", 1, 1)]
    for topic, future in admin.create_topics(topics).items():
        try:
            future.result(30)
            print("created", topic, flush=True)
        except KafkaException as error:
            if error.args[0].name() != "TOPIC_ALREADY_EXISTS":
                raise
    producer = Producer(SERVERS | {"linger.ms": 20, "enable.idempotence": True, "compression.type": "lz4"})
    failed = []
    begin = time.monotonic()
    for done, (key, line) in enumerate(lines()):
        if done % 500 == 0:
            producer.poll(max(0.0, begin + done / RATE - time.monotonic()))
            while time.monotonic() < begin + done / RATE:
                time.sleep(0.001)
        while True:
            try:
                producer.produce("input", line, key, on_delivery=lambda e, _: failed.append(str(e)) if e else None)
                break
            except BufferError:
                producer.poll(0.1)
    left = producer.flush(60)
    seconds = time.monotonic() - begin
    print(json.dumps({"clicks": CLICKS, "seconds": round(seconds, 2), "failed": len(failed), "left": left}), flush=True)


main()
