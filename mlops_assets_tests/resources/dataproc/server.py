"""Yandex Cloud on this machine: the same gRPC services as the real one's, over TLS, with IAM that checks signatures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from yandex.cloud.dataproc.v1.cluster_service_pb2_grpc import add_ClusterServiceServicer_to_server
from yandex.cloud.dataproc.v1.job_service_pb2_grpc import add_JobServiceServicer_to_server
from yandex.cloud.endpoint import api_endpoint_pb2, api_endpoint_service_pb2
from yandex.cloud.endpoint.api_endpoint_service_pb2_grpc import (
    ApiEndpointServiceServicer,
    add_ApiEndpointServiceServicer_to_server,
)
from yandex.cloud.iam.v1 import iam_token_service_pb2
from yandex.cloud.iam.v1.iam_token_service_pb2_grpc import (
    IamTokenServiceServicer,
    add_IamTokenServiceServicer_to_server,
)
from yandex.cloud.operation.operation_service_pb2_grpc import (
    OperationServiceServicer,
    add_OperationServiceServicer_to_server,
)

from mlops_assets_tests.resources.dataproc.world import TOKEN, Clusters, Jobs, Service, World


class Addresses(Service, ApiEndpointServiceServicer):
    def List(self, request: Any, context: Any) -> Any:  # noqa: N802 - as the definitions name it
        found = [
            api_endpoint_pb2.ApiEndpoint(id=id, address=self.address)
            for id in ("iam", "dataproc", "operation", "compute")
        ]
        return api_endpoint_service_pb2.ListApiEndpointsResponse(endpoints=found)


class Iam(Service, IamTokenServiceServicer):
    def Create(self, request: Any, context: Any) -> Any:  # noqa: N802
        try:
            said = jwt.decode(request.jwt, self.public_key, ["PS256"], options={"verify_aud": False})
            assert said["iss"] == self.account["service_account_id"]
        except (jwt.InvalidTokenError, AssertionError):
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "JWT is invalid")
        return iam_token_service_pb2.CreateIamTokenResponse(iam_token=TOKEN)


class Operations(Service, OperationServiceServicer):
    def Get(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._enter(context, "operation.Get")
        return self.world.operations[request.operation_id]


@contextmanager
def yandex_cloud(folder: Path) -> Iterator[tuple[World, dict[str, str]]]:
    """Serves; gives the world, and the variables by which clients find it, with a key file made for them."""
    key = rsa.generate_private_key(65_537, 2_048)
    certificate = _certificate(key)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    account = {"id": "ajek1", "service_account_id": "ajes1", "private_key": secret.decode()}
    (folder / "key.json").write_text(json.dumps(account))
    (folder / "ca.pem").write_bytes(certificate)
    world = World()
    server = grpc.server(ThreadPoolExecutor(8))
    # The generated classes are abstract to a type checker only: a method that is not there answers UNIMPLEMENTED.
    kinds: list[Any] = [Addresses, Iam, Operations, Clusters, Jobs]
    services = [kind(world, account, key.public_key()) for kind in kinds]
    addresses, iam, operations, clusters, jobs = services
    add_ApiEndpointServiceServicer_to_server(addresses, server)
    add_IamTokenServiceServicer_to_server(iam, server)
    add_OperationServiceServicer_to_server(operations, server)
    add_ClusterServiceServicer_to_server(clusters, server)
    add_JobServiceServicer_to_server(jobs, server)
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(secret, certificate)]))
    for service in services:
        service.address = f"localhost:{port}"
    server.start()
    try:
        yield (
            world,
            {
                "MLOPS_YC_ENDPOINT": f"localhost:{port}",
                "MLOPS_YC_CA_FILE": str(folder / "ca.pem"),
                "YC_SERVICE_ACCOUNT_KEY_FILE": str(folder / "key.json"),
            },
        )
    finally:
        server.stop(0).wait()


def _certificate(key: rsa.RSAPrivateKey) -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=1))
    names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    return (
        builder.add_extension(names, critical=False).sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    )
