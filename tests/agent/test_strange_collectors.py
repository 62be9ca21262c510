"""Collectors that say what no collector says: every field of every answer, spoiled.

The reporter, its journal and the reader of the pool's jobs are the agent's own; the collector is a
real server that follows a list of answers, one a stream, and then turns honest.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from lark_agent.accounting.journal import Journal
from lark_agent.agent import reporter
from lark_agent.agent.link import Link
from lark_agent.agent.neighbours import _heard
from lark_agent.agent.reporter import Reporter
from lark_agent.agent.tasks import OwnThread
from lark_agent.config.worker import CollectorLink
from lark_agent.model import new_attachment_id
from lark_agent.rpc.convert_quotas import claim_from_wire
from lark_agent.rpc.lark.v1 import report_pb2, report_pb2_grpc
from tests.accounting.test_journal import HERE, PLAN, START, moved, record
from tests.rpc.spoiling import spoiled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from lark_agent.accounting.leases import Claim, Grant

LEASE = new_attachment_id(START, bytes(10))
WELCOME = report_pb2.Welcome(protocol=1, version="1", store=7, mark=1)
CLAIM = claim_from_wire(
    report_pb2.Claim(
        lease=LEASE, quota="q", scope="owner", subject="alice", period="2026-11", limit=9,
        action="notify", wanted=True,
    )
)  # fmt: skip
ANSWERS = {
    "welcome": report_pb2.CollectorMessage(welcome=WELCOME),
    "acknowledgement": report_pb2.CollectorMessage(
        acknowledgement=report_pb2.Acknowledgement(number=1, mark=2)
    ),
    "grants": report_pb2.CollectorMessage(
        grants=report_pb2.Grants(number=1, grants=[report_pb2.Grant(lease=LEASE, granted=5)])
    ),
}


class Claims:
    """A worker with one lease that always wants more."""

    def __init__(self) -> None:
        self.claimed = asyncio.Event()
        self.granted: list[Grant] = []
        self._stated = False

    def take_claims(self, limit: int) -> list[Claim]:
        self._stated = not self._stated
        return [CLAIM] if self._stated else []

    async def answered(self, claims: Sequence[Claim], grants: Sequence[Grant]) -> None:
        self.granted += grants


class Strange(report_pb2_grpc.CollectorServicer):
    """Gives the answers, each where its kind belongs; honest when there is none left."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.left = [message for _, message in spoiled(ANSWERS[kind])]
        self.taken = asyncio.Event()

    async def Report(  # noqa: N802  rpc name
        self, request_iterator: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[report_pb2.CollectorMessage]:
        await anext(request_iterator)
        message = self.left.pop() if self.left else None
        if message is not None and self.kind == "welcome":
            yield message
            return
        leases = message is not None and self.kind == "grants"
        honest = report_pb2.Welcome(protocol=1, store=7, mark=1, leases=leases)
        yield report_pb2.CollectorMessage(welcome=honest)
        async for said in request_iterator:
            if message is not None:
                yield message
                return
            answer = report_pb2.Acknowledgement(number=said.batch.number, mark=2)
            yield report_pb2.CollectorMessage(acknowledgement=answer)
            self.taken.set()


def test_every_answer_is_spoiled() -> None:
    """An answer that is added to the protocol needs a valid one here."""
    kinds = report_pb2.CollectorMessage.DESCRIPTOR.oneofs_by_name["kind"].fields
    assert {field.name for field in kinds} == set(ANSWERS)


@pytest.mark.parametrize("kind", ANSWERS)
def test_a_strange_answer_ends_a_stream_and_nothing_else(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reporter goes on to the next, blames no disk, and an honest collector gets the rest."""
    monkeypatch.setattr(reporter, "_FIRST_PAUSE", 0.005)
    monkeypatch.setattr(reporter, "_LONGEST_PAUSE", 0.01)
    journal = Journal(tmp_path / "journal.sqlite")
    journal.begin(record("alice"), HERE, PLAN)
    strange = Strange(kind)  # type: ignore[abstract]  # one rpc is asked for
    states = set[str]()

    async def report() -> None:
        async with AsyncExitStack() as stack:
            server = grpc.aio.server()
            report_pb2_grpc.add_CollectorServicer_to_server(strange, server)
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            stack.push_async_callback(server.stop, None)
            link = Link(CollectorLink(address=f"127.0.0.1:{port}", insecure=True), "worker1")
            thread = OwnThread("journal")
            stack.callback(thread.close)
            changed, latest, claims = asyncio.Event(), record("alice"), Claims()
            made = Reporter(
                link, "worker1", "0", journal, thread, changed,
                claims,  # type: ignore[arg-type]  # all that it asks of who meters
            )  # fmt: skip
            task = asyncio.create_task(made.run())
            async with asyncio.timeout(60):
                while not strange.taken.is_set():
                    assert not task.done(), task.exception()
                    states.add(made.state)
                    # an answer that was taken leaves nothing to send: there is news
                    latest = moved(latest, 1, 1, 1)
                    await thread(lambda news=latest: journal.save([news]))  # type: ignore[misc]  # bound as a default
                    changed.set()
                    await asyncio.sleep(0.005)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert all(grant.granted <= 2**61 for grant in claims.granted)
            assert bool(claims.granted) == (kind == "grants")

    asyncio.run(report())
    journal.close()
    assert strange.left == []
    assert [state for state in states if "disk" in state or "damaged" in state] == []


def test_a_strange_neighbour_is_passed_over() -> None:
    """Each field of who lives where: heard of with an address and a wish that are ones, or not."""
    valid = report_pb2.JobsAtAddresses(
        jobs=[report_pb2.JobAtAddress(address="192.0.2.1", worker="w", owner="alice", peers="all")]
    )
    assert len(list(_heard(valid))) == 1
    for done, news in spoiled(valid):
        for address, job in _heard(news):
            assert address.version in {4, 6}, done
            assert job.peers.value in {"none", "owner", "group", "all"}, done
