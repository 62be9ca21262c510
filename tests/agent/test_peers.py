"""Jobs of one worker that may exchange packets, and what is counted when they do.

One agent serves all of these tests; a job says by an attribute of its ad which peers it takes.
Servers and clients are told apart by their jobs, so no test meets the servers of another.
"""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING

import pytest

from lark_agent.model import JOBS_CLASS, Count
from tests.agent.worker import QUICK, drops, final, kill, python, until
from tests.lab.world import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lark_agent.model import Record
    from tests.lab.jobs import AdValue, JobHandle

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces"),
]
MODES = ("none", "owner", "group", "all")
PUBLIC: dict[str, AdValue] = {"WantPublic": True}
CONFIG = (
    QUICK.replace("slots = 4", "slots = 16")
    + "".join(
        f"""
[profiles.peers-{mode}]
peers = "{mode}"
[[rules]]
when = 'WantPeers == "{mode}"'
profile = "peers-{mode}"
"""
        for mode in MODES
    )
    + """
[addresses]
routed4 = "198.18.7.0/24"
routed6 = "2001:db8:7::/112"
[profiles.public]
connectivity = "routed"
peers = "all"
[[rules]]
when = "WantPublic"
profile = "public"
"""
)
# Echoes datagrams and streams on port 5000, a line for each, until told to end.
SERVE = """
import pathlib, select, socket, subprocess, sys
there = pathlib.Path(sys.argv[1])
udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
tcp = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
for sock in (udp, tcp):
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(("::", 5000))
tcp.listen()
show = ["ip", "-o", "address", "show", "dev", "eth0"]
print(subprocess.run(show, capture_output=True, text=True).stdout, flush=True)
(there / "ready").touch()
while not (there / "end").exists():
    for sock in select.select([udp, tcp], [], [], 0.02)[0]:
        if sock is udp:
            data, origin = udp.recvfrom(65536)
            udp.sendto(data, origin)
            print("DATAGRAM", len(data), flush=True)
        else:
            stream, _ = tcp.accept()
            total = 0
            while data := stream.recv(1 << 20):
                stream.sendall(data)
                total += len(data)
            stream.close()
            print("STREAM", total, flush=True)
"""
# Has three datagrams (one of them in fragments) and a stream of SIZE echoed by each address.
ASK = """
import socket, sys, threading
size = int(sys.argv[1])
def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET
def stream(address):
    with socket.create_connection((address, 5000), 0.5) as tcp:
        tcp.settimeout(30)
        def send():
            tcp.sendall(bytes(size))
            tcp.shutdown(socket.SHUT_WR)
        threading.Thread(target=send).start()
        got = 0
        while data := tcp.recv(1 << 20):
            got += len(data)
        assert got == size
def datagrams(address):
    with socket.socket(family(address), socket.SOCK_DGRAM) as udp:
        udp.settimeout(0.5)
        for length in (1, 1000, 5000):
            udp.sendto(bytes(length), (address, 5000))
            assert udp.recv(65536) == bytes(length)
for address in sys.argv[2:]:
    for exchange in (datagrams, stream):
        try:
            exchange(address)
            print(exchange.__name__, "done")
        except OSError as error:
            print(exchange.__name__, "failed:", error)
"""
# Has a datagram echoed by each address, tells its own, and whatever it hears later.
CONVERSE = """
import pathlib, select, socket, subprocess, sys
there = pathlib.Path(sys.argv[1])
udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
udp.bind(("::", 5001))
for address in sys.argv[2:]:
    udp.sendto(b"hello", (address if ":" in address else "::ffff:" + address, 5000))
    assert udp.recv(100) == b"hello"
show = ["ip", "-o", "address", "show", "dev", "eth0"]
print(subprocess.run(show, capture_output=True, text=True).stdout, flush=True)
(there / "ready").touch()
while not (there / "end").exists():
    if select.select([udp], [], [], 0.02)[0]:
        print("DATAGRAM", udp.recv(100), flush=True)
"""
FORGE = """
import socket, sys
victim, peer = sys.argv[1:]
with socket.socket(socket.AF_INET6 if ":" in peer else socket.AF_INET, socket.SOCK_DGRAM) as udp:
    udp.bind((peer, 5000))
    udp.sendto(b"forged", (victim, 5001))
"""
SIZE = 3_000_000
ALL_DONE = ["datagrams done", "stream done"] * 2
_names = itertools.count(1)


@pytest.fixture(scope="module")
def world() -> Iterator[Lab]:
    with Lab() as made:
        made.agent(CONFIG)
        yield made


class Server:
    """A job that runs until its end is wished: one that echoes on port 5000, or another."""

    def __init__(
        self, lab: Lab, user: str, ad: Mapping[str, AdValue], code: str = SERVE, *arguments: str
    ) -> None:
        inside = f"/run/lab/home/{user}/server{next(_names)}"
        self._lab, self._there = lab, lab.path(inside)
        self._there.mkdir()
        self._there.chmod(0o777)
        command = python(code, inside, *arguments)
        self.job: JobHandle = lab.start_job(command, user=user, ad=ad)
        until((self._there / "ready").exists, "a job that listens")
        words = self.job.starter.stdout.split()
        self.addresses = [
            words[n + 1].partition("/")[0] for n, w in enumerate(words) if w in {"inet", "inet6"}
        ]
        assert len(self.addresses) == 2

    def end(self) -> Record:
        (self._there / "end").touch()
        assert self.job.result().status == 0
        return final(self._lab, self.job.job_id)

    @property
    def heard(self) -> list[str]:
        lines = self.job.starter.stdout.splitlines()
        return [line for line in lines if line.startswith(("DATAGRAM", "STREAM"))]


