"""What the soak calls a leak: one object of each kind, left on purpose, is told."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.agent.worker import python
from tests.lab.world import Lab
from tests.soak.leaks import beyond, changed, standing

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces"),
]
FILE = "/run/lab/agent.toml"
# of the first slot's address; nobody answers
CONNECTION = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("100.98.0.2", 0))
s.sendto(b"x", ("198.51.100.10", 9))
"""
TABLE = "table inet found { set some { type ipv4_addr; elements = { 192.0.2.77 } }; }"
TRACKED = "table inet tracked { chain c { type filter hook output priority 0; ct state new; }; }"
LEFT = {
    "namespaces": ("ip netns add lark3", "lark3"),
    "links": ("ip link add lark3 type veth peer name lark4", "lark3"),
    "qdiscs": ("tc qdisc add dev uplink0 clsact", "uplink0 clsact"),
    "routes": ("ip route add 198.18.0.0/16 dev uplink0", "198.18.0.0/16"),
    "nft elements": (f"nft '{TABLE}'", "some"),
    "nft objects": ("nft 'table inet another'", "another"),
    "connections": ("ip address add 100.98.0.2 dev lo", "64620002"),
    "mounts": ("mkdir /run/left && mount -t tmpfs left /run/left", "/run/left"),
    "processes": ("setsid sleep 1000 >/dev/null 2>&1 &", "sleep"),
    "files": ("mkdir -p /sys/fs/bpf/lark/v0", "/sys/fs/bpf/lark/v0"),
    "settings": ("echo 1 >/proc/sys/net/ipv4/ip_forward", "1"),
}
"""By kind: what leaves one, and words of its name."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Give a worker without an agent."""
    with Lab() as lab:
        lab.path(FILE).write_text("")
        lab.run(["nft", TRACKED])
        yield lab


def test_what_is_left_is_told(lab: Lab) -> None:
    """One of each kind of object that agents make, and that a stop or a killed one could leave."""
    before = standing(lab, FILE, {})
    assert set(LEFT) == set(before)
    lab.run(["sh", "-c", "\n".join(command for command, _ in LEFT.values())])
    lab.run(python(CONNECTION))
    now = standing(lab, FILE, {})
    more = beyond(now, before)
    for kind, (_, words) in LEFT.items():
        assert any(words in name for name in now[kind] - before[kind]), kind
        assert kind in more
    assert set(changed(now, before)) == set(LEFT)


def test_a_descriptor_that_stays_open_is_told(lab: Lab) -> None:
    """A daemon that has more open than the one before; what is open twice counts twice."""
    code = "import sys, time; kept = [open('/etc/hosts') for _ in range({})]; print(flush=True)"
    sleeping = f"{code}; time.sleep(1000)"
    few, more = (lab.start(python(sleeping.format(number))) for number in (1, 3))
    while not (few.stdout and more.stdout):
        assert few.poll() is None
        assert more.poll() is None
    before, now = (standing(lab, FILE, {"daemon": each}) for each in (few, more))
    assert beyond(now, before) == {"descriptors of the daemon": {"/etc/hosts": 2}}
    for each in (few, more):
        each.signal(9)


def test_another_slot_is_no_leak() -> None:
    """Any sandbox may be ready; a second one is one too many."""
    before = {"namespaces": Counter(["lark8"])}
    assert beyond({"namespaces": Counter(["lark11"])}, before) == {}
    assert beyond({"namespaces": Counter(["lark11", "lark12"])}, before) == {
        "namespaces": {"lark#": 1}
    }
