"""How workers come to certificates: a token for the first, the last one for the next.

The address for enrolment is one of its own, because it is the one that asks for no certificate of
its caller. It takes one small message from strangers, who cost a digest of their token.

Certificates of the listeners are made in memory and replaced when half of their life is over or
the signers change; each handshake asks for the latest, so nothing that is open is touched.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import structlog
from cryptography.x509 import load_pem_x509_certificates

from lark_agent import trouble
from lark_agent.errors import InvalidRequest, LarkError, PolicyRefusal, StoreError
from lark_agent.rpc.lark.v1 import report_pb2, report_pb2_grpc
from lark_agent.trust.certificates import certificate_pem, key_pem

if TYPE_CHECKING:
    from collections.abc import Callable

    from lark_agent.collector.admission import Admission
    from lark_agent.trust.authority import Authority, Issued

WORKER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")
"""A host name, which is part of a file's name at the authority (NAME_MAX is 255)."""
PROTOCOL = 1
_CODES: dict[type[LarkError], grpc.StatusCode] = {
    PolicyRefusal: grpc.StatusCode.PERMISSION_DENIED,
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    StoreError: grpc.StatusCode.UNAVAILABLE,
}
log = structlog.get_logger()


class EnrollmentServicer(report_pb2_grpc.EnrollmentServicer):
    """Answers workers that have a token."""

    def __init__(self, authority: Authority) -> None:
        self._authority = authority

    async def Enroll(  # noqa: N802  rpc name
        self,
        request: report_pb2.EnrollRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> report_pb2.Credentials:
        """Give a worker its first certificate."""
        await _check_protocol(context, request.protocol)
        if not WORKER.fullmatch(request.worker):
            await _refuse(context, InvalidRequest(f"'{request.worker[:64]}' is not a host name"))
        issued = await _tried(
            context,
            lambda: self._authority.enroll(
                request.token, request.secret, request.worker, request.request
            ),
        )
        log.info("worker enrolled", worker=request.worker, peer=context.peer())
        return _to_wire(issued)


async def renew(
    authority: Authority | None,
    admission: Admission,
    request: report_pb2.RenewRequest,
    context: grpc.aio.ServicerContext[Any, Any],
) -> report_pb2.Credentials:
    """Give the worker that calls its next certificate."""
    member, _ = await admission.member(context)
    await _check_protocol(context, request.protocol)
    assert authority is not None
    issued = await _tried(context, lambda: authority.renew(member, request.request))
    log.info("worker renewed its certificate", worker=member.worker)
    return _to_wire(issued)


class ListenerCredentials:
    """What listeners show at each handshake, and whom they trust."""

    def __init__(self, authority: Authority, life_seconds: float) -> None:
        self._authority = authority
        self._life = life_seconds
        self._stamp: tuple[int, ...] = ()
        self._made = self._ends = 0.0
        self._latest: grpc.ServerCertificateConfiguration | None = None

    def credentials(self, *, of_workers: bool) -> grpc.ServerCredentials:
        """Return credentials that ask callers for a worker's certificate, or for none."""
        return grpc.dynamic_ssl_server_credentials(
            self._configuration(), self._fetch, require_client_authentication=of_workers
        )

    def ends(self) -> tuple[float, float]:
        """Return when what is shown ends, and the newest signer; seconds since the epoch.

        Raises StoreError.
        """
        signers = load_pem_x509_certificates(self._authority.authorities())
        return self._ends, signers[0].not_valid_after_utc.timestamp()

    def _fetch(self) -> grpc.ServerCertificateConfiguration:
        """Return the latest; called by gRPC at each handshake, from threads of its own."""
        try:
            return self._configuration()
        except StoreError as error:
            trouble.met("collector's certificate")
            log.error("cannot renew the collector's certificate", error=str(error))
            assert self._latest is not None
            return self._latest

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        stamp = self._authority.stamp()[:1]
        if (
            self._latest is None
            or stamp != self._stamp
            or time.time() > self._made + self._life / 2
        ):
            own = self._authority.for_collector()
            self._latest = grpc.ssl_server_certificate_configuration(
                [(key_pem(own.key), certificate_pem(own.certificate))],
                root_certificates=self._authority.authorities(),
            )
            self._stamp, self._made = stamp, time.time()
            self._ends = own.certificate.not_valid_after_utc.timestamp()
        return self._latest


async def _check_protocol(context: grpc.aio.ServicerContext[Any, Any], spoken: int) -> None:
    if spoken != PROTOCOL:
        await context.abort(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"the worker speaks protocol {spoken}, this collector {PROTOCOL}; upgrade the older",
        )


async def _tried(
    context: grpc.aio.ServicerContext[Any, Any], issue: Callable[[], Issued]
) -> Issued:
    try:
        return await asyncio.to_thread(issue)
    except (PolicyRefusal, InvalidRequest, StoreError) as error:
        await _refuse(context, error)


async def _refuse(context: grpc.aio.ServicerContext[Any, Any], error: LarkError) -> NoReturn:
    log.warning("gave no certificate", peer=context.peer(), reason=str(error))
    await context.abort(_CODES[type(error)], str(error))
    raise AssertionError("abort always raises")


def _to_wire(issued: Issued) -> report_pb2.Credentials:
    return report_pb2.Credentials(
        certificate=issued.certificate, authorities=issued.authorities,
        begins=issued.begins, ends=issued.ends,
    )  # fmt: skip
