"""The way to a Kubernetes API server: with whose credentials, how patiently, and what is said when it refuses."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Final

from kubernetes import client, config
from urllib3.exceptions import HTTPError
from urllib3.util import Retry

REQUEST_SECONDS: Final = (5, 30)
"""To connect, and to be answered."""

RETRIES: Final = Retry(total=4, backoff_factor=0.5, status_forcelist=(429, 502, 503, 504), allowed_methods=None)


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
    settings.retries = RETRIES
    return client.ApiClient(settings)


@contextlib.contextmanager
def asked(what: str, failure: type[Exception], remedies: Mapping[int, str]) -> Iterator[None]:
    """Turns what the API server says against `what` into `failure`; `remedies` are what to do, by HTTP status."""
    try:
        yield
    except client.ApiException as error:
        said = error.body.decode() if isinstance(error.body, bytes) else error.body
        raise failure(f"Kubernetes refused {what}{remedies.get(error.status, '')}: {said}") from error
    except HTTPError as error:
        raise failure(f"Kubernetes does not answer: {error}") from error
