"""A worker's side of enrolment and renewal: one call each, and the identity written afterwards.

Run as a program, `python -m lark_agent.rpc.enrollment COLLECTOR FILE`, it renews the identity in a
file: the agent does so in a process of its own, because the library for keys would cost its memory
more than everything that it counts.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from lark_agent.errors import LarkError, PolicyRefusal, RemoteError
from lark_agent.rpc.channel import explained
from lark_agent.rpc.lark.v1 import report_pb2, report_pb2_grpc
from lark_agent.rpc.secure import OPTIONS, credentials
from lark_agent.trust import certificates
from lark_agent.trust.identity import Identity, load, save

if TYPE_CHECKING:
    from collections.abc import Callable

    from cryptography.hazmat.primitives.asymmetric import ec

    from lark_agent.trust.token import Token

PROTOCOL = 1
SECONDS = 30.0


def enroll(address: str, token: Token, worker: str, file: Path) -> Identity:
    """Enrol with the collector at an address, by a token; write and return the identity.

    Raises PolicyRefusal if it admits this worker not, RemoteError, PrerequisiteError.
    """
    key = certificates.make_key()
    trusted = grpc.ssl_channel_credentials(token.authorities.encode())
    with grpc.secure_channel(address, trusted, OPTIONS) as channel:
        stub: report_pb2_grpc.EnrollmentStub = report_pb2_grpc.EnrollmentStub(channel)
        request = report_pb2.EnrollRequest(
            protocol=PROTOCOL, worker=worker, token=token.name, secret=token.secret,
            request=certificates.request_for(worker, key),
        )  # fmt: skip
        given = _asked(address, lambda: stub.Enroll(request, timeout=SECONDS))
    identity = _identity(worker, key, given)
    save(file, identity)
    return identity


def renew(address: str, file: Path) -> Identity:
    """Replace the identity in a file by the next one; raises as `enroll`."""
    before = load(file)
    key = certificates.make_key()
    with grpc.secure_channel(address, credentials(before), OPTIONS) as channel:
        stub: report_pb2_grpc.CollectorStub = report_pb2_grpc.CollectorStub(channel)
        request = report_pb2.RenewRequest(
            protocol=PROTOCOL, request=certificates.request_for(before.worker, key)
        )
        given = _asked(address, lambda: stub.Renew(request, timeout=SECONDS))
    identity = _identity(before.worker, key, given)
    save(file, identity)
    return identity


def _asked(address: str, call: Callable[[], report_pb2.Credentials]) -> report_pb2.Credentials:
    try:
        return call()
    except grpc.RpcError as error:
        if isinstance(error, grpc.Call) and error.code() is grpc.StatusCode.PERMISSION_DENIED:
            raise PolicyRefusal(f"{address}: {error.details()}") from error
        raise explained(error, address) from error


def _identity(
    worker: str, key: ec.EllipticCurvePrivateKey, given: report_pb2.Credentials
) -> Identity:
    try:
        member, _ = certificates.member_of(given.certificate)
    except ValueError as error:
        raise RemoteError(f"the collector gave what is no certificate: {error}") from error
    if member.worker != worker:
        raise RemoteError(f"the collector gave a certificate of {member.worker}, not of {worker}")
    return Identity(
        worker=worker, key=certificates.key_pem(key).decode(),
        certificate=given.certificate.decode(), authorities=given.authorities.decode(),
        begins=given.begins, ends=given.ends,
    )  # fmt: skip


def main() -> None:
    """Renew, as the agent's own process for that."""
    address, file = sys.argv[1:]
    try:
        renew(address, Path(file))
    except LarkError as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
