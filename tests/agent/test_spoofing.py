"""Forged frames on networks of the site, where a job has neighbours that would believe them.

Root in the sandbox sends them, so nothing but the datapath is in the way: on the host's end of the
link for a bridge and Open vSwitch, in the sandbox itself for macvlan. Behind the tag of an 802.1Q
network stands the same bridge and the same end of a link as in `bridge`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from lark_agent.model import Count
from tests.agent.test_networks import NETWORKS, SITE4, SITE6, lab, pytestmark
from tests.agent.test_site_servers import SWITCHED, switch
from tests.agent.worker import QUICK, Talker, drops, final, python, records, until
from tests.datapath.frames import arp, ethernet, icmp, ipv4, ipv6, udp
from tests.lab.capture import Capture, flows

if TYPE_CHECKING:
    from pathlib import Path

    from tests.lab.world import Lab

__all__ = ["lab", "pytestmark", "switch"]
OTHER4, OTHER6 = "198.18.20.99", "2001:db8:20::99"
OTHER_MAC = bytes.fromhex("020000000099")
ALL_NODES = bytes.fromhex("333300000001")
PORT = 4242
"""What every forged IP packet is for, or from; no other packet is."""
# argv: frames. What its own link refuses is an error here, and the next one is tried
SEND = """
import socket, sys
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
    sock.bind(("eth0", 0))
    for frame in sys.argv[1:]:
        try:
            sock.send(bytes.fromhex(frame))
        except OSError:
            pass
"""


def forged(mac: bytes, site: bytes, own4: str, own6: str) -> dict[str, list[bytes]]:
    """Return frames of a job with these addresses to a host of the site, by reason of the drop."""
    words = udp(b"forged", PORT, PORT)

    def four(source: str, kind: int = 0x0800, link: bytes = mac) -> bytes:
        return ethernet(ipv4(words, source=source, destination=SITE4), kind, link, site)

    six = ipv6(words, source=OTHER6, destination=SITE6)
    tagged = ethernet(b"\x00\x05\x08\x00" + ipv4(words, source=own4, destination=SITE4), 0x8100)
    router = ipv6(icmp(134), 58, own6, "ff02::1", hops=255)
    server = ipv4(udp(b"offer", 67, 68), source=own4, destination=SITE4)
    return {
        "spoofed-mac": [four(own4, link=OTHER_MAC), arp(OTHER_MAC, own4, link_source=mac)],
        "spoofed-address": [
            four(OTHER4), ethernet(six, 0x86DD, mac, site), arp(mac, OTHER4, link_source=mac),
        ],
        "link-layer": [site + mac + tagged[12:]],
        "forged-service": [
            ethernet(router, 0x86DD, mac, ALL_NODES), ethernet(server, 0x0800, mac, site),
        ],
    }  # fmt: skip


@pytest.mark.parametrize("network", ["lab", "bare", "switched"], ids=["bridge", "macvlan", "ovs"])
def test_what_a_job_forges_on_a_network_reaches_nobody(
    network: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """MAC, addresses, tags, ARP, router advertisements, DHCP: dropped, each for what it is."""
    made: Lab = request.getfixturevalue("switch" if network == "switched" else "lab")
    if network == "bare":
        made.run(["ip", "link", "set", "up0", "nomaster"])
    networks = f'default_profile = "{network}"\n' + QUICK + NETWORKS
    made.agent(SWITCHED if network == "switched" else networks)
    job = Talker(made, to=SITE4)
    until(lambda: job.job.job_id in records(made), "its record")
    record = records(made)[job.job.job_id]
    inside = ["ip", "netns", "exec", f"lark{record.slot}"]
    site = ["ip", "netns", "exec", "site"]
    macs = [
        json.loads(made.run([*where, "ip", "-j", "link", "show", name]).stdout)[0]["address"]
        for where, name in ((inside, "eth0"), (site, "net0"))
    ]
    own, far = (bytes.fromhex(mac.replace(":", "")) for mac in macs)
    frames = forged(own, far, record.ipv4, record.ipv6)
    with Capture("net0", tmp_path / "site.pcap", made.path("/run/netns/site")) as capture:
        made.run([*inside, *python(SEND, *(f.hex() for each in frames.values() for f in each))])
    job.end()
    record = final(made, job.job.job_id)
    dropped = drops(record)
    # the capture's marker is broadcast on the network, and no more for the job than the tag is
    assert dropped["link-layer"] >= len(frames.pop("link-layer"))
    assert {reason: dropped.get(reason) for reason in frames} == {
        reason: len(each) for reason, each in frames.items()
    }
    assert record.usage.sent == Count()
    seen = flows(capture.path)
    assert [p for p in seen if PORT in {p.sport, p.dport} or p.src in {OTHER4, OTHER6}] == []
