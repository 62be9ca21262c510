"""Who gets in at a collector that uses TLS, and who is put out again.

The sockets are unix ones: TLS on them is the same, and no port of this machine is taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import msgspec
import pytest

from lark_agent.collector.daemon import Daemon
from lark_agent.config import CollectorSettings
from lark_agent.rpc.lark.v1 import report_pb2, report_pb2_grpc
from lark_agent.rpc.secure import OPTIONS
from lark_agent.trust import certificates
from lark_agent.trust.authority import DAY, Authority
from lark_agent.trust.certificates import Member, Signer
from lark_agent.trust.token import parse
from tests.collector.world import Worker, later, record

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

CODES = grpc.StatusCode


class Shown:
    """What a worker shows: a key, a certificate, and whom it trusts."""

    def __init__(self, authorities: bytes, key: bytes | None, certificate: bytes | None) -> None:
        self.credentials = grpc.ssl_channel_credentials(authorities, key, certificate)


class Pool:
    """A collector, and the means to be a worker of it, a former one, or none."""

    def __init__(self, folder: Path) -> None:
        self.reports, self.enroll_at = f"unix:{folder}/reports", f"unix:{folder}/enroll"
        self.settings = CollectorSettings(
            listen=self.reports, enroll=self.enroll_at, authority=f"{folder}/authority",
            socket=f"{folder}/q", store=f"sqlite:///{folder}/s/u.sqlite",
        )  # fmt: skip
        self.authority = Authority(folder / "authority", 30)
        self.authority.prepare()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Daemon]:
        async with Daemon(self.settings) as daemon:
            watch = asyncio.create_task(daemon.watch_workers())
            try:
                yield daemon
            finally:
                watch.cancel()

    def enrolled(self, worker: str = "w1", *, replaces: bool = False) -> Shown:
        """Return what a worker got by a token."""
        token = parse(self.authority.create_token(worker, 60, replace=replaces))
        key = certificates.make_key()
        request = certificates.request_for(worker, key)
        given = self.authority.enroll(token.name, token.secret, worker, request)
        return Shown(given.authorities, certificates.key_pem(key), given.certificate)

    def signed(self, signer: Signer, worker: str = "w1", *, days: float = 30) -> Shown:
        """Return a certificate that some signer made; with negative days it ended then."""
        key, made = certificates.make_key(), time.time() - (2 * DAY if days < 0 else 0)
        life = timedelta(days=2 + days if days < 0 else days)
        certificate = certificates.for_worker(
            signer, certificates.request_for(worker, key), Member(worker, 1),
            certificates.moment(made), life,
        )  # fmt: skip
        return Shown(self.authority.authorities(), certificates.key_pem(key), certificate)

    def signer(self) -> Signer:
        """Return the authority's own."""
        (path,) = Path(self.settings.authority).glob("signer-*.pem")
        return Signer.from_pem(path.read_bytes())

    def channel(self, shown: Shown) -> grpc.aio.Channel:
        return grpc.aio.secure_channel(self.reports, shown.credentials, options=OPTIONS)

    async def refusal(self, shown: Shown, worker: str = "w1") -> grpc.aio.AioRpcError:
        """Return how a stream of reports is refused."""
        async with self.channel(shown) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await Worker(channel).hello(worker)
        return refused.value


@pytest.fixture
def pool() -> Iterator[Pool]:
    with tempfile.TemporaryDirectory(prefix="lark-test-") as name:
        yield Pool(Path(name))


async def ended(worker: Worker) -> tuple[grpc.StatusCode, str]:
    """Return how the collector ends a stream, within some seconds."""
    with contextlib.suppress(grpc.aio.AioRpcError):
        assert await asyncio.wait_for(worker.stream.read(), 20) is grpc.aio.EOF
    return await worker.stream.code(), await worker.stream.details()


def test_an_enrolled_worker_reports(pool: Pool) -> None:
    """With its certificate, under its name."""

    async def talk() -> None:
        shown = pool.enrolled()
        async with pool.serving(), pool.channel(shown) as channel:
            worker = Worker(channel)
            await worker.hello("w1")
            await worker.send(1, later(record(), {"other": 7}))
            assert await worker.acknowledged() == 1

    asyncio.run(talk())


def strangers(pool: Pool) -> dict[str, Shown]:
    """Return what the handshake has to stop, by what is wrong with it."""
    trusted = pool.authority.authorities()
    other = certificates.make_authority(certificates.moment(time.time()))
    role = certificates.for_collector(
        pool.signer(), certificates.moment(time.time()), timedelta(days=1)
    )
    return {
        "no certificate": Shown(trusted, None, None),
        "of another authority": pool.signed(other),
        "over": pool.signed(pool.signer(), days=-1),
        "the collector's own": Shown(
            trusted, certificates.key_pem(role.key), certificates.certificate_pem(role.certificate)
        ),
    }


