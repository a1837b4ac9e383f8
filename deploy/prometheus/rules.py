"""The alerts for Prometheus' operator: `python deploy/prometheus/rules.py` wraps alerts.yaml into a PrometheusRule.

kustomize reads no file outside its folder and puts none into another, so what this makes is kept beside the PodMonitor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).parents[2]
SOURCE: Final = ROOT / "deploy/prometheus/alerts.yaml"
FILE: Final = ROOT / "k8s/components/prometheus/rules.yaml"
HEAD: Final = "# Made from deploy/prometheus/alerts.yaml by `python deploy/prometheus/rules.py`.\n"


class Dumper(yaml.SafeDumper):
    """Writes text of several lines as such."""


Dumper.add_representer(
    str,
    lambda dumper, value: dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None),
)


def text() -> str:
    """The file's content."""
    rule: dict[str, Any] = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "mlops-assets"},
        "spec": yaml.safe_load(SOURCE.read_text()),
    }
    return HEAD + yaml.dump(rule, Dumper=Dumper, sort_keys=False, width=120)


if __name__ == "__main__":
    FILE.write_text(text())
