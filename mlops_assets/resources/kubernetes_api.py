"""The way to a Kubernetes API server: with whose credentials, how patiently, and what is said when it refuses."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from kubernetes import client, config
from urllib3.exceptions import HTTPError

T = TypeVar("T")

REQUEST_SECONDS: Final = (5, 30)
"""To connect, and to be answered."""

PATIENCE_SECONDS: Final = 130.0
"""For so long a request is repeated: a control plane that is upgraded or overloaded is away for a minute or two."""

GLANCE_SECONDS: Final = 10.0
"""The same for whoever looks again soon."""

PAUSES: Final = (0.5, 1.0, 2.0, 4.0)
LONGEST_PAUSE: Final = 8.0
PASSING: Final = (408, 429, 500, 502, 503, 504)


def api_client(kubeconfig: str | None, failure: type[Exception]) -> client.ApiClient:
    """A client with the pod's own credentials inside a cluster, else those of `kubeconfig`, by default kubectl's.

    Raises `failure` where none are configured.
    """
    settings = client.Configuration()
    try:
        config.load_incluster_config(client_configuration=settings)
    except config.ConfigException:
        try:
            config.load_kube_config(kubeconfig or os.environ.get("KUBECONFIG"), client_configuration=settings)
        except config.ConfigException as error:
            raise failure(f"no Kubernetes is configured ({error}): set KUBECONFIG") from error
    settings.retries = False  # `ask` repeats
    return client.ApiClient(settings)


def ask(
    call: Callable[[], T],
    what: str,
    failure: type[Exception],
    remedies: Mapping[int, str] = {},
    patience_seconds: float = PATIENCE_SECONDS,
) -> T:
    """What the API server answers to `call`, which is repeated for a while as long as the trouble may pass.

    A call may thus have been carried out when it is repeated. Raises `failure` with what the server says against
    `what`; `remedies` are what to do then, by HTTP status.
    """
    deadline = time.monotonic() + patience_seconds
    for pause in itertools.chain(PAUSES, itertools.repeat(LONGEST_PAUSE)):
        is_late = time.monotonic() + pause > deadline
        try:
            return call()
        except client.ApiException as error:
            if is_late or error.status not in PASSING:
                said = error.body.decode() if isinstance(error.body, bytes) else error.body
                raise failure(f"Kubernetes refused {what}{remedies.get(error.status, '')}: {said}") from error
        except HTTPError as error:
            if is_late:
                raise failure(f"Kubernetes does not answer: {error}") from error
        time.sleep(pause)
    raise AssertionError("the pauses never end")