def test_strangers_do_not_get_past_the_handshake(pool: Pool) -> None:
    """Without a certificate, with another authority's, an old one or one of another role."""

    async def talk() -> None:
        pool.enrolled()
        async with pool.serving():
            for why, shown in strangers(pool).items():
                refused = await pool.refusal(shown)
                assert refused.code() is CODES.UNAVAILABLE, (why, refused.details())
            # the same way with a good one leads in: what was refused was the certificate
            async with pool.channel(pool.signed(pool.signer())) as channel:
                await Worker(channel).hello("w1")

    asyncio.run(talk())


def test_plain_text_is_no_way_in(pool: Pool) -> None:
    """Neither to report nor to enrol: nothing falls back."""

    async def talk() -> None:
        async with pool.serving():
            for address in (pool.reports, pool.enroll_at):
                async with grpc.aio.insecure_channel(address) as channel:
                    with pytest.raises(grpc.aio.AioRpcError) as refused:
                        await Worker(channel).hello()
                    assert refused.value.code() is CODES.UNAVAILABLE

    asyncio.run(talk())


def test_a_collector_of_another_authority_is_not_told_anything(pool: Pool) -> None:
    """The worker ends the handshake: whoever took the address gets no record."""
    with tempfile.TemporaryDirectory(prefix="lark-test-") as name:
        other = Pool(Path(name))

        async def talk() -> None:
            shown = other.enrolled()
            async with pool.serving():
                refused = await pool.refusal(shown)
                assert refused.code() is CODES.UNAVAILABLE

        asyncio.run(talk())


