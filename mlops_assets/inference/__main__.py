"""`python -m mlops_assets.inference --model FOLDER`: one worker, configured by environment variables."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from mlops_assets.inference.config import ConfigError, Settings
from mlops_assets.inference.model import Model, ModelError
from mlops_assets.inference.service import Service
from mlops_assets.inference.worker import MISCONFIGURED, STOPPED, run


def main() -> int:
    """Runs the worker until SIGTERM or SIGINT; the exit status says how it ended."""
    parser = argparse.ArgumentParser(prog="mlops_assets.inference", description="Answers clicks from Kafka.")
    parser.add_argument("--model", type=Path, required=True, help="folder with model.onnx and model.json")
    parser.add_argument("--check-config", action="store_true", help="check the configuration and the model, then end")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    problems = []
    try:
        settings = Settings.from_environment()
    except ConfigError as error:
        problems.append(f"configuration: {error}")
    try:
        model = Model.load(arguments.model)
    except ModelError as error:
        problems.append(f"model: {error}")
    for problem in problems:
        logging.error("%s", problem)
    if problems:
        return MISCONFIGURED
    logging.info("model %s (%s) answers its golden rows", model.version, model.algorithm)
    if arguments.check_config:
        logging.info(
            "configuration is fine: %s -> %s at %s",
            settings.input_topic,
            settings.output_topic,
            settings.kafka.servers,
        )
        return STOPPED
    return run(Service(settings, model))


if __name__ == "__main__":
    sys.exit(main())
