"""Keys of Object Storage on a machine of Yandex Cloud: short-lived ones of its own service account, kept nowhere.

boto3 runs this as the `credential_process` of yandex_keys.ini whenever it needs keys, and again before they expire:

    AWS_CONFIG_FILE=environment/etc/yandex_keys.ini

The machine's metadata service gives an IAM token, IAM an ephemeral access key for it. So no key is ever stored, or seen
in the properties of a cluster or a job. The account needs the role iam.serviceAccounts.ephemeralAccessKeyAdmin.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.request
from typing import Any, Final

METADATA: Final = "169.254.169.254"
IAM: Final = "https://iam.api.cloud.yandex.net"
TOKEN_PATH: Final = "/computeMetadata/v1/instance/service-accounts/default/token"  # noqa: S105 - a path
KEYS_PATH: Final = "/iam/aws-compatibility/v1/ephemeralAccessKeys"
KEY_SECONDS: Final = 3600
TIMEOUT_SECONDS: Final = 10


def keys(metadata: str, iam: str) -> dict[str, Any]:
    """New keys, as boto3 wants them from a credential_process. Raises OSError with the service's answer."""
    token = _json(urllib.request.Request(f"http://{metadata}{TOKEN_PATH}", headers={"Metadata-Flavor": "Google"}))
    wanted = json.dumps({"sessionName": "mlops-assets", "duration": f"{KEY_SECONDS}s"}).encode()
    headers = {"Authorization": f"Bearer {token['access_token']}", "Content-Type": "application/json"}
    key = _json(urllib.request.Request(f"{iam}{KEYS_PATH}", wanted, headers))  # noqa: S310 - https, but in tests
    return {
        "Version": 1,
        "AccessKeyId": key["accessKeyId"],
        "SecretAccessKey": key["secret"],
        "SessionToken": key["sessionToken"],
        "Expiration": key["expiresAt"],
    }


def _json(request: urllib.request.Request) -> Any:
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310 - http to the metadata
            return json.load(answer)
    except urllib.error.HTTPError as error:
        body = error.read(1000).decode(errors="replace")
        raise OSError(f"{request.full_url} answers {error.code}: {body}") from error


if __name__ == "__main__":
    # YC_METADATA_ADDR is what Yandex' own tools read.
    found = keys(os.environ.get("YC_METADATA_ADDR", METADATA), os.environ.get("MLOPS_YC_IAM", IAM))
    json.dump(found, sys.stdout)