def ask(
    lab: Lab, addresses: list[str], user: str, ad: Mapping[str, AdValue]
) -> tuple[list[str], Record]:
    """Run a client; returns what it says and its final record."""
    job = lab.start_job(python(ASK, str(SIZE), *addresses), user=user, ad=ad)
    done = job.result()
    assert done.status == 0, done.stderr
    return done.stdout.splitlines(), final(lab, job.job_id)


def exchanged(record: Record) -> tuple[Count, Count]:
    """Return (sent, received) of a record that has nothing but traffic with other jobs."""
    (share,) = record.usage.classes
    assert share.traffic_class == JOBS_CLASS
    assert drops(record) == {}
    return share.sent, share.received


def want(mode: str, group: str = "") -> dict[str, AdValue]:
    return {"WantPeers": mode, **({"AcctGroup": group} if group else {})}


@pytest.mark.parametrize(
    ("server", "client"),
    [
        (("alice", want("owner")), ("alice", want("owner"))),
        (("alice", want("group", "cms")), ("bob", want("group", "cms"))),
        (("alice", want("all")), ("bob", want("all", "atlas"))),
        (("alice", want("owner", "cms")), ("alice", want("group", "cms"))),
        (("alice", PUBLIC), ("bob", want("all"))),
        (("bob", want("all")), ("alice", PUBLIC)),
    ],
    ids=["owner", "group", "all", "owner and group", "to routed", "from routed"],
)
def test_jobs_that_agree_exchange_packets(
    world: Lab, server: tuple[str, dict[str, AdValue]], client: tuple[str, dict[str, AdValue]]
) -> None:
    """Both families, streams, datagrams, fragments: what one sent the other received, exactly."""
    listening = Server(world, *server)
    said, asked = ask(world, listening.addresses, *client)
    assert said == ALL_DONE
    assert listening.heard == ["DATAGRAM 1", "DATAGRAM 1000", "DATAGRAM 5000", f"STREAM {SIZE}"] * 2
    sent, received = exchanged(asked)
    assert exchanged(listening.end()) == (received, sent)
    assert min(sent.bytes, received.bytes) > 2 * SIZE


@pytest.mark.parametrize(
    ("server", "client"),
    [
        (("alice", want("owner")), ("bob", want("owner"))),
        (("alice", want("owner")), ("bob", want("all"))),
        (("alice", want("all")), ("alice", want("none"))),
        (("alice", want("group", "cms")), ("alice", want("group", "atlas"))),
        (("alice", want("group")), ("alice", want("group"))),
    ],
    ids=["other owner", "one side", "none", "other group", "no group"],
)
def test_jobs_that_disagree_do_not(
    world: Lab, server: tuple[str, dict[str, AdValue]], client: tuple[str, dict[str, AdValue]]
) -> None:
    """Nothing passes; it is dropped at the one who asks, as peer-denied, and nobody else's."""
    listening = Server(world, *server)
    said, asked = ask(world, listening.addresses, *client)
    assert [line for line in said if "failed" not in line] == []
    assert drops(asked).keys() == {"peer-denied"}
    assert drops(asked)["peer-denied"] >= 4
    assert asked.usage.classes == ()
    record = listening.end()
    assert (record.usage.classes, drops(record), listening.heard) == ((), {}, [])


def test_a_job_that_has_ended_is_nobody(world: Lab) -> None:
    """The addresses of an ended job lead nowhere, also for a job that it had agreed with."""
    listening = Server(world, "alice", want("all"))
    assert ask(world, listening.addresses, "alice", want("all"))[0] == ALL_DONE
    listening.end()
    said, asked = ask(world, listening.addresses, "alice", want("all"))
    assert [line for line in said if "failed" not in line] == []
    assert drops(asked).keys() == {"peer-denied"}


def test_a_source_of_the_sandboxes_from_elsewhere_is_forged(world: Lab) -> None:
    """A neighbour that speaks in a peer's name is not heard, not even in a live conversation."""
    listening = Server(world, "alice", want("owner"))
    asking = Server(world, "alice", want("owner"), CONVERSE, *listening.addresses)
    for victim, peer in zip(asking.addresses, listening.addresses, strict=True):
        family, via = ("-6", "2001:db8:1::10") if ":" in victim else ("-4", "192.0.2.10")
        world.run(["ip", family, "route", "replace", victim, "via", via], host="router")
        world.run(["ip", family, "address", "add", peer, "dev", "lo"], host="router")
        world.run(python(FORGE, victim, peer), host="router")
        world.run(["ip", family, "address", "delete", peer, "dev", "lo"], host="router")
        world.run(["ip", family, "route", "delete", victim], host="router")
    forged = world.run(["nft", "list", "chain", "inet", "lark", "forward"]).stdout
    assert forged.count("counter packets 1 bytes") == 2, forged
    assert asking.heard == []
    sent, received = exchanged(asking.end())
    assert exchanged(listening.end()) == (received, sent)


def test_peers_stay_peers_over_the_end_of_an_agent() -> None:
    """An agent is killed and another comes; jobs go on talking, and their counts still agree."""
    with Lab() as lab:
        agent = lab.agent(CONFIG)
        listening = Server(lab, "alice", want("owner"))
        asking = Server(lab, "alice", want("owner"), CONVERSE, *listening.addresses)
        kill(agent)
        lab.agent(CONFIG)
        said, asked = ask(lab, listening.addresses, "alice", want("owner"))
        assert said == ALL_DONE
        shares = [exchanged(asked), exchanged(asking.end())]
        sent, received = exchanged(listening.end())
        assert sent == sum((share[1] for share in shares), Count())
        assert received == sum((share[0] for share in shares), Count())
