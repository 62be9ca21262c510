"""The pool's directory: who lives at which address, told to those who follow."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from lark_agent.collector.directory import Directory
from lark_agent.model import Connectivity, Peers
from tests.cli.fake import make_record

if TYPE_CHECKING:
    from lark_agent.model import Record


def living(number: int, address: str, **changes: object) -> Record:
    """Make a running job of another worker at an address."""
    return make_record(
        number, connectivity=Connectivity.ROUTED, ipv4="", ipv6=address, ended_ns=0, final=False,
        worker="worker2", **changes,
    )  # fmt: skip


def test_a_follower_hears_all_and_then_every_change() -> None:
    """Who comes late knows as much as who was there before."""

    async def scene() -> None:
        directory = Directory()
        first = living(1, "2001:db8::1")
        directory.take([first])
        news = directory.follow("worker1")
        assert (await anext(news)).here == [("2001:db8::1", first)]
        second = living(2, "2001:db8::2", peers=Peers.OWNER)
        directory.take([second])
        assert (await anext(news)).here == [("2001:db8::2", second)]
        directory.take([replace(first, ended_ns=5, sequence=first.sequence + 1)])
        assert (await anext(news)).gone == ["2001:db8::1"]

    asyncio.run(scene())


def test_samples_are_no_news() -> None:
    """A job that goes on moving bytes is told once; one that other jobs may reach anew, again."""

    async def scene() -> None:
        directory = Directory()
        job = living(1, "2001:db8::1")
        directory.take([job])
        news = directory.follow("worker1")
        await anext(news)
        directory.take([replace(job, sequence=job.sequence + 1)])
        later = replace(job, sequence=job.sequence + 2, peers=Peers.ALL)
        directory.take([later])
        assert (await anext(news)).here == [("2001:db8::1", later)]

    asyncio.run(scene())


def test_an_old_report_does_not_bring_the_dead_back() -> None:
    """Reports may be repeated and late; the address is the latest attachment's."""

    async def scene() -> None:
        directory = Directory()
        old, new = living(1, "2001:db8::1"), living(2, "2001:db8::1")
        directory.take([new])
        directory.take([old])
        directory.take([replace(old, ended_ns=5, sequence=99)])
        assert (await anext(directory.follow("worker1"))).here == [("2001:db8::1", new)]

    asyncio.run(scene())


def test_nobody_is_told_of_private_addresses_or_of_its_own_jobs() -> None:
    """Addresses behind NAT mean nothing elsewhere, and a worker knows its own jobs sooner."""

    async def scene() -> None:
        directory = Directory()
        hidden = replace(living(1, "fd00::1"), connectivity=Connectivity.NAT)
        own = replace(living(2, "2001:db8::2"), worker="worker1")
        other = living(3, "2001:db8::3")
        directory.take([hidden, own, other])
        assert (await anext(directory.follow("worker1"))).here == [("2001:db8::3", other)]

    asyncio.run(scene())