def test_the_address_for_enrolment_takes_no_reports(pool: Pool) -> None:
    """It asks for no certificate, so it must not be a way around."""

    async def talk() -> None:
        anonymous = grpc.ssl_channel_credentials(pool.authority.authorities())
        async with (
            pool.serving(),
            grpc.aio.secure_channel(pool.enroll_at, anonymous, options=OPTIONS) as channel,
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await Worker(channel).hello()
            assert refused.value.code() is CODES.UNIMPLEMENTED

    asyncio.run(talk())


def test_another_workers_name_and_records_are_refused(pool: Pool) -> None:
    """In hello, in a batch, and when it asks whose jobs are where; each refusal is counted."""

    async def talk() -> None:
        shown = pool.enrolled("w1")
        async with pool.serving() as daemon, pool.channel(shown) as channel:
            refused = await pool.refusal(shown, "w2")
            assert refused.code() is CODES.PERMISSION_DENIED
            assert "of worker w1, which cannot speak for w2" in (refused.details() or "")
            stub: report_pb2_grpc.CollectorAsyncStub = report_pb2_grpc.CollectorStub(channel)
            call = stub.FollowJobs(report_pb2.FollowJobsRequest(protocol=1, worker="w2"))
            assert await asyncio.wait_for(call.code(), 20) is CODES.PERMISSION_DENIED
            assert daemon.refused == 2
            worker = Worker(channel)
            await worker.hello("w1")
            await worker.send(1, replace(record(), worker="w2"))
            code, _ = await ended(worker)
            assert code is CODES.INVALID_ARGUMENT

    asyncio.run(talk())


def revoke(pool: Pool) -> str:
    pool.authority.revoke("w1")
    return "w1 was revoked"


def replaced(pool: Pool) -> str:
    pool.enrolled(replaces=True)
    return "another machine was enrolled as w1"


@pytest.mark.parametrize("change", [revoke, replaced])
def test_an_open_stream_ends_with_the_right_to_it(
    pool: Pool, change: Callable[[Pool], str]
) -> None:
    """At once, for reports and news of the pool; another worker's stream goes on."""

    async def talk() -> None:
        first, second = pool.enrolled("w1"), pool.enrolled("w2")
        async with (
            pool.serving(), pool.channel(first) as one, pool.channel(second) as other,
        ):  # fmt: skip
            worker, neighbour = Worker(one), Worker(other)
            await worker.hello("w1")
            await neighbour.hello("w2")
            stub: report_pb2_grpc.CollectorAsyncStub = report_pb2_grpc.CollectorStub(one)
            follow = stub.FollowJobs(report_pb2.FollowJobsRequest(protocol=1, worker="w1"))
            await follow.read()
            why = change(pool)
            code, text = await ended(worker)
            assert (code, why in text) == (CODES.PERMISSION_DENIED, True), text
            assert await asyncio.wait_for(follow.code(), 20) is CODES.PERMISSION_DENIED
            refused = await pool.refusal(first)
            assert refused.code() is CODES.PERMISSION_DENIED
            await neighbour.send(1, replace(record(), worker="w2"))
            assert await neighbour.acknowledged() == 1

    asyncio.run(talk())


def test_an_open_stream_ends_with_its_certificate(pool: Pool) -> None:
    """A stolen key is not good for ever because a stream is open."""

    async def talk() -> None:
        pool.enrolled()
        shown = pool.signed(pool.signer(), days=3 / DAY)
        async with pool.serving(), pool.channel(shown) as channel:
            worker = Worker(channel)
            await worker.hello("w1")
            code, text = await ended(worker)
            assert (code, "is over" in text) == (CODES.UNAUTHENTICATED, True)

    asyncio.run(talk())


def test_a_certificate_of_nobody_that_was_enrolled_is_refused(pool: Pool) -> None:
    """A worker whose entry was removed, or a generation that never was."""

    async def talk() -> None:
        pool.enrolled("w1")
        async with pool.serving():
            refused = await pool.refusal(pool.signed(pool.signer(), "w9"), "w9")
            assert refused.code() is CODES.PERMISSION_DENIED
            assert "not enrolled" in (refused.details() or "")

    asyncio.run(talk())


@pytest.mark.parametrize("insecure", [False, True])
def test_a_name_reports_from_one_machine_at_a_time(pool: Pool, *, insecure: bool) -> None:
    """A copied disk, or two workers of one name: the second is refused, and the refusal counted.

    The same machine may come again while its last stream has not ended, and another one when
    the first has gone.
    """
    pool.settings = msgspec.structs.replace(pool.settings, insecure=insecure)

    async def talk() -> None:
        shown = pool.enrolled()
        plain = grpc.aio.insecure_channel(pool.reports)
        async with (
            pool.serving() as daemon,
            plain if insecure else pool.channel(shown) as channel,
        ):
            worker, again, copy = Worker(channel), Worker(channel), Worker(channel)
            await worker.hello("w1", machine="a")
            await again.hello("w1", machine="a")
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await copy.hello("w1", machine="b")
            assert refused.value.code() is CODES.ALREADY_EXISTS
            assert "another name" in (refused.value.details() or "")
            assert daemon.refused == 1
            for stream in (worker, again):
                await stream.stream.done_writing()
                assert (await ended(stream))[0] is CODES.OK
            await Worker(channel).hello("w1", machine="b")

    asyncio.run(talk())


@pytest.mark.parametrize(
    "noise",
    [b"", b"\x00" * 4096, b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" * 9,
     b"\x16\x03\x01\xff\xff" + b"\x01" * 9000, bytes(range(256)) * 40],
)  # fmt: skip
def test_malformed_bytes_disturb_nobody(pool: Pool, noise: bytes) -> None:
    """Neither before nor inside a handshake: who reports goes on, and newcomers get in."""

    async def talk() -> None:
        shown = pool.enrolled()
        async with pool.serving(), pool.channel(shown) as channel:
            worker = Worker(channel)
            await worker.hello("w1")
            for address in (pool.reports, pool.enroll_at):
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.connect(address.removeprefix("unix:"))
                    with contextlib.suppress(OSError):
                        sock.send(noise, socket.MSG_DONTWAIT)
            await worker.send(1, later(record(), {"other": 7}))
            assert await worker.acknowledged() == 1
            async with pool.channel(shown) as another:
                await Worker(another).hello("w1")

    asyncio.run(talk())


def test_a_worker_renews_over_its_own_connection_only(pool: Pool) -> None:
    """It gets a certificate of its own name, whatever its request says."""

    async def talk() -> None:
        shown = pool.enrolled("w1")
        request = certificates.request_for("w2", certificates.make_key())
        async with pool.serving(), pool.channel(shown) as channel:
            stub: report_pb2_grpc.CollectorAsyncStub = report_pb2_grpc.CollectorStub(channel)
            asked = report_pb2.RenewRequest(protocol=1, request=request)
            given = await stub.Renew(asked, timeout=20)
            member, _ = certificates.member_of(given.certificate)
            assert member == Member("w1", 1)
            junk = report_pb2.RenewRequest(protocol=1, request=b"junk")
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.Renew(junk, timeout=20)
            assert refused.value.code() is CODES.INVALID_ARGUMENT
            pool.authority.revoke("w1")
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.Renew(asked, timeout=20)
            assert refused.value.code() is CODES.PERMISSION_DENIED

    asyncio.run(talk())
