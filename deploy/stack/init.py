"""Makes the stack's bucket and topics, where they are missing. Run by the service `init`, before anything uses them."""

from __future__ import annotations

import os
from pathlib import Path

from mlops_assets.cli.kafka import TOPICS
from mlops_assets.cli.servers import make_bucket
from mlops_assets.inference.config import Kafka
from mlops_assets.resources.kafka_topics import create_topics

Path(os.environ["MLOPS_HOME"], "inference").mkdir(parents=True, exist_ok=True)  # the fleet's folder
make_bucket(os.environ, os.environ["MLOPS_BUCKET"])
create_topics(Kafka.from_environment().client(), TOPICS)
