"""deploy/compose.yaml as Docker Compose reads it, and as processes of this machine would have it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).parents[2]
DEPLOY: Final = ROOT / "deploy"
VARIABLE: Final = re.compile(r"\$\{(?P<name>\w+)(?:(?P<kind>:[-?])(?P<text>[^}]*))?\}")

Service = dict[str, Any]


def load(path: Path) -> Any:
    """A YAML file's content."""
    return yaml.safe_load(path.read_text())


def compose() -> dict[str, Any]:
    """The file, its anchors resolved and its variables not."""
    document: dict[str, Any] = load(DEPLOY / "compose.yaml")
    return document


def services() -> dict[str, Service]:
    """Its services."""
    found: dict[str, Service] = compose()["services"]
    return found


def map_strings(document: Any, change: Callable[[str], str]) -> Any:
    """The same document with each of its strings, and each number as one, changed."""
    if isinstance(document, dict):
        return {key: map_strings(value, change) for key, value in document.items()}
    if isinstance(document, list):
        return [map_strings(value, change) for value in document]
    return change(str(document)) if isinstance(document, str | int) and not isinstance(document, bool) else document


def interpolate(text: str, values: Mapping[str, str]) -> str:
    """As Docker Compose does. Raises KeyError for a required variable that is missing or empty."""

    def value(match: re.Match[str]) -> str:
        found = values.get(match["name"], "")
        if not found and match["kind"] != ":-":
            raise KeyError(match["name"])
        return found or match["text"]

    return VARIABLE.sub(value, text)


def example_variables() -> dict[str, str]:
    """The variables of .env.example, those that are commented out too."""
    lines = (DEPLOY / ".env.example").read_text().splitlines()
    return {match[1]: match[2] for line in lines if (match := re.fullmatch(r"#?([A-Z0-9_]+)=(.*)", line))}


def complaints(*arguments: str) -> str | None:
    """What check-jsonschema has to say against a file, None if nothing."""
    command = [sys.executable, "-m", "check_jsonschema", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr if done.returncode else None
