"""The variables MLOPS_SPARK_... of the clouds' forms, read into their fields."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any, Final

from mlops_assets.resources.ephemeral import EphemeralSpark

SHARED: Final = {
    "MLOPS_SPARK_MASTER_TYPE": "master_type",
    "MLOPS_SPARK_NODE_TYPE": "node_type",
    "MLOPS_SPARK_NODES": "nodes",
    "MLOPS_SPARK_SPOT_NODES": "spot_nodes",
    "MLOPS_SPARK_DISK_GB": "disk_gb",
    "MLOPS_SPARK_CONF": "spark_conf",
}


def required(form: str, meanings: Mapping[str, str], environment: Mapping[str, str]) -> list[str]:
    """The values of variables that a form can't do without. Raises ValueError naming all that are missing."""
    missing = [f"{name} ({meaning})" for name, meaning in meanings.items() if not environment.get(name)]
    if missing:
        raise ValueError(f"MLOPS_SPARK is {form}, which also needs {'; '.join(missing)}. See docs/clouds.md")
    return [environment[name].rstrip("/") for name in meanings]


def given(form: type[EphemeralSpark], fields: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, Any]:
    """The fields whose variables are set, as their types want them. Raises ValueError for one that can't be read."""
    found: dict[str, Any] = {}
    for variable, field in fields.items():
        text = environment.get(variable)
        if not text:
            continue
        default = form.model_fields[field].default
        if isinstance(default, list):
            found[field] = [part.strip() for part in text.split(",")]
        elif isinstance(default, dict):
            pairs = [part.partition("=") for part in shlex.split(text)]
            if not all(separator for _, separator, _ in pairs):
                raise ValueError(f"{variable} is {text!r}; it must be NAME=VALUE, several separated by spaces")
            found[field] = {name: value for name, _, value in pairs}
        elif isinstance(default, int):
            if not text.isdecimal():
                raise ValueError(f"{variable} is {text!r}; it must be a whole number")
            found[field] = int(text)
        else:
            found[field] = text
    return found
