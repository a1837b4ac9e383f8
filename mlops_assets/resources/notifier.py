"""The way to people: mail, Slack, Teams, webhooks and more, by Apprise's URLs."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import dagster as dg
from pydantic import Field

URLS: Final = "MLOPS_NOTIFY_URLS"
"""Names the variable that holds the recipients: Apprise's URLs, separated by white space. They are secrets."""

BASE_URL: Final = "MLOPS_DAGSTER_URL"
"""Names the variable that says where people reach Dagster's UI, for the links."""

NAME: Final = "mlops-assets"
TIMEOUT_SECONDS: Final = 5.0
"""To connect, and between two parts of an answer."""
SEND_SECONDS: Final = 15.0
"""For one message in all."""


def link(path: str) -> str:
    """The address of a page of Dagster's UI."""
    return f"{os.environ.get(BASE_URL, 'http://localhost:3000').rstrip('/')}/{path}"


class NotifyError(RuntimeError):
    """A recipient did not take a message. The text names the service, never the URL."""


class Notifier(dg.ConfigurableResource[None]):
    """Sends to each recipient by itself. The URLs are read from the environment at their use, and kept nowhere."""

    variable: str = Field(default=URLS, description="the environment variable with the recipients' URLs")

    def recipients(self) -> list[str]:
        """A name for each URL, which stays the same and gives nothing of it away."""
        return list(self._urls())

    def send(self, recipient: str, title: str, text: str) -> None:
        """Sends to one recipient, within SEND_SECONDS. Raises NotifyError if it did not take it."""
        with _silenced():
            # A quarter of a second to import, which only who sends has to pay.
            import apprise

            url = self._urls().get(recipient, "")
            asset = apprise.AppriseAsset(app_id=NAME, app_desc=NAME, app_url=link(""))
            service = apprise.Apprise.instantiate(url, asset=asset) if url else None
            if service is None:
                place = 1 + self.recipients().index(recipient) if url else "?"
                raise NotifyError(f"recipient {place} of {self.variable} is no URL that Apprise knows")
            service.socket_connect_timeout = service.socket_read_timeout = TIMEOUT_SECONDS
            sender = apprise.Apprise(asset=asset)
            sender.add(service)
            if not sender.notify(title=title, body=text, body_format=apprise.NotifyFormat.TEXT, timeout=SEND_SECONDS):
                raise NotifyError(f"{service.service_name} did not take it")

    def _urls(self) -> dict[str, str]:
        urls = os.environ.get(self.variable, "").split()
        # Few digits: many texts have the same, so it confirms no guess at a password.
        return {hashlib.sha256(url.encode()).hexdigest()[:8]: url for url in urls}


@contextmanager
def _silenced() -> Iterator[None]:
    """Keeps Apprise, and the client below it, from writing what they send where: their log lines hold the URLs."""
    loggers = [logging.getLogger(name) for name in ("apprise", "urllib3", "requests")]
    before: list[Any] = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for each, level in zip(loggers, before, strict=True):
            each.setLevel(level)
